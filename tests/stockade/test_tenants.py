"""`stockade tenant`."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from jobs.budgets import Budgets
from jobs.tenants import find_tenant
from stockade.cli import main


@pytest.fixture
def redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Redis:
    monkeypatch.setenv("STOCKADE_REDIS", redis_url)
    return Redis.from_url(redis_url)


def stockade(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_the_tree_is_listed(redis: Redis) -> None:
    """Each organisation with its projects below it: weight, what runs and waits, and the budgets that are set."""
    assert stockade("tenant", "create", "acme").output == "made the project acme/default\n"
    assert stockade("tenant", "create", "acme/grader").output == "made the project acme/grader\n"
    stockade("tenant", "set", "acme", "--weight", "2", "--concurrent-jobs", "4", "--artifact-bytes", "1KiB")
    grader = find_tenant(redis, "acme/grader")
    assert grader is not None
    redis.hset(f"stockade:load:{grader.id}", mapping={"queued": 7, "running": 3})
    assert [line.split() for line in stockade("tenant", "list").output.splitlines()] == [
        ["TENANT", "WEIGHT", "RUNNING", "QUEUED", "BUDGETS"],
        ["acme", "2", "0", "0", "concurrent_jobs=4", "artifact_bytes=1024"],
        ["acme/default", "1", "0", "0", "-"],
        ["acme/grader", "1", "3", "7", "-"],
    ]


def test_every_budget_can_be_set_and_taken_away(redis: Redis) -> None:
    """Each budget has an option of its name; `none` unsets it; show tells what is in force."""
    stockade("tenant", "create", "acme")
    options = {name: f"--{name.replace('_', '-')}" for name in Budgets.model_fields}
    for number, option in enumerate(options.values(), 1):
        assert stockade("tenant", "set", "acme/default", option, str(number)).exit_code == 0
    shown = dict(
        line.split(maxsplit=1) for line in stockade("tenant", "show", "acme/default").output.splitlines()
    )
    assert {name: shown[name] for name in options} == {
        name: str(number) for number, name in enumerate(options, 1)
    }
    unset = [word for option in options.values() for word in (option, "none")]
    assert stockade("tenant", "set", "acme/default", *unset).exit_code == 0
    found = find_tenant(redis, "acme/default")
    assert found is not None
    assert found.budgets == Budgets()


def test_bounds_come_from_a_file(redis: Redis, tmp_path: Path) -> None:
    """Bounds as YAML or JSON are kept, anything else is refused with lines, and --no-bounds takes them away."""
    stockade("tenant", "create", "acme")
    file = tmp_path / "bounds.json"
    for text, kept in (("{}", "{}"), ('{"pools":\n ["default"]}', '{"pools":["default"]}')):
        file.write_text(text)
        assert stockade("tenant", "set", "acme", "--bounds", str(file)).exit_code == 0
        assert f"bounds                      {kept}\n" in stockade("tenant", "show", "acme").output
    file.write_text("# YAML too\nceilings:\n  memory: 1MiB\n  memmory: 1\n")
    result = stockade("tenant", "set", "acme", "--bounds", str(file))
    assert result.exit_code == 1
    assert "bounds.json:3: ceilings.memory: must be at least" in result.output
    assert "bounds.json:4: ceilings.memmory: is not a field" in result.output
    file.write_text("# YAML too\nceilings:\n  memory: 64MiB\n")
    assert stockade("tenant", "set", "acme", "--bounds", str(file)).exit_code == 0
    assert '{"ceilings":{"memory":67108864}}' in stockade("tenant", "show", "acme").output
    file.write_text("[1]")
    assert stockade("tenant", "set", "acme", "--bounds", str(file)).exit_code == 1
    assert stockade("tenant", "set", "acme", "--no-bounds").exit_code == 0
    found = find_tenant(redis, "acme")
    assert found is not None
    assert found.bounds == "{}"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--concurrent-jobs", "-1"),
        ("--queued-jobs", "many"),
        ("--cpu-seconds-per-hour", "NaN"),
        ("--artifact-bytes", "10 parsecs"),
        ("--weight", "heavy"),
    ],
)
def test_what_cannot_be_meant_is_refused(redis: Redis, option: str, value: str) -> None:
    """A usage error that names the option."""
    stockade("tenant", "create", "acme")
    result = stockade("tenant", "set", "acme", option, value)
    assert result.exit_code == 2
    assert option in result.output


def test_the_default_tenant_needs_no_creation(redis: Redis) -> None:
    """It can be changed before anybody used it."""
    assert stockade("tenant", "set", "default", "--weight", "3").exit_code == 0
    assert [line.split()[:2] for line in stockade("tenant", "list").output.splitlines()[1:]] == [
        ["default", "3"],
        ["default/default", "1"],
    ]


def test_a_tenant_is_made_and_removed_once(redis: Redis) -> None:
    """The second creation, and the second removal, are refused in one line."""
    stockade("tenant", "create", "acme")
    assert stockade("tenant", "create", "acme").output.startswith("Error: there is a tenant acme already")
    stockade("key", "create", "acme")
    refused = stockade("tenant", "remove", "acme")
    assert refused.exit_code == 1
    assert "--force" in refused.output
    assert stockade("tenant", "remove", "acme", "--force").output == "removed acme\n"
    assert stockade("tenant", "remove", "acme").exit_code == 1
    assert stockade("tenant", "set", "acme", "--weight", "2").exit_code == 1


def test_without_redis_the_message_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback: the address, and what to start or to name."""
    monkeypatch.delenv("STOCKADE_REDIS", raising=False)
    result = stockade("tenant", "list", "--state", str(tmp_path))
    assert result.exit_code == 1
    assert f"Is `stockade up` running on {tmp_path}?" in result.output
