"""Who may do what, and what never gets out: tenants, keys, refusals, logs."""

import secrets
import subprocess
from typing import Any

import httpx
import pytest

from tests.e2e.service import Service, environment_of, shell
from tests.stack import PATIENCE, STOCKADE, Up, until

pytestmark = [pytest.mark.kernel, pytest.mark.e2e]

STEP = {"argv": ["true"]}


def stockade(up: Up, *arguments: str) -> str:
    """Run a command beside the running service, on its state; what it prints."""
    command = [STOCKADE, *arguments, "--state", up.state]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout.strip()


def test_tenants_see_nothing_of_each_other(service: Service) -> None:
    """A key made on the command line works at once, for its own jobs alone, and no longer once it is revoked."""
    job = service.run({"command": shell("echo secret | tee file"), "outputs": ["file"]})
    stockade(service.up, "tenant", "create", "stranger")
    key = stockade(service.up, "key", "create", "stranger")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=service.client.base_url, headers=headers, trust_env=False) as stranger:
        mine = stranger.post("/v1/jobs?wait=30", json={"command": ["echo", "mine"]}).json()
        assert mine["steps"][0]["stdout"]["text"] == "mine\n"
        for path in ("", "/steps/0/stdout", "/artifacts", "/artifacts/file"):
            assert stranger.get(f"/v1/jobs/{job['id']}{path}").status_code == 404
        assert stranger.post(f"/v1/jobs/{job['id']}:cancel").status_code == 404
        assert service.client.get(f"/v1/jobs/{mine['id']}").status_code == 404
        stockade(service.up, "key", "revoke", key.split("_")[1])
        until(lambda: stranger.get("/v1/policies").status_code == 401, "revoked")


def test_no_secret_is_in_a_log_or_a_command_line(service: Service) -> None:
    """Neither keys, right or wrong, nor what a job is given and prints: not in the logs, not in any process."""
    word = f"sentinel{secrets.token_hex(8)}"
    body = {
        "command": {"argv": ["sh", "./show", word], "env": {"TOKEN": word}, "stdin": word},
        "files": [{"path": "show", "text": f"cat; echo $TOKEN {word} >&2; echo {word} >{word}; kill -9 $$"}],
        "outputs": ["*"],
    }
    job = service.run(body)
    assert job["outcome"]["kind"] == "signaled"
    assert {each["path"] for each in job["artifacts"]} == {word, "show"}
    service.client.post("/v1/jobs", json={"command": {"argv": [word, 1], "env": {word: 1}}})
    service.client.get(f"/v1/jobs?token={word}", headers={"Authorization": f"Bearer sk_0011_{word}"})
    key = (service.up.state / "dev-key").read_text().strip()
    for secret in (key, key.split("_", 2)[2], word):
        for name, text in service.logs().items():
            assert secret not in text, name
        for name, pid in service.up.pids().items():
            assert secret not in environment_of(pid), name


def with_step(**values: Any) -> dict[str, Any]:
    return {"steps": [STEP | values]}


def with_files(*files: dict[str, Any]) -> dict[str, Any]:
    return {"command": ["true"], "files": list(files)}


BAD_INPUT: list[tuple[str, dict[str, Any], str]] = [
    ("unknown field of a file", with_files({"path": "a", "text": "", "owner": "root"}), "files[0].owner"),
    ("unknown field at the top", {"command": ["true"], "user": 0}, "user"),
    ("mount", with_step(mounts=["/"]), "steps[0].mounts"),
    ("negative time as text", with_step(limits={"cpu_time": "-1s"}), "steps[0].limits.cpu_time"),
    ("NaN as text", with_step(limits={"cpus": "NaN"}), "steps[0].limits.cpus"),
    ("infinite size as text", with_step(limits={"memory": "inf"}), "steps[0].limits.memory"),
    ("half a process", with_step(limits={"pids": 1.5}), "steps[0].limits.pids"),
    ("no processes", with_step(limits={"pids": 0}), "steps[0].limits.pids"),
    ("null as limit", with_step(limits={"disk": []}), "steps[0].limits.disk"),
    ("over every ceiling", with_step(limits={"stack": "2TiB"}), "steps[0].limits.stack"),
    ("over its policy", {"policy": "strict"} | with_step(limits={"memory": "2GiB"}), "steps[0].limits.memory"),
    ("policy of another place", {"policy": "../default", "command": ["true"]}, "policy"),
    ("image by address", {"image": "docker.io/library/alpine", "command": ["true"]}, "image"),
    ("empty program", with_step(argv=[""]), "steps[0].argv[0]"),
    ("too many arguments", with_step(argv=["true"] * 257), "steps[0].argv"),
    ("too long arguments", with_step(argv=["true", "x" * 65536]), "steps[0].argv"),
    ("variable with =", with_step(env={"A=B": "c"}), "steps[0].env"),
    ("cwd outside", with_step(cwd="/proc/self/fd/3"), "steps[0].cwd"),
    ("cwd above", with_step(cwd="../.."), "steps[0].cwd"),
    ("file in an empty directory name", with_files({"path": "a//b", "text": ""}), "files[0].path"),
    ("file with a set-uid mode", with_files({"path": "a", "text": "", "mode": "4755"}), "files[0].mode"),
    ("file without content", with_files({"path": "a"}), "files[0]"),
    ("file with two contents", with_files({"path": "a", "text": "", "base64": ""}), "files[0]"),
    ("file in a file", with_files({"path": "a", "text": ""}, {"path": "a/b", "text": ""}), "files[1].path"),
    ("file twice", with_files({"path": "a", "text": ""}, {"path": "a", "text": ""}), "files[1].path"),
    ("too many files", with_files(*({"path": str(n), "text": ""} for n in range(1001))), "files"),
    ("too large files", with_files({"path": "a", "text": "x" * (16 * 2**20 + 1)}), "files"),
    ("too many steps", {"steps": [STEP] * 17}, "steps"),
    ("too many outputs", {"command": ["true"], "outputs": ["a"] * 101}, "outputs"),
    ("two steps of one name", {"steps": [STEP | {"name": "a"}] * 2}, "steps[1].name"),
    ("unknown reaction", with_step(on_output_limit="ignore"), "steps[0].on_output_limit"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field"), [each[1:] for each in BAD_INPUT], ids=[e[0] for e in BAD_INPUT])
def test_bad_input_is_refused_with_its_place(service: Service, body: dict[str, Any], field: str) -> None:
    """422 as problem details that name the field, what it got, and what is allowed; no job is made."""
    answer = service.client.post("/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "location" not in answer.headers
    named = {error["field"]: error for error in answer.json()["errors"]}
    (found,) = (name for name in named if name.startswith(field))
    assert named[found]["message"]
    assert named[found]["allowed"] or "not a field that is known" in named[found]["message"]


def test_what_the_service_says_it_allows_is_true(service: Service) -> None:
    """A request at each ceiling of the policy is taken and runs; one over any of them is not."""
    ceilings = service.client.get("/v1/policies/default").json()["policy"]["ceilings"]
    assert service.step(["true"], limits=ceilings)["outcome"]["exit_code"] == 0
    for name, value in ceilings.items():
        answer = service.client.post("/v1/jobs", json=with_step(limits={name: value * 2}))
        assert answer.status_code == 422, name
