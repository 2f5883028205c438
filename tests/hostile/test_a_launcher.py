"""Group A, the launcher: a peer that lies, breaks the protocol or comes in numbers gains nothing.

Numbers after "case" are those of the table in this directory's README.md.
"""

import contextlib
import json
import socket
import threading

import pytest

from tests.sandboxes import Launcher

pytestmark = pytest.mark.kernel


def test_a_peer_that_sends_nonsense_harms_nobody(sandbox: Launcher) -> None:
    """A client of the launcher that breaks the protocol loses its own connection, and only that."""
    with sandbox.job() as sibling:
        sibling.start("say('up'); time.sleep(1); say('still here')")
        sibling.line()
        for packet in (
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"op":"nope"}',
            b'{"op":"run"}',
            b"\xff" * 65536,
            b"[" * 60000,
        ):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                peer.connect(str(sandbox.socket))
                peer.settimeout(5)
                with contextlib.suppress(OSError):
                    peer.send(packet)
                    peer.shutdown(socket.SHUT_WR)
                    peer.recv(65536)
        assert sibling.wait().assert_succeeded().said == "still here"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", "../../etc"),
        ("image", "nowhere"),
        ("user", -1),
        ("user", 65536),
        ("user", True),
        ("hostname", "a\nb"),
        ("syscalls", "../default"),
        ("capabilities", ["SYS_ADMIN"]),
        ("argv", []),
        ("argv", ["a\0b"]),
        ("argv", "/bin/true"),
        ("env", {"A=B": "c"}),
        ("cwd", "/proc/self/fd/7"),
        ("cwd", "/work/../proc"),
        ("limits", {"memory": 1}),
    ],
)
def test_the_launcher_trusts_no_plan(sandbox: Launcher, field: str, value: object) -> None:
    """The launcher checks each field against the host's own ceilings, whatever policy the worker knows."""
    ran = sandbox.run(["/bin/true"], plan={field: value})
    assert ran.ended["op"] == "failed", ran.ended
    assert ran.ended["step"] == "plan"
    assert field in ran.ended["subject"]


@pytest.mark.parametrize(
    "limit",
    [
        {"memory": 1 << 60}, {"memory": -1}, {"memory": float("nan")}, {"memory": True}, {"pids": 0},
            {"cpus": 0},
        {"wall_time": float("inf")}, {"cpu_time": -1.0}, {"disk": 0}, {"unknown": 1}, {"memory": "1"},
    ],
)  # fmt: skip
def test_the_launcher_trusts_no_limit(sandbox: Launcher, limit: dict[str, float]) -> None:
    """A limit that is not a finite number within the host's ceilings runs nothing."""
    ran = sandbox.run(["/bin/true"], **limit)
    assert (ran.ended["op"], ran.ended["step"]) == ("failed", "plan")


def test_many_clients_at_once_get_their_own_answers(sandbox: Launcher) -> None:
    """Twelve clients at once each get their own output and their own end."""
    answers: dict[int, object] = {}

    def one(number: int) -> None:
        answers[number] = json.loads(sandbox.run(f"say({number})").assert_succeeded().stdout)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(12)}
