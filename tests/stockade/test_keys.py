"""`stockade key`."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from jobs.keys import Scope, authenticate, list_keys, revoke_key
from jobs.tenants import find_project
from stockade import keys
from stockade.cli import main


@pytest.fixture
def redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Redis:
    monkeypatch.setenv("STOCKADE_REDIS", redis_url)
    return Redis.from_url(redis_url)


def stockade(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_key_works_until_it_is_revoked(redis: Redis) -> None:
    """create prints a key that opens the tenant's door, list shows its id, revoke shuts the door."""
    assert stockade("tenant", "create", "acme").output == "made the project acme/default\n"
    key = stockade("key", "create", "acme").output.strip()
    owner = authenticate(redis, key)
    assert owner is not None
    assert owner.tenant.name == "acme/default"
    key_id = key.split("_")[1]
    assert key_id in stockade("key", "list", "acme").output
    assert stockade("key", "revoke", key_id).exit_code == 0
    assert authenticate(redis, key) is None
    assert stockade("key", "revoke", key_id).exit_code == 1


def test_the_secret_of_a_key_is_shown_once(redis: Redis) -> None:
    """After its creation no command prints the secret, and Redis does not hold it."""
    secret = stockade("key", "create").output.strip().split("_", 2)[2]
    shown = stockade("key", "list").output + stockade("tenant", "list").output
    held = b"".join(redis.dump(name) or b"" for name in redis.scan_iter())
    assert secret not in shown
    assert secret.encode() not in held


def test_a_key_has_name_scopes_and_expiry(redis: Redis) -> None:
    """What was said at its creation is what list shows; an expiry that is over shuts the door."""
    made = stockade(
        "key", "create", "--name", "ci", "--scope", "admin", "--scope", "read", "--expires", "30d"
    )
    found = authenticate(redis, made.output.strip())
    assert found is not None
    assert (found.key.name, found.key.scopes) == ("ci", (Scope.READ, Scope.ADMIN))
    assert 29.9 * 86400 < found.seconds <= 30 * 86400
    head, line = stockade("key", "list").output.splitlines()
    assert head.split("  ")[0] == "KEY ID"
    assert {"ci", "read,admin"} <= set(line.split())
    assert authenticate(redis, stockade("key", "create", "--expires", "0s").output.strip()) is None


@pytest.mark.parametrize(
    "option",
    [
        ("--scope", "root"),
        ("--expires", "soon"),
        ("--expires", "-1d"),
        ("--expires", "30"),
        ("--name", "a\nb"),
    ],
)
def test_what_cannot_be_meant_is_refused(redis: Redis, option: tuple[str, str]) -> None:
    """A usage error that names the option; no key is made."""
    result = stockade("key", "create", *option)
    assert result.exit_code == 2
    assert option[0] in result.output
    assert list(redis.scan_iter("stockade:key*")) == []


def test_a_rotated_key_has_another_secret(redis: Redis) -> None:
    """The new key is printed, the old one works on only as long as --grace says."""
    old = stockade("key", "create").output.strip()
    key_id = old.split("_")[1]
    new = stockade("key", "rotate", key_id, "--grace", "1h").output.strip()
    assert authenticate(redis, old) is not None
    newest = stockade("key", "rotate", key_id).output.strip()
    assert [authenticate(redis, key) is not None for key in (old, new, newest)] == [False, False, True]
    assert stockade("key", "rotate", "0" * 16).exit_code == 1


def test_the_default_project_needs_no_creation(redis: Redis) -> None:
    """A first key can be made at once."""
    assert stockade("key", "create").exit_code == 0
    project = find_project(redis, "default")
    assert project is not None
    assert len(list_keys(redis, project.id)) == 1


def test_an_unknown_tenant_is_an_error_with_its_fix(redis: Redis) -> None:
    """The message holds the command that makes the tenant."""
    result = stockade("key", "create", "nobody")
    assert result.exit_code == 1
    assert "stockade tenant create nobody" in result.output


def test_a_development_key_is_kept_and_private(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """The same key comes back as long as it is good; only its owner can read the file."""
    path = tmp_path / "dev-key"
    key = keys.development_key(redis_url, path)
    assert keys.development_key(redis_url, path) == key
    assert path.stat().st_mode & 0o077 == 0
    revoke_key(redis, key.split("_")[1])
    again = keys.development_key(redis_url, path)
    assert again != key
    found = authenticate(redis, again)
    assert found is not None
    assert set(found.key.scopes) == set(Scope)
    path.write_text(plain := stockade("key", "create").output)
    assert keys.development_key(redis_url, path) != plain.strip()
    assert os.listdir(tmp_path) == ["dev-key"]
