"""Each user of Redis can do its work, and nothing else."""

import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from jobs import keys, tenants
from jobs.eviction import eviction_policy
from jobs.job import Attempt, JobResult, Tenant
from jobs.listing import JobFilter, list_jobs
from jobs.outcome import Outcome, OutcomeKind
from jobs.queue import celery_app
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import Idempotency, Store, connect
from jobs.workers import Workers
from policies.admission import admit
from policies.loader import load_policies
from stockade import valkey
from stockade.children import Child
from stockade.cli import main
from stockade.valkey_users import User, Users, rules
from tests.dispatch import worker_status

SPEC = JobSpec(command={"argv": ["true"]})  # type: ignore[call-arg, arg-type]
RESULT = JobResult(outcome=Outcome(kind=OutcomeKind.CANCELLED, message="It was."))


@pytest.fixture(scope="module")
def served() -> Iterator[Users]:
    """A Valkey that lets in the three users alone."""
    state = Path(tempfile.mkdtemp(prefix="stockade-test-users-"))  # short: a socket path has 107 bytes
    passwords = {user: secrets.token_hex(32) for user in User}
    users = Users(state, passwords)
    users.acl_file.write_text(rules(passwords))
    (data := state / "valkey").mkdir()
    command = valkey.command(data, durable=False, acl_file=users.acl_file)
    command += ["--enable-module-command", "yes", "--enable-debug-command", "yes"]  # not what refuses here
    server = Child("valkey", command, log=state / "log")
    try:
        server.start()
        admin = users.url(User.ADMIN)
        server.wait_until(lambda: valkey.answers(data, admin), timeout=30, pause=time.sleep)
        yield users
    finally:
        server.stop(grace=10)
        shutil.rmtree(state)


@pytest.fixture
def users(served: Users) -> Users:
    """The users of a server that is empty when the test starts."""
    with Redis.from_url(served.url(User.ADMIN)) as client:
        client.flushall()
        client.acl_log_reset()
    return served


@pytest.fixture
def clients(users: Users) -> Iterator[dict[User, Redis]]:
    """A client for each user."""
    found = {user: connect(Settings(redis=users.url(user))) for user in User}
    yield found
    for client in found.values():
        client.close()


@pytest.fixture
def project(clients: dict[User, Redis]) -> Tenant:
    """A project, which only the operator can make."""
    return tenants.create_tenant(clients[User.ADMIN], "acme")


def refused(client: Redis) -> list[Any]:
    """What the server has refused so far."""
    log: Any = client.acl_log()
    return list(log)


def test_every_role_does_its_work(clients: dict[User, Redis], users: Users, project: Tenant) -> None:
    """A job's whole way, and a key's whole life, with nothing refused to anybody."""
    admin, api, worker = (clients[user] for user in (User.ADMIN, User.API, User.WORKER))
    key = keys.create_key(admin, project)
    assert keys.authenticate(api, key) is not None
    other = keys.create_key(api, project)
    assert keys.rotate_key(api, keys.key_id_of(other)) is not None
    assert keys.revoke_key(api, keys.key_id_of(other))
    front, back = Store(api), Store(worker)
    admission = admit(SPEC, load_policies()["default"])
    Workers(worker).heartbeat(worker_status("w"))
    ids = [
        front.create(SPEC, admission, project.id, idempotency=Idempotency(f"key {n}", b"{}")).job.id
        for n in range(3)
    ]
    with back.cancellations() as heard:
        attempts = [back.claim(job_id, 1, "w") for job_id in ids]
        assert all(isinstance(attempt, Attempt) for attempt in attempts)
        first, second, third = (attempt for attempt in attempts if attempt)
        assert front.cancel(ids[2], project.id) is not None
        message = None
        while message is None:
            message = heard.get_message(timeout=5)
        assert message["data"].decode() == ids[2]
    back.renew([first, second, third])
    assert back.artifact_room(project.id) is None
    back.put_artifact(first, "a", b"1")
    assert back.finish(first, RESULT)
    back.fail_attempt(second, OutcomeKind.SANDBOX_ERROR, "It failed.")
    back.give_back(third)
    back.sweep(0)
    assert [each.name for each in Workers(api).live()] == ["w"]
    Workers(worker).farewell("w")
    assert front.get(ids[0], project.id) is not None
    assert front.get_artifact(ids[0], "a") == b"1"
    assert front.recall(project.id, Idempotency("key 0", b"{}")) is not None
    listed = list_jobs(api, project.id, JobFilter(), limit=2)
    assert listed.next is not None
    assert {job.id for job in listed.jobs} < set(ids)
    assert front.delete(ids[0], project.id)
    assert eviction_policy(api) == eviction_policy(worker) == "noeviction"
    assert refused(admin) == []


def test_celery_does_its_work(clients: dict[User, Redis], users: Users, project: Tenant) -> None:
    """Fetching, acknowledging, giving back and the sweep for messages of workers that are gone."""
    Workers(clients[User.WORKER]).heartbeat(worker_status("w"))
    for _ in range(2):
        Store(clients[User.API]).create(SPEC, admit(SPEC, load_policies()["default"]), project.id)
    app = celery_app(Settings(redis=users.url(User.WORKER)))
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        with app.amqp.TaskConsumer(channel) as consumer:
            for queue in consumer.queues:
                first, second = queue.get(), queue.get()
                assert queue.get() is None
                first.ack()
                second.requeue()
                third = queue.get()
                channel.qos.restore_by_tag(third.delivery_tag)
                assert queue.get() is not None
        channel.qos.restore_visible()
        channel.qos.restore_unacked()
    app.close()
    assert refused(clients[User.ADMIN]) == []


@pytest.mark.parametrize("user", [User.API, User.WORKER])
@pytest.mark.parametrize(
    "command",
    [
        "FLUSHALL",
        "FLUSHDB",
        "CONFIG SET dir /tmp",
        "CONFIG GET *",
        "MODULE LOAD /tmp/x.so",
        "MODULE LIST",
        "DEBUG SLEEP 0",
        "SHUTDOWN NOSAVE",
        "SAVE",
        "BGREWRITEAOF",
        "REPLICAOF 127.0.0.1 1",
        "MONITOR",
        "ACL LIST",
        "ACL SETUSER x on nopass +@all ~*",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "CLIENT TRACKING ON BCAST PREFIX stockade:key",
        "CLIENT CACHING YES",
        "CLIENT NO-TOUCH ON",
        "SELECT 1",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
        "FUNCTION LIST",
        "FUNCTION FLUSH",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "SWAPDB 0 1",
        "MIGRATE 127.0.0.1 1 stockade:queued 0 1",
        "SORT stockade:queued",
        "RESTORE stockade:x 0 x",
        "SLOWLOG GET",
        "SET other 1",
        "GET other",
        "SET stockade 1",
        "SUBSCRIBE other",
        "PSUBSCRIBE *",
        "PUBLISH other x",
        "EVAL return{redis.call('SET','other',1)} 0",
        "EVAL return{redis.call('FLUSHALL')} 0",
        "HSET stockade:tenant:x weight 1000",
        "DEL stockade:tenant_names",
        "SADD stockade:tenant_projects:x y",
        "EVAL return{redis.call('HSET','stockade:tenant:x','weight',9)} 0",
    ],
)
def test_what_is_not_its_work_is_refused(clients: dict[User, Redis], user: User, command: str) -> None:
    """NOPERM, from outside and from inside a script, and nothing has happened."""
    clients[User.ADMIN].set("other", "kept")
    with pytest.raises((NoPermissionError, ResponseError)) as caught:
        clients[user].execute_command(*command.split(" "))
    said = str(caught.value).lower()
    assert "permission" in said or "acl failure" in said or "can't run" in said, said
    assert clients[User.ADMIN].get("other") == b"kept"
    assert clients[User.ADMIN].dbsize() == 1


@pytest.mark.parametrize(
    "command",
    [
        "HGETALL stockade:key:{id}",
        "HSET stockade:key:{id} sha256 x",
        "SMEMBERS stockade:keys:{tenant}",
        "DEL stockade:key:{id}",
        "RENAME stockade:key:{id} stockade:job:x",
        "COPY stockade:key:{id} stockade:job:x",
        "EVAL return{redis.call('HGETALL','stockade:key:{id}')} 0",
        "EVAL return{redis.call('HGETALL',KEYS[1])} 1 stockade:key:{id}",
        "DUMP stockade:key:{id}",
        "HGETALL stockade:webhook:x",
        "XRANGE stockade:webhook:x - +",
        "HSET stockade:delivery:x body x",
        "HGET stockade:delivery:x body",
        "RENAME stockade:job:x stockade:delivery:x",
    ],
)
def test_a_worker_knows_no_keys(clients: dict[User, Redis], project: Tenant, command: str) -> None:
    """Whoever takes over a worker can neither read a key's hash nor make a key, nor read a webhook's secret or
    change what is sent to one."""
    key = keys.create_key(clients[User.ADMIN], project)
    words = command.replace("{id}", keys.key_id_of(key)).replace("{tenant}", project.id).split(" ")
    with pytest.raises((NoPermissionError, ResponseError), match=r"(?i)permission|acl failure"):
        clients[User.WORKER].execute_command(*words)
    assert keys.authenticate(clients[User.API], key) is not None


@pytest.mark.parametrize(
    "name",
    [
        *("job:x", "queued", "workers", "window:x", "turn:x", "events", "live:x"),
        *("told", "news", "news:x", "missed:x", "due", "delivered:x"),
    ],
)
def test_what_is_about_jobs_is_open_to_api_and_worker(clients: dict[User, Redis], name: str) -> None:
    """Every name of ours but those of keys, tenants, webhooks and what is delivered to them."""
    for user in (User.API, User.WORKER):
        clients[user].set(f"stockade:{name}", "1")
        assert clients[user].get(f"stockade:{name}") == b"1"


def test_a_worker_reads_tenants(clients: dict[User, Redis], project: Tenant) -> None:
    """Releasing the next job needs weights and budgets."""
    assert tenants.get_tenant(clients[User.WORKER], project.id) == project


def test_nobody_is_let_in_without_a_password(users: Users) -> None:
    """The user that Redis has by itself is off, and a wrong password opens nothing."""
    for login in ("", "default:", "stockade-admin:x", "stockade-api:"):
        client = Redis.from_url(valkey.url(users.acl_file.parent / "valkey", login))
        with client, pytest.raises(RedisError, match=r"(?i)auth|password"):
            client.get("stockade:x")


def test_passwords_are_kept_from_everyone_but_root(tmp_path: Path) -> None:
    """What is made once is used again; Valkey's own file has no password, and the right mode from the start."""
    users = Users.claim(tmp_path, gid=12345)
    assert Users.claim(tmp_path, gid=12345).url(User.API) == users.url(User.API)
    file, acl = tmp_path / "valkey-passwords", tmp_path / "valkey.acl"
    assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_gid) == (0o600, 0)
    assert (stat.S_IMODE(acl.stat().st_mode), acl.stat().st_gid) == (0o640, 12345)
    passwords = {users.url(user).split("@")[0].rpartition(":")[2] for user in User}
    assert len(passwords) == 3
    assert not any(password in acl.read_text() for password in passwords)
    assert "SHA256_OF" not in acl.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["valkey-passwords", "valkey.acl"]


def test_an_operator_needs_no_address(users: Users, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --state alone, `stockade tenant` and `stockade key` are the user that may do everything."""
    monkeypatch.delenv("STOCKADE_REDIS", raising=False)
    monkeypatch.setattr(Users, "load", lambda state: users)
    made = CliRunner().invoke(main, ["key", "create", "--state", str(tmp_path)])
    assert made.exit_code == 0, made.output
    listed = CliRunner().invoke(main, ["tenant", "list", "--state", str(tmp_path)])
    assert "default/default" in listed.output
