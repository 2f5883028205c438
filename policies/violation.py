"""Violations: what is wrong with a request, field by field, in the words of whoever sent it."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, Field, JsonValue, ValidationError

from policies.model import Frozen

SHOWN_MAX = 200
"""Characters of a refused value that are shown back."""
VIOLATIONS_MAX = 100
"""Violations of one request that are told; nobody reads more."""

_KEY = "[key]"  # pydantic's mark for the key of a mapping, as against its value
_plain_word = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Violation(Frozen):
    """One field of a request that is not as it must be."""

    field: str = Field(description='Where: a path such as "steps[0].limits.memory"; "" is the whole body.')
    got: JsonValue = Field(description="What the request had there; long values are cut.")
    allowed: JsonValue = Field(
        description="What may stand there: a bound, a list or a sentence; null if nothing."
    )
    message: str = Field(description="One sentence for people.")


def sentence(violation: Violation) -> str:
    """Return the violation in one line for people: where, what, what it got and what is allowed."""
    allowed = "" if violation.allowed is None else f"; allowed: {violation.allowed}"
    return f"{violation.field or 'the body'}: {violation.message} (got {violation.got!r}{allowed})"


def field_path(location: Sequence[str | int]) -> str:
    """Return `location`, as pydantic gives it, as a path: `("steps", 0, "argv")` is "steps[0].argv".

    A key that is no plain word is quoted: `("env", "a=b")` is `env["a=b"]`.
    """
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part == _KEY:
            continue
        elif _plain_word.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f"[{json.dumps(shown(part), ensure_ascii=False)}]"
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


def violations(error: ValidationError, model: type[BaseModel] | None = None) -> tuple[Violation, ...]:
    """Return what pydantic found wrong with a request body: all of it, up to `VIOLATIONS_MAX`.

    With the `model` that it was read as, an unknown field is told with those that are known in its place.
    """
    found = error.errors(include_url=False)
    faulty = {detail["loc"][:end] for detail in found for end in range(len(detail["loc"]))}
    # A tuple with a wrong item is also said to be too short: only its right items are counted.
    real = [item for item in found if item["type"] != "too_short" or item["loc"] not in faulty]
    told = [violation(detail["loc"], detail) for detail in real[:VIOLATIONS_MAX]]
    if model is None:
        return tuple(told)
    return tuple(
        each.model_copy(update={"allowed": _known(model, detail["loc"][:-1])})
        if detail["type"] == "extra_forbidden"
        else each
        for each, detail in zip(told, real, strict=False)
    )


def _known(model: type[BaseModel] | None, location: Sequence[str | int]) -> list[JsonValue] | None:
    """Return the names of the fields that the model at `location` below `model` has."""
    for part in location:
        if isinstance(part, str) and model is not None:
            field = model.model_fields.get(part)
            model = model_in(field.annotation) if field else None
    return list(model.model_fields) if model else None


def model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first model in an annotation such as `tuple[Step, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)


def violation(location: Sequence[str | int], detail: Any) -> Violation:
    """Return what one of pydantic's error details says, about the field at `location`."""
    kind: str = detail["type"]
    context = detail.get("ctx", {})
    field = field_path(location)
    got = None if kind == "missing" else shown(detail.get("input"))
    if inner := context.get("field"):  # found by a whole model, about one of its fields
        field = f"{field}.{inner}" if field else inner
        got = _inside(detail.get("input"), inner)
    allowed, message = _explain(kind, context, detail["msg"])
    return Violation(field=field, got=got, allowed=allowed, message=message)


def _inside(value: Any, path: str) -> JsonValue:
    """Return what stands at `path`, such as "files[2].path", in a request body."""
    for part in re.findall(r"[A-Za-z0-9_]+", path):
        try:
            value = value[int(part)] if part.isdigit() else value[part]
        except (LookupError, TypeError):
            return None
    return shown(value)


_BOUNDS = {
    "greater_than": ("gt", "be more than {}"),
    "greater_than_equal": ("ge", "be at least {}"),
    "less_than": ("lt", "be less than {}"),
    "less_than_equal": ("le", "be at most {}"),
    "string_too_long": ("max_length", "have at most {} characters"),
    "string_too_short": ("min_length", "have at least {} characters"),
    "too_long": ("max_length", "have at most {} items"),
    "too_short": ("min_length", "have at least {} items"),
    "string_pattern_mismatch": ("pattern", "match {}"),
    "literal_error": ("expected", "be {}"),
    "enum": ("expected", "be {}"),
}

_TYPES = {
    "string_type": "text",
    "string_unicode": "text in valid Unicode, without lone surrogates",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of 64 bits",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "datetime_parsing": "a time as RFC 3339 writes it, with a time zone",
    "datetime_from_date_parsing": "a time as RFC 3339 writes it, with a time zone",
    "timezone_aware": "a time as RFC 3339 writes it, with a time zone",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _explain(kind: str, context: dict[str, Any], fallback: str) -> tuple[JsonValue, str]:
    """Return what is allowed, and the sentence, for one kind of pydantic error."""
    if kind in _BOUNDS:
        key, form = _BOUNDS[kind]
        words = form.format(_plain(context[key]))
        return words.removeprefix("be ").removeprefix("have "), f"must {words}"
    if kind in _TYPES:
        return _TYPES[kind], f"must be {_TYPES[kind]}"
    if kind == "missing":
        return "a value", "must be given"
    if kind == "extra_forbidden":
        return None, "is not a field that is known here"
    if kind == "value_error":  # a plain ValueError of ours: a sentence
        words = fallback.removeprefix("Value error, ")
        return words.removeprefix("must be "), words
    return context.get("allowed"), fallback


def _plain(bound: Any) -> Any:
    """Write 0.0 as 0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound
