"""The OpenAPI description is exact: every answer that it names is provoked, and is as it says."""

import importlib
import json
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import httpx
import jsonschema
import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

import api
from jobs import keys, tenants, webhooks
from jobs.job import Tenant
from jobs.keys import Scope
from jobs.outcome import ArtifactError, Output
from jobs.spec import JobSpec
from jobs.workers import Workers
from tests.dispatch import worker_status

JSON = {"Content-Type": "application/json"}
TRUE = {"command": ["true"]}
TEXT = {"text/csv": {"type": "string"}}
"""The schema of each media type that is text; others are bytes."""


@pytest.fixture
def description(stranger: httpx.Client) -> dict[str, Any]:
    """The description, as it is served."""
    found: dict[str, Any] = stranger.get("/openapi.json").json()
    return found


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every operation."""
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def validate(value: Any, schema: Any, description: dict[str, Any]) -> None:
    """Check a value against a schema of the description (JSON Schema 2020-12, as OpenAPI 3.1 has it)."""
    whole = {**schema, "components": description["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


class Witness:
    """Compares answers with the description, and remembers which of the described ones it has seen."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description
        self.seen: set[tuple[str, str, str, str]] = set()

    def see(self, answer: httpx.Response) -> None:
        """Check status, media type, body and header fields of an answer."""
        answer.read()
        method, path = answer.request.method, answer.request.url.raw_path.decode().partition("?")[0]
        template, operation = self._find(method, path)
        status = str(answer.status_code)
        assert status in operation["responses"], f"{method} {template} answers {status}, undescribed"
        described = operation["responses"][status]
        if "content" not in described:
            assert answer.content == b"" and "content-type" not in answer.headers
            self.seen.add((method, template, status, ""))
            return
        media_type = answer.headers["content-type"].partition(";")[0]
        assert media_type in described["content"], f"{method} {template} {status}"
        schema = described["content"][media_type]["schema"]
        if media_type.endswith("json"):
            validate(answer.json(), schema, self.description)
        elif media_type == "text/event-stream":
            assert schema == {"type": "string"}
            for name, data in re.findall(r"^event: (.*)\ndata: (.*)$", answer.text, re.MULTILINE):
                validate(
                    json.loads(data), described["content"][media_type]["x-events"][name], self.description
                )
        else:
            assert schema == TEXT.get(media_type, {"type": "string", "format": "binary"})
        self.seen.add((method, template, status, media_type))

    def _find(self, method: str, path: str) -> tuple[str, dict[str, Any]]:
        matches = []
        for candidate, template, operation in operations(self.description):
            pattern = re.sub(r"\\{path\\}", ".+", re.escape(template))
            pattern = re.sub(r"\\\{\w+\\\}", "[^/:]+", pattern)
            if candidate == method and re.fullmatch(pattern, path):
                matches.append((template, operation))
        assert len(matches) == 1, f"{method} {path} is described {len(matches)} times"
        return matches[0]


ADDRESSES = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("POST", "/v1/jobs:batch"),
    ("GET", "/v1/jobs/job_1"),
    ("DELETE", "/v1/jobs/job_1"),
    ("POST", "/v1/jobs/job_1:cancel"),
    ("POST", "/v1/jobs:explain"),
    ("GET", "/v1/jobs/job_1/events"),
    ("GET", "/v1/jobs/job_1/steps/0/stdout"),
    ("GET", "/v1/jobs/job_1/steps/0/stderr"),
    ("GET", "/v1/jobs/job_1/artifacts"),
    ("GET", "/v1/jobs/job_1/artifacts/a"),
    ("GET", "/v1/policies"),
    ("GET", "/v1/policies/nothing"),
    ("GET", "/v1/images"),
    ("GET", "/v1/quota"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/audit"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys"),
    ("GET", "/v1/keys/0000000000000000"),
    ("POST", "/v1/keys/0000000000000000:rotate"),
    ("DELETE", "/v1/keys/0000000000000000"),
    ("POST", "/v1/webhooks"),
    ("GET", "/v1/webhooks"),
    ("GET", "/v1/webhooks/wh_1"),
    ("PATCH", "/v1/webhooks/wh_1"),
    ("DELETE", "/v1/webhooks/wh_1"),
    ("POST", "/v1/webhooks/wh_1:rotate_secret"),
    ("POST", "/v1/webhooks/wh_1:test"),
    ("GET", "/v1/webhooks/wh_1/deliveries"),
    ("POST", "/v1/webhooks/wh_1/deliveries/msg_1:redeliver"),
]
BODIES: dict[str, Any] = {
    "/v1/jobs": {"command": []},
    "/v1/jobs:batch": {"jobs": []},
    "/v1/jobs:explain": {"command": []},
    "/v1/keys": {"name": ""},
    "/v1/webhooks": {"url": ""},
}
"""What is wrong in a body, for each address that takes one."""


def scoped(redis_client: redis.Redis, tenant: Tenant) -> list[dict[str, str]]:
    """The header of a key for each scope, good for nothing else."""
    made = [keys.create_key(redis_client, tenant, scopes=[scope]) for scope in Scope]
    return [{"Authorization": f"Bearer {key}"} for key in made]


def slowly() -> Iterator[bytes]:
    """A body that takes its time."""
    yield b" "
    time.sleep(0.5)
    yield b" "


def fail(error: Exception) -> Callable[..., NoReturn]:
    """A function that raises this."""

    def failing(*_: object, **__: object) -> NoReturn:
        raise error

    return failing


def provoke_successes(client: httpx.Client, worker: Any, store: Any) -> None:
    """Every success there is, with jobs in every state."""
    client.get("/healthz")
    client.get("/readyz")
    Workers(store.redis).heartbeat(worker_status("w"))
    client.get("/readyz")
    client.get("/v1/policies")
    client.get("/v1/policies/default")
    client.post("/v1/jobs:explain", json=TRUE)
    client.post("/v1/jobs:explain", json={"command": ["a"], "policy": "nothing"})
    client.get("/v1/images")
    client.get("/v1/quota")
    client.get("/v1/usage")
    client.get("/v1/usage?format=csv")
    client.get("/v1/audit")
    job_id = client.post("/v1/jobs", json=TRUE).json()["id"]
    client.get(f"/v1/jobs/{job_id}")
    client.get(f"/v1/jobs/{job_id}/artifacts")
    client.get(f"/v1/jobs/{job_id}/artifacts/a")
    client.get(f"/v1/jobs/{job_id}/steps/0/stdout")
    client.get(f"/v1/jobs/{job_id}/steps/0/stderr")
    error = ArtifactError(path="b", error="too_large", message="It is too large.")
    cut = Output.of(b"\xff", b"\xfe", total=100)
    worker.finish(job_id, stdout=cut, stderr=Output.of(b"text"), files={"a": b"1"}, errors=(error,))
    client.get(f"/v1/jobs/{job_id}?wait=1")
    client.get(f"/v1/jobs/{job_id}/artifacts")
    client.get(f"/v1/jobs/{job_id}/artifacts/a")
    client.get(f"/v1/jobs/{job_id}/steps/0/stdout")
    client.get(f"/v1/jobs/{job_id}/steps/0/stderr")
    provoke_keys(client)
    provoke_lists(client, store)
    events = client.get(f"/v1/jobs/{job_id}/events").text
    assert {"event: output", "event: gap", "event: finished"} <= set(events.splitlines())
    client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "1f-0-0-0"})
    waiting, running = (client.post("/v1/jobs", json=TRUE).json()["id"] for _ in range(2))
    client.post(f"/v1/jobs/{waiting}:cancel")
    worker.claim(running)
    client.post(f"/v1/jobs/{running}:cancel")


def provoke_lists(client: httpx.Client, store: Any) -> None:
    """Jobs in lists and in batches, again and over a budget; and the end of one."""
    key = {"Idempotency-Key": "a"}
    job_id = client.post("/v1/jobs", json=TRUE, headers=key).json()["id"]
    assert client.post("/v1/jobs", json=TRUE, headers=key).json()["id"] == job_id
    client.post("/v1/jobs", json={"command": ["false"]}, headers=key)
    client.delete(f"/v1/jobs/{job_id}")
    client.post(f"/v1/jobs/{job_id}:cancel")
    assert len(client.get("/v1/jobs?limit=2").json()["jobs"]) == 2
    client.get("/v1/jobs?cursor=nothing")
    client.delete(f"/v1/jobs/{job_id}")
    project = tenants.list_tenants(store.redis)[-1]
    tenants.set_tenant(store.redis, project, budgets={"submits_per_minute": 1})
    items = client.post("/v1/jobs:batch", json={"jobs": [TRUE, {}, TRUE]}, headers=key).json()["items"]
    assert [item["status"] for item in items] == [201, 422, 429]
    client.post("/v1/jobs", json=TRUE)
    tenants.set_tenant(store.redis, project, budgets={"submits_per_minute": None})


def provoke_keys(client: httpx.Client) -> None:
    """A key's life, and what stands against its rotation and the making of another."""
    key_id = client.post("/v1/keys", json={"name": "a", "scopes": ["admin"]}).json()["id"]
    client.get("/v1/keys")
    client.get(f"/v1/keys/{key_id}")
    client.post(f"/v1/keys/{key_id}:rotate?grace=60")
    client.post(f"/v1/keys/{key_id}:rotate?grace=-1")
    client.delete(f"/v1/keys/{key_id}")
    short = client.post("/v1/keys", json={"name": "a", "expires_in": "1ms"}).json()["id"]
    time.sleep(0.002)
    client.post(f"/v1/keys/{short}:rotate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "KEYS_MAX", 1)
        client.post("/v1/keys", json={"name": "a"})


def provoke_webhooks(client: httpx.Client, served: Any) -> None:
    """A webhook's life, and what stands against its change, its tests and the making of another."""
    hook = client.post("/v1/webhooks", json={"url": "https://hooks.example.com"}).json()["webhook"]["id"]
    own = f"/v1/webhooks/{hook}"
    client.get("/v1/webhooks")
    client.get(own)
    client.patch(own, json={"description": "mine"})
    client.post(f"{own}:rotate_secret")
    sent = client.post(f"{own}:test").json()["id"]
    client.get(f"{own}/deliveries")
    client.get(f"{own}/deliveries?limit=0")
    client.post(f"{own}/deliveries/{sent}:redeliver")
    client.patch(own, json={"state": "disabled"})
    client.post(f"{own}:test")
    client.post(f"{own}/deliveries/{sent}:redeliver")
    client.patch("/v1/webhooks/wh_1", json={"state": "disabled"})
    client.patch(own, json={})
    client.patch(own, content="{}", headers={"Content-Type": "text/plain"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhooks, "WEBHOOKS_MAX", 1)
        client.post("/v1/webhooks", json={"url": "https://hooks.example.com"})
        patch.setattr(served.services.bodies, "_max_body", 10)
        client.patch(own, content=" " * 11, headers=JSON)
        patch.setattr(served.services.bodies, "_body_time", 0.05)
        client.patch(own, content=slowly(), headers=JSON)
    client.delete(own)


def provoke_refusals(
    client: httpx.Client, served: Any, others: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with the request itself."""
    for method, address in ADDRESSES:
        client.request(method, address, headers={"Authorization": "Bearer nothing"})
        client.request(method, address, json=BODIES.get(address) if method == "POST" else None)
        client.request(method, f"{address}?nonsense=1")
        for scope in others:
            client.request(method, address, headers=scope)
    client.get("/v1/jobs/job_1?wait=-1")
    client.get("/v1/usage?from=yesterday")
    client.get("/v1/audit?cursor=nothing")
    client.get("/v1/jobs/job_1/events", headers={"Last-Event-ID": "7"})
    waiting = client.post("/v1/jobs", json=TRUE).json()["id"]
    monkeypatch.setattr(served.services.live, "most_each", 0)
    client.get(f"/v1/jobs/{waiting}/events")
    client.post("/v1/jobs", json={"command": ["a"], "policy": "nothing"})
    for address in BODIES:
        client.post(address, content="{}", headers={"Content-Type": "text/plain"})
    monkeypatch.setattr(served.services.bodies, "_max_body", 10)
    for address in BODIES:
        client.post(address, content=" " * 11, headers=JSON)
    monkeypatch.setattr(served.services.bodies, "_body_time", 0.05)
    for address in BODIES:
        client.post(address, content=slowly(), headers=JSON)


def provoke_failures(client: httpx.Client, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the service."""
    services = served.services
    for error in (RuntimeError("a bug"), RedisConnectionError("gone")):
        monkeypatch.setattr(services.authenticator, "identity", fail(error))
        for method, address in ADDRESSES:
            client.request(method, address)
    monkeypatch.setattr(services.workers, "live", fail(RuntimeError("a bug")))
    client.get("/readyz")


def test_every_described_answer_is_given_and_every_given_one_described(
    description: dict[str, Any],
    client: httpx.Client,
    served: Any,
    worker: Any,
    store: Any,
    redis_client: redis.Redis,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each status of each operation is provoked; media type and body match the schema; none is left over."""
    witness = Witness(description)
    client.event_hooks["response"].append(witness.see)
    provoke_successes(client, worker, store)
    provoke_webhooks(client, served)
    provoke_refusals(client, served, scoped(redis_client, tenant), monkeypatch)
    provoke_failures(client, served, monkeypatch)
    described = {
        (method, path, status, media_type)
        for method, path, operation in operations(description)
        for status, answer in operation["responses"].items()
        for media_type in answer.get("content", [""])
    }
    assert witness.seen == described


def test_every_route_is_described(description: dict[str, Any]) -> None:
    """Each route of each module of the API is in the description, and nothing else is."""
    modules = [importlib.import_module(f"api.{each.name}") for each in pkgutil.iter_modules(api.__path__)]
    routers = [module.router for module in modules if hasattr(module, "router")]
    routes = {
        (method, route.path_format)
        for router in routers
        for route in router.routes
        for method in route.methods
    }
    assert routes == {(method, path) for method, path, _ in operations(description)}


def test_what_needs_a_key_says_so(description: dict[str, Any]) -> None:
    """Every operation under /v1 names the one security scheme, a bearer token; the others need none."""
    assert description["components"]["securitySchemes"]["API key"]["scheme"] == "bearer"
    for _, path, operation in operations(description):
        expected = [{"API key": []}] if path.startswith("/v1/") else None
        assert operation.get("security") == expected, path


def test_every_reference_leads_somewhere(description: dict[str, Any]) -> None:
    """Each $ref names a schema that is there, and no schema is there for nothing."""
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(description)))
    assert names == set(description["components"]["schemas"])


def test_a_batch_has_jobs_as_one_alone_has(client: httpx.Client, description: dict[str, Any]) -> None:
    """The jobs of a batch have the schema of a job; its example is valid and accepted."""
    content = description["paths"]["/v1/jobs:batch"]["post"]["requestBody"]["content"]["application/json"]
    schema = description["components"]["schemas"]["Batch"]
    assert schema["properties"]["jobs"]["items"] == {"$ref": f"#/components/schemas/{JobSpec.__name__}"}
    for example in content["examples"].values():
        validate(example["value"], content["schema"], description)
        answer = client.post("/v1/jobs:batch", json=example["value"])
        assert {item["status"] for item in answer.json()["items"]} == {201}


def test_the_examples_are_accepted(client: httpx.Client, description: dict[str, Any]) -> None:
    """Each example of a request is valid by its schema and gets 201 as it stands."""
    content = description["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) >= 2
    for example in content["examples"].values():
        validate(example["value"], content["schema"], description)
        assert client.post("/v1/jobs", json=example["value"]).status_code == 201


def test_the_examples_of_schemas_match_them(description: dict[str, Any]) -> None:
    """Each example beside a schema or a property is valid by it."""

    def walk(schema: Any) -> Iterator[Any]:
        if isinstance(schema, dict):
            if isinstance(schema.get("examples"), list):
                yield schema
            for member in schema.values():
                yield from walk(member)
        elif isinstance(schema, list):
            for member in schema:
                yield from walk(member)

    found = list(walk(description["components"]["schemas"]))
    assert len(found) > 5
    for schema in found:
        for example in schema["examples"]:
            validate(example, schema, description)


@pytest.mark.parametrize(
    "body",
    [
        TRUE,
        {"command": {"argv": ["true"], "stdin": "x"}},
        {"command": {"argv": ["true"], "stdin": {"base64": "eA=="}}},
        {"steps": [{"argv": ["a"], "limits": {"memory": "1.5GiB", "cpu_time": 0.5, "wall_time": "2m"}}]},
        {
            "command": ["a"],
            "files": [{"path": "a/b", "text": ""}, {"path": "c", "base64": "", "mode": "0755"}],
        },
        {"command": ["a"], "outputs": ["**/*.txt"], "image": "host", "policy": "judge"},
    ],
)
def test_what_is_accepted_is_valid_by_the_schema(
    client: httpx.Client, description: dict[str, Any], body: dict[str, Any]
) -> None:
    """A client that checks its requests against the schema may send all that the service takes."""
    assert client.post("/v1/jobs", json=body).status_code == 201
    validate(body, description["components"]["schemas"][JobSpec.__name__], description)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"command": ["a"], "steps": [{"argv": ["a"]}]},
        {"command": []},
        {"command": ["a"], "privileged": True},
        {"steps": [{"argv": ["a"], "limits": {"memory": True}}]},
        {"steps": [{"argv": ["a"], "limits": {"memory": "much"}}]},
        {"steps": [{"argv": ["a"], "limits": {"pids": 0}}]},
        {"command": {"argv": ["a"], "stdin": {"text": "a", "base64": "eA=="}}},
        {"command": ["a"], "files": [{"path": "a"}]},
        {"command": ["a\0"]},
    ],
)
def test_what_the_schema_refuses_is_refused(
    client: httpx.Client, description: dict[str, Any], body: dict[str, Any]
) -> None:
    """The schema is no looser than the service where JSON Schema can say it: both refuse these."""
    assert client.post("/v1/jobs", json=body).status_code == 422
    with pytest.raises(jsonschema.ValidationError):
        validate(body, description["components"]["schemas"][JobSpec.__name__], description)
