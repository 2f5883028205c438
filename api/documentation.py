"""The OpenAPI description, exact, and `/docs`, which reads it without help from the internet.

Routes render their answers themselves, so they name the models of bodies and answers here by
`json_body`; the schemas come from the same models that do the rendering.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

REF = "#/components/schemas/{model}"
ASSETS = "/docs/assets"

_SCRIPT = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});'
)
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Stockade API</title>
<link rel="icon" href="{ASSETS}/favicon.png">
<link rel="stylesheet" href="{ASSETS}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{ASSETS}/swagger-ui-bundle.js"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""
_PAGE_POLICY = (
    f"default-src 'none'; connect-src 'self'; script-src 'self' 'sha256-{_SCRIPT_HASH}';"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'"
)


def json_body(model: type[BaseModel], examples: dict[str, Any] | None = None) -> dict[str, Any]:
    """The OpenAPI `content` of a JSON body of this model."""
    media: dict[str, Any] = {"schema": {"$ref": REF.format(model=model.__name__)}}
    if examples:
        media["examples"] = examples
    return {"application/json": media}


def event_body(events: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The OpenAPI `content` of server-sent events, by name; `x-events` has the schemas of their data.

    OpenAPI says of a stream no more than that it is text, before its version 3.2.
    """
    data = {name: {"$ref": REF.format(model=model.__name__)} for name, model in events.items()}
    return {"text/event-stream": {"schema": {"type": "string"}, "x-events": data}}


def raw_body() -> dict[str, Any]:
    """The OpenAPI `content` of a body that is bytes as they are."""
    return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def describe(app: FastAPI, models: Sequence[tuple[type[BaseModel], JsonSchemaMode]]) -> dict[str, Any]:
    """The OpenAPI description of the application, in which `models` are the schemas."""
    description = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    _, schemas = models_json_schema(models, ref_template=REF)
    description.setdefault("components", {})["schemas"] = dict(sorted(schemas["$defs"].items()))
    for operations in description["paths"].values():
        for operation in operations.values():
            # FastAPI writes a 422 of its own form wherever a route has a parameter, be it any text.
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                del operation["responses"]["422"]
    return description


def install(app: FastAPI, models: Sequence[tuple[type[BaseModel], JsonSchemaMode]]) -> None:
    """Serve `/openapi.json`, and `/docs` with the copy of Swagger UI that fastapi-offline carries."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app, models)
        return app.openapi_schema

    async def docs() -> HTMLResponse:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _PAGE_POLICY})

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_api_route("/docs", docs, include_in_schema=False)
    app.mount(ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")), name="docs-assets")
