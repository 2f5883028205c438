"""JSON Schema: the published files are the models', and take what the loader takes."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from policies.loader import BUILTIN
from policies.schema import MODELS, schema, text

ROOT = Path(__file__).parents[2]
POLICIES = [*BUILTIN.glob("*.yaml"), *(ROOT / "examples" / "policies").rglob("*.yaml")]


@pytest.mark.parametrize("kind", MODELS)
def test_the_file_is_what_the_models_say(kind: str) -> None:
    """docs/KIND.schema.json is fresh: make it again by `python -m policies.schema KIND`."""
    assert (ROOT / "docs" / f"{kind}.schema.json").read_text() == text(kind)


@pytest.mark.parametrize(
    "path", [path for path in POLICIES if path.parent.name != "tests"], ids=lambda path: path.stem
)
def test_shipped_documents_are_valid_and_name_their_schema(path: Path) -> None:
    """An editor that knows the schema finds nothing wrong with what we ship, and finds the schema."""
    kind = "bounds" if path.parent.name == "tenants" or path.stem == "platform" else "policy"
    head, _, named = path.read_text().partition("\n")[0].partition("$schema=")
    assert head == "# yaml-language-server: "
    assert (path.parent / named).resolve() == ROOT / "docs" / f"{kind}.schema.json"
    jsonschema.Draft202012Validator(schema(kind)).validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("text", ["name: a\nuser: x", "name: A", "name: a\nlimits: {}", "name: a\npools: []"])
def test_what_is_wrong_is_wrong_for_editors_too(text: str) -> None:
    """Unknown fields, wrong types and names are underlined as one writes."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema("policy")).validate(yaml.safe_load(text))
