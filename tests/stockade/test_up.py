"""`stockade up`: the whole service on one machine, started and stopped."""

import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from redis import Redis, RedisError

from stockade import valkey
from stockade.valkey_users import User, Users
from tests.stack import PATIENCE, STOCKADE, Up, cgroups_of, free_port, left_of, still_there, until

pytestmark = [pytest.mark.kernel, pytest.mark.once, pytest.mark.slow]


def test_the_curl_line_works_as_printed_and_nothing_is_left(up: Up) -> None:
    """A shell runs the printed line; it answers with the finished job. Ctrl-C then leaves files only."""
    up.start()
    line = next(line for line in up.greeting.splitlines() if line.strip().startswith("curl "))
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert '"kind":"exited"' in done.stdout
    assert r'"text":"42\n"' in done.stdout
    assert httpx.get(f"http://{up.listen}/docs", trust_env=False).status_code == 200
    cgroups = cgroups_of(up.state)
    assert cgroups
    assert up.stop(signal.SIGINT) == 0
    assert "stopped; nothing is left running" in up.output()
    assert left_of(up.state) == []
    assert still_there(cgroups) == []


def test_only_the_launcher_is_root(up: Up) -> None:
    """Valkey, worker and API run as the service user, in no group but its own, with no capability."""
    up.start()
    pids = up.pids()
    assert set(pids) == {"valkey", "launcher", "worker", "api"}
    for name, pid in pids.items():
        status = Path(f"/proc/{pid}/status").read_text()
        uids = set(re.findall(r"Uid:\t(\d+)\t(\d+)\t(\d+)\t(\d+)", status)[0])
        if name == "launcher":
            assert uids == {"0"}
        else:
            assert "0" not in uids
            assert re.search(r"Groups:\s*$", status, re.MULTILINE)
            assert re.search(r"CapBnd:\t0+$", status, re.MULTILINE)


def test_each_process_is_a_redis_user_that_can_do_its_work_alone(up: Up) -> None:
    """Jobs run and are cancelled without a command refused; passwords are in one environment each, and in no log."""
    up.start()
    assert up.run("true")["outcome"]["kind"] == "exited"
    with up.api() as api:
        job = api.submit(["sleep", "60"])
        until(lambda: api.get(job.id).state == "running", "running")
        api.cancel(job.id)
        assert api.wait(job.id, timeout=PATIENCE).outcome.kind == "cancelled"
    users = Users.load(up.state)
    with Redis.from_url(users.url(User.ADMIN)) as admin:
        assert admin.acl_log() == []
        names = {each["user"] for each in admin.client_list()}
    assert names == {"stockade-api", "stockade-worker", "stockade-admin"}
    passwords = {user: users.url(user).split("@")[0].rpartition(":")[2] for user in User}
    for name, pid in up.pids().items():
        line, environment = (Path(f"/proc/{pid}/{part}").read_text() for part in ("cmdline", "environ"))
        assert not any(password in line for password in passwords.values()), name
        assert {user for user in User if passwords[user] in environment} == {name} & set(User)
        log = (up.state / "logs" / f"{name}.log").read_text()
        assert not any(password in log for password in passwords.values()), name
    with (
        pytest.raises(RedisError, match=r"(?i)auth"),
        Redis.from_url(valkey.url(up.state / "valkey")) as nobody,
    ):
        nobody.ping()


def test_a_second_one_on_the_same_state_is_refused(up: Up) -> None:
    """It names the process that has it, starts nothing, and the first goes on."""
    up.start()
    second = subprocess.run(
        [STOCKADE, "up", "--state", up.state, "--listen", f"127.0.0.1:{free_port()}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert second.returncode == 1
    assert f"another `stockade up` (process {up.process.pid}) runs on {up.state}" in second.stderr
    assert up.run("true")["outcome"]["kind"] == "exited"


def test_a_busy_port_is_an_error_before_anything_starts(up: Up) -> None:
    """The message names the address; no directory of a child is made."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = f"127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            [STOCKADE, "up", "--state", up.state, "--listen", listen],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 1
    assert f"cannot listen on {listen}" in done.stderr
    assert [path.name for path in up.state.iterdir()] == ["lock"]
