"""Violations: what is wrong with a request, field by field, in the words of whoever sent it."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from policies.model import Frozen

SHOWN_MAX = 200
"""Characters of a refused value that are shown back."""


class Violation(Frozen):
    """One field of a request that is not as it must be."""

    field: str = Field(description='Where: a path such as "steps[0].limits.memory"; "" is the whole body.')
    got: JsonValue = Field(description="What the request had there; long values are cut.")
    allowed: JsonValue = Field(description="What may stand there: a bound, a list or a sentence; null if nothing.")
    message: str = Field(description="One sentence for people.")


def field_path(location: Sequence[str | int]) -> str:
    """Return `location`, as pydantic gives it, as a path: `("steps", 0, "argv")` is "steps[0].argv"."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def shown(value: Any) -> JsonValue:
    """Return `value` fit to be shown in an answer: short, and valid JSON."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else "an integer of more than 64 bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        text = value if len(value) <= SHOWN_MAX else value[:SHOWN_MAX] + "…"
        return text.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} items" if value else []
    return f"a value of type {type(value).__name__}"


def violations(error: ValidationError) -> tuple[Violation, ...]:
    """Return what pydantic found wrong with a request body, all of it."""
    found = error.errors(include_url=False)
    return tuple(_violation(detail["type"], detail["loc"], detail) for detail in found)


def _violation(kind: str, location: Sequence[str | int], detail: Any) -> Violation:
    context = detail.get("ctx", {})
    got = None if kind == "missing" else shown(detail.get("input"))
    allowed, message = _explain(kind, context, detail["msg"])
    return Violation(field=field_path(location), got=got, allowed=allowed, message=message)


_BOUNDS = {
    "greater_than": ("gt", "more than {}"),
    "greater_than_equal": ("ge", "at least {}"),
    "less_than": ("lt", "less than {}"),
    "less_than_equal": ("le", "at most {}"),
    "string_too_long": ("max_length", "at most {} characters"),
    "string_too_short": ("min_length", "at least {} characters"),
    "too_long": ("max_length", "at most {} items"),
    "too_short": ("min_length", "at least {} items"),
    "string_pattern_mismatch": ("pattern", "text that matches {}"),
    "literal_error": ("expected", "{}"),
    "enum": ("expected", "{}"),
}

_WORDS = {
    "extra_forbidden": (None, "unknown field"),
    "missing": ("a value", "must be given"),
    "string_type": ("text", "must be text"),
    "string_unicode": ("text in valid Unicode", "must be text in valid Unicode (it has a lone surrogate)"),
    "int_type": ("a whole number", "must be a whole number"),
    "int_from_float": ("a whole number", "must be a whole number"),
    "float_type": ("a number", "must be a number"),
    "finite_number": ("a finite number", "must be a finite number"),
    "bool_type": ("true or false", "must be true or false"),
    "tuple_type": ("a list", "must be a list"),
    "dict_type": ("an object", "must be an object"),
    "model_type": ("an object", "must be an object"),
    "model_attributes_type": ("an object", "must be an object"),
}


def _explain(kind: str, context: dict[str, Any], fallback: str) -> tuple[JsonValue, str]:
    """Return what is allowed, and the sentence, for one kind of pydantic error."""
    if kind in _BOUNDS:
        key, form = _BOUNDS[kind]
        allowed = form.format(_plain(context[key]))
        return allowed, f"must be {allowed}"
    if kind in _WORDS:
        return _WORDS[kind]
    return context.get("allowed"), fallback


def _plain(bound: Any) -> Any:
    """Write 0.0 as 0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound
