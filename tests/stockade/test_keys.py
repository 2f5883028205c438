"""`stockade tenant` and `stockade key`."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from redis import Redis

from jobs import tenants
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
    assert stockade("tenant", "create", "acme").output == "made the tenant acme\n"
    key = stockade("key", "create", "acme").output.strip()
    owner = tenants.authenticate(redis, key)
    assert owner is not None
    assert owner.name == "acme"
    key_id = key.split("_")[1]
    assert key_id in stockade("key", "list", "acme").output
    assert stockade("key", "revoke", key_id).exit_code == 0
    assert tenants.authenticate(redis, key) is None
    assert stockade("key", "revoke", key_id).exit_code == 1


def test_the_secret_of_a_key_is_shown_once(redis: Redis) -> None:
    """After its creation no command prints the secret, and Redis does not hold it."""
    secret = stockade("key", "create").output.strip().split("_", 2)[2]
    shown = stockade("key", "list").output + stockade("tenant", "list").output
    held = b"".join(redis.dump(name) or b"" for name in redis.scan_iter())
    assert secret not in shown
    assert secret.encode() not in held


def test_the_default_tenant_needs_no_creation(redis: Redis) -> None:
    """A first key can be made at once; the list then has one tenant with one key."""
    assert stockade("key", "create").exit_code == 0
    lines = stockade("tenant", "list").output.splitlines()
    assert lines[0].split() == ["TENANT", "CREATED", "KEYS"]
    assert [(line.split()[0], line.split()[-1]) for line in lines[1:]] == [("default", "1")]


def test_an_unknown_tenant_is_an_error_with_its_fix(redis: Redis) -> None:
    """The message holds the command that makes the tenant."""
    result = stockade("key", "create", "nobody")
    assert result.exit_code == 1
    assert "stockade tenant create nobody" in result.output


def test_a_tenant_is_made_once(redis: Redis) -> None:
    """The second creation is refused in one line."""
    stockade("tenant", "create", "acme")
    result = stockade("tenant", "create", "acme")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")


def test_without_redis_the_message_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback: the address, and what to start or to name."""
    monkeypatch.delenv("STOCKADE_REDIS", raising=False)
    result = stockade("tenant", "list", "--state", str(tmp_path))
    assert result.exit_code == 1
    assert f"Is `stockade up` running on {tmp_path}?" in result.output


def test_a_development_key_is_kept_and_private(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    """The same key comes back as long as it is good; only its owner can read the file."""
    path = tmp_path / "dev-key"
    key = keys.development_key(redis_url, path)
    assert keys.development_key(redis_url, path) == key
    assert path.stat().st_mode & 0o077 == 0
    tenants.revoke_key(redis, key.split("_")[1])
    again = keys.development_key(redis_url, path)
    assert again != key
    assert tenants.authenticate(redis, again) is not None
    assert os.listdir(tmp_path) == ["dev-key"]
