"""The JSON Schemas of policy documents and of bounds, for editors.

`python -m policies.schema KIND > docs/KIND.schema.json`, where KIND is `policy` or `bounds`.
"""

import json
import sys
from typing import Any

from pydantic import BaseModel

from policies.bounds import Bounds
from policies.document import PolicyDocument

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MODELS: dict[str, type[BaseModel]] = {"policy": PolicyDocument, "bounds": Bounds}


def schema(of: str) -> dict[str, Any]:
    """Return the schema of one kind of document: "policy" or "bounds"."""
    return {"$schema": DIALECT, **MODELS[of].model_json_schema()}


def text(of: str) -> str:
    """Return the same as it stands in its file."""
    return json.dumps(schema(of), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text(sys.argv[1]))
