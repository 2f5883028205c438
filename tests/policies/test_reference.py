"""The policy reference is the models', to the letter."""

from pathlib import Path

from policies.limits import Limits
from policies.policy import Policy
from policies.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "policy-reference.md"


def test_the_page_is_what_the_models_say() -> None:
    """docs/policy-reference.md is fresh: make it again by `python -m policies.reference`."""
    assert PAGE.read_text() == reference()


def test_every_field_is_on_the_page() -> None:
    """No field of a policy and no limit is left out."""
    text = reference()
    assert all(f"| `{name}` |" in text for model in (Policy, Limits) for name in model.model_fields)
