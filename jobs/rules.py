"""Rules: what refused a request, in a few words that do not depend on what the request held.

A violation names a place such as `steps[3].limits.memory` or `command.env["a b"]`; its rule is the same without
what the caller chose: `steps.limits.memory`, `command.env`.
"""

import re
from collections.abc import Iterator
from functools import cache

from pydantic import BaseModel

from jobs.budgets import Budgets
from jobs.spec import JobSpec
from policies.isolation import IsolationFloor
from policies.violation import model_in

BODY = "body"
"""The rule of what is wrong with the request as a whole."""
UNKNOWN = "unknown"
"""The rule of a field that there is not."""
BUDGET = "budgets."
"""Before the name of a budget that is used up."""

_INDEX = re.compile(r"\[[0-9]+\]")


def rule_of(field: str) -> str:
    """The rule that a violation of `field` broke: one of `rules()`."""
    if not field:
        return BODY
    words = _INDEX.sub("", field).partition("[")[0].split(".")  # after a quoted key all is the caller's
    known = rules()
    prefixes = (".".join(words[:end]) for end in range(len(words), 0, -1))
    return next((prefix for prefix in prefixes if prefix in known), UNKNOWN)


@cache
def rules() -> frozenset[str]:
    """Every rule there is."""
    budgets = (BUDGET + budget for budget in Budgets.model_fields)
    floor = (f"isolation.{field}" for field in IsolationFloor.model_fields)  # what no host of the pool gives
    return frozenset([BODY, UNKNOWN, *_fields(JobSpec, ""), *budgets, *floor])


def _fields(model: type[BaseModel], before: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield before + name
        inner = model_in(field.annotation)
        if inner is not None:
            yield from _fields(inner, f"{before}{name}.")
