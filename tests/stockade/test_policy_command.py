"""`stockade policy`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from jobs import shadow
from jobs.spec import JobSpec
from jobs.tenants import create_tenant
from policies.loader import BUILTIN, load, load_policies
from policies.violation import Violation
from stockade.cli import main
from stockade.policy_cases import run_all

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "policies"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: default\nceilings: {memory: 1GiB}\n")
    return tmp_path


def stockade(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["policy", *map(str, arguments)], env={"STOCKADE_POLICIES": None})


@pytest.mark.parametrize("where", [BUILTIN, EXAMPLES / "grader", EXAMPLES / "batch"], ids=lambda at: at.name)
def test_the_cases_that_we_ship_are_as_expected(where: Path) -> None:
    """The built-in policies and the worked examples do what their cases say; they have nothing odd."""
    found = load(None if where == BUILTIN else where)
    ran = run_all(where, found)
    assert len(ran) >= 7
    assert [finding for each in ran for finding in each.found] == []
    assert stockade("test", where).exit_code == 0
    if where != BUILTIN:
        checked = stockade("check", where)
        assert (checked.exit_code, "0 warnings" in checked.output) == (0, True)


def test_every_builtin_policy_has_cases() -> None:
    """None of them is without."""
    names = {path.stem for path in (BUILTIN / "tests").glob("*.yaml")}
    assert names == set(load_policies())


def test_a_case_that_comes_out_otherwise_is_told_with_its_line(directory: Path) -> None:
    """Which expectation was not met, and what was found instead."""
    (directory / "tests").mkdir()
    (directory / "tests" / "a.yaml").write_text(
        "policy: mine\ncases:\n"
        "  - name: one\n    request: {command: [a]}\n    expect:\n      admitted: true\n"
        "      limits: {pids: 3}\n      pool: big\n"
        "  - name: two\n    request: {command: [a], image: py}\n    expect: {admitted: true}\n"
        "  - name: three\n    request: {command: [a]}\n    expect: {violations: [image]}\n"
        "  - name: four\n    request: {command: [a], image: py}\n    expect: {violations: [image]}\n"
    )
    result = stockade("test", directory)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert "a.yaml:8: cases[0].expect.pool: it is default" in lines[0]
    assert "a.yaml:7: cases[0].expect.limits.pids: it is 64 in the step step-1" in lines[1]
    assert "failed: two:" in lines[2]
    assert "failed: three:" in lines[3]
    assert lines[-1] == "1 passed, 3 failed"


@pytest.mark.parametrize(
    "case",
    [
        "{name: a, request: {command: []}, expect: {admitted: true}}",
        "{name: a, request: {command: [a]}, expect: {}}",
        "{name: a, request: {command: [a]}, expect: {admitted: false}}",
        "{name: a, request: {command: [a]}, expect: {admitted: true, violations: [image]}}",
        "{name: a, request: {command: [a]}, expect: {admitted: true, pols: a}}",
    ],
)
def test_a_case_that_says_nothing_is_an_error(directory: Path, case: str) -> None:
    """A case with a typing error never passes."""
    (directory / "tests").mkdir()
    (directory / "tests" / "a.yaml").write_text(f"cases:\n  - {case}\n")
    result = stockade("test", directory)
    assert result.exit_code == 1
    assert "a.yaml:2: cases[0]" in result.stderr


def test_check_tells_errors_with_their_lines(directory: Path) -> None:
    """Errors exit with 1 and stand on standard error; warnings do neither."""
    (directory / "other.yaml").write_text("name: other\nextends: default\nimages: ['*']\n")
    result = stockade("check", directory)
    assert result.exit_code == 0
    assert "other.yaml:3: images" in result.stdout
    (directory / "other.yaml").write_text("name: other\nextends: default\nusr: 1\n")
    result = stockade("check", directory)
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert "other.yaml:3: usr: is not a field that is known here; did you mean user?" in result.stderr
    assert stockade("check", directory / "mine.yaml").exit_code == 0
    (directory / "other.yaml").unlink()
    (directory / "drafts").mkdir()
    (directory / "drafts" / "d.yaml").write_text("name: d\n")
    assert stockade("check", directory).exit_code == 1


def test_list_and_show_tell_the_effective_policy(directory: Path) -> None:
    """With digests as jobs name them, and where each value comes from."""
    (directory / "platform.yaml").write_text("ceilings: {pids: 100}\n")
    listed = stockade("list", "--policies", directory).output
    shown = stockade("show", "mine", "--policies", directory, "--json").output
    assert json.loads(shown)["ceilings"]["pids"] == 100
    table = stockade("show", "mine", "--policies", directory).output
    rows = {line.split()[0]: line for line in table.splitlines() if line}
    assert rows["ceilings.pids"].endswith("platform (clamped)")
    assert rows["ceilings.memory"].split()[1:] == ["1GiB", "policy", "mine"]
    assert rows["user"].endswith("policy default (inherited)")
    assert table.split("digest ")[1].split()[0] in listed
    assert stockade("show", "nothing").exit_code == 1


def test_explain_prints_what_the_api_answers(directory: Path, tmp_path: Path) -> None:
    """Exit status, table and JSON; under the bounds of a tenant when they are given."""
    job, tenant = tmp_path / "job.json", tmp_path / "acme.yml"
    job.write_text('{"command": {"argv": ["a"], "limits": {"memory": "1GiB"}}, "policy": "mine"}')
    tenant.write_text("ceilings: {memory: 512MiB}\n")
    result = stockade("explain", job, "--policies", directory)
    assert (result.exit_code, "admitted" in result.output) == (0, True)
    result = stockade("explain", job, "--policies", directory, "--tenant", tenant)
    assert result.exit_code == 1
    assert "REFUSED" in result.output
    assert "organisation acme (clamped)" in result.output
    found = json.loads(stockade("explain", job, "--policies", directory, "--tenant", tenant, "--json").output)
    assert [each["field"] for each in found["violations"]] == ["command.limits.memory"]
    job.write_text('{"command": []}')
    assert "the request is not valid" in stockade("explain", job).output


def test_diff_tells_values_and_what_would_become_of_jobs(
    directory: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that would be refused, or get other limits, are listed; jobs under another policy do not count."""
    assert "exactly the same" in stockade("diff", "default", "default").output
    (directory / "narrow.yaml").write_text(
        "name: narrow\nextends: default\nceilings: {memory: 300MiB}\ndefaults: {pids: 3}\n"
    )
    table = stockade("diff", "default", "narrow", "--policies", directory).output
    assert "ceilings.memory  2GiB  300MiB" in table
    redis = Redis.from_url(redis_url)
    project = create_tenant(redis, "acme")
    bodies = [
        {"command": {"argv": ["a"], "limits": {"memory": "1GiB"}}},
        {"command": ["a"]},
        {"command": {"argv": ["a"], "limits": {"pids": 3}}},
        {"command": ["a"], "policy": "strict"},
        {"command": ["a"], "image": "py"},
    ]
    for number, body in enumerate(bodies):
        spec = JobSpec.model_validate(body).model_dump_json(exclude_unset=True)
        redis.hset(f"stockade:job:job_{number}", "spec", spec)
        redis.zadd(f"stockade:jobs:{project.id}", {f"job_{number}": number})
    redis.zadd(f"stockade:jobs:{project.id}", {"job_deleted": 9})
    asked = ("diff", "default", directory / "narrow.yaml", "--policies", directory, "--tenant", "acme")
    text = stockade(*asked, "--redis", redis_url).output
    assert "of the last 4 jobs under A, under B: 1 refused, 1 with other values, 2 the same" in text
    assert "job_0 refused: command.limits.memory" in text
    assert "job_1 changed: steps.0.pids 64 → 3" in text
    found = json.loads(stockade(*asked, "--redis", redis_url, "--json", "--last", "3").output)
    assert (found["jobs"], found["jobs_changed"]) == (1, [])
    assert stockade(*asked[:-1], "nobody", "--redis", redis_url).exit_code == 1


def test_a_draft_can_be_compared_by_its_name(directory: Path) -> None:
    """drafts/NAME is what the service evaluates beside NAME."""
    (directory / "drafts").mkdir()
    (directory / "drafts" / "mine.yaml").write_text("name: mine\nextends: mine\nuser: 7\n")
    result = stockade("diff", "mine", "drafts/mine", "--policies", directory)
    assert [line.split() for line in result.output.splitlines()[1:]] == [["user", "0", "7"]]


def test_shadow_shows_what_was_counted(redis_url: str) -> None:
    """Counts, rules and the newest refusals; a message when nothing came."""
    assert stockade("shadow", "mine", "--redis", redis_url).exit_code == 1
    redis = Redis.from_url(redis_url)
    wrong = Violation(field="command.limits.memory", got=2, allowed=1, message="too much")
    shadow.record(redis, "mine", "sha256:aa", "tenant_1", "job_1", [wrong])
    shown = stockade("shadow", "mine", "--redis", redis_url).output
    assert "1 submissions, 1 would be refused, 1 of them admitted now" in shown
    assert "command.limits.memory  1" in shown
    assert "job_1" in shown
    assert json.loads(stockade("shadow", "mine", "--redis", redis_url, "--json").output)["refused"] == 1


def test_schema_prints_the_published_ones() -> None:
    """The same as in docs."""
    assert stockade("schema").output == (ROOT / "docs" / "policy.schema.json").read_text()
    assert stockade("schema", "--bounds").output == (ROOT / "docs" / "bounds.schema.json").read_text()
