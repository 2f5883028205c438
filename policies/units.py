"""Units: sizes in bytes and durations in seconds, written at the edges as people write them.

A size is a whole number of bytes, or text such as `"64MiB"` (binary: KiB, MiB, GiB, TiB; decimal: kB, MB, GB,
TB; B). A duration is a number of seconds, or text such as `"500ms"`, `"10s"`, `"2m"`, `"1h"`. Text needs its
unit, numbers take none. Inside, and wherever a value is written out, both are plain numbers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import GetCoreSchemaHandler, Strict
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

SIZE_MAX = (1 << 63) - 1
"""The largest size that the kernel's signed 64-bit offsets hold."""
DURATION_MAX = 365 * 24 * 3600.0
"""One year in seconds: longer is a mistake, not a limit."""

SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": KIB,
    "MiB": MIB,
    "GiB": GIB,
    "TiB": 1 << 40,
}
DURATION_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}

_NUMBER = r"[0-9]{1,19}(\.[0-9]{1,9})?"
SIZE_PATTERN = rf"^{_NUMBER} ?({'|'.join(SIZE_UNITS)})$"
DURATION_PATTERN = rf"^{_NUMBER} ?({'|'.join(DURATION_UNITS)})$"

SIZE_FORM = 'a whole number of bytes, or text such as "64MiB", "1.5GiB" or "500kB"'
DURATION_FORM = 'a number of seconds, or text such as "500ms", "10s" or "2m"'

_size_text = re.compile(SIZE_PATTERN)
_duration_text = re.compile(DURATION_PATTERN)


def parse_size(text: str) -> int:
    """Return the bytes that `text` ("64MiB") names.

    Raises:
        ValueError: it has no known unit, or is not a whole number of bytes.
    """
    found = _size_text.fullmatch(text)
    if found is None:
        raise ValueError(f"not a size: {text[:40]!r}; it must be {SIZE_FORM}")
    unit = found[2]
    amount = Decimal(text[: -len(unit)].rstrip()) * SIZE_UNITS[unit]
    if amount != int(amount):
        raise ValueError(f"not a whole number of bytes: {text!r}")
    return int(amount)


def parse_duration(text: str) -> float:
    """Return the seconds that `text` ("500ms") names.

    Raises:
        ValueError: it has no known unit.
    """
    found = _duration_text.fullmatch(text)
    if found is None:
        raise ValueError(f"not a duration: {text[:40]!r}; it must be {DURATION_FORM}")
    unit = found[2]
    return float(Decimal(text[: -len(unit)].rstrip()) * DURATION_UNITS[unit])


def format_size(size: int) -> str:
    """Return `size` in bytes as the shortest exact text with a binary unit: 67108864 is "64MiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def format_duration(seconds: float) -> str:
    """Return `seconds` as text: 0.5 is "500ms", 90.0 is "90s", 7200.0 is "2h"."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.10g}ms"
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds / length:.10g}{unit}"
    return f"{seconds:.10g}s"


def _size(value: Any) -> Any:
    """Turn text and whole floats into bytes; leave the rest to the strict integer behind."""
    kind = type(value)
    if kind is int:
        return value
    if kind is str:
        try:
            return parse_size(value)
        except ValueError as error:
            raise PydanticCustomError(
                "size", "{reason}", {"reason": str(error), "allowed": SIZE_FORM}
            ) from None
    if kind is float and value.is_integer():
        return int(value)
    raise PydanticCustomError("size", "must be {allowed}", {"allowed": SIZE_FORM})


def _duration(value: Any) -> Any:
    """Turn text into seconds; leave the rest to the strict float behind."""
    kind = type(value)
    if kind is float:
        return value
    if kind is str:
        try:
            return parse_duration(value)
        except ValueError as error:
            context = {"reason": str(error), "allowed": DURATION_FORM}
            raise PydanticCustomError("duration", "{reason}", context) from None
    if kind is int:
        return float(value) if abs(value) <= SIZE_MAX else value
    raise PydanticCustomError("duration", "must be {allowed}", {"allowed": DURATION_FORM})


@dataclass(frozen=True)
class Edge:
    """Annotation: the number before it may also be given as text with a unit.

    The JSON schema of an input is the number with its bounds, or text of `pattern`; of an output, the number.
    """

    convert: Callable[[Any], Any]
    pattern: str
    examples: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        number = handler(source)
        text = core_schema.str_schema(
            pattern=self.pattern,
            metadata={"pydantic_js_updates": {"examples": list(self.examples)}},
        )
        return core_schema.no_info_before_validator_function(
            self.convert, number, json_schema_input_schema=core_schema.union_schema([number, text])
        )


AS_SIZE = Edge(_size, SIZE_PATTERN, ("64MiB", "1.5GiB", "500kB"))
AS_DURATION = Edge(_duration, DURATION_PATTERN, ("500ms", "10s", "2m"))

Size = Annotated[int, Strict(), Ge(0), Le(SIZE_MAX), AS_SIZE]
"""Bytes, a whole number from 0."""

Duration = Annotated[float, Strict(), Ge(0), Le(DURATION_MAX), AS_DURATION]
"""Seconds, from 0."""
