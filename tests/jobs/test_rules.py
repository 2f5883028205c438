"""Rules name what refused a request without a word of the caller's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.budgets import Budgets
from jobs.rules import BUDGET, rule_of, rules
from jobs.spec import JobSpec


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("", "body"),
        ("image", "image"),
        ("steps[3].limits.memory", "steps.limits.memory"),
        ("steps[3].limits.teapots", "steps.limits"),
        ("command.limits.pids", "command.limits.pids"),
        ("command.env.SECRET_NAME", "command.env"),
        ('command.env["a.b]c"]', "command.env"),
        ("files[17].path", "files.path"),
        ("labels.course", "labels"),
        ("sudo", "unknown"),
        ("budgets.concurrent_jobs", "budgets.concurrent_jobs"),
        ("budgets.teapots", "unknown"),
    ],
)
def test_a_rule_is_the_field_without_what_the_caller_chose(field: str, rule: str) -> None:
    """Indices, keys and unknown names are gone; the place in the request is left."""
    assert rule_of(field) == rule


@given(st.text())
def test_there_are_only_so_many_rules(field: str) -> None:
    """Whatever the field, its rule is one of a fixed list."""
    assert rule_of(field) in rules()


def test_every_field_and_budget_has_its_rule() -> None:
    """No field of a request and no budget is counted under another's name."""
    assert all(rule_of(name) == name for name in JobSpec.model_fields)
    assert all(rule_of(BUDGET + budget) == BUDGET + budget for budget in Budgets.model_fields)
    assert len(rules()) < 200
