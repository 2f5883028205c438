"""Group A: a job sees and reaches itself, and nobody else.

Numbers after "case" are those of the table in this directory's README.md.
"""

import contextlib
import fcntl
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests import census
from tests.sandboxes import Launcher

pytestmark = pytest.mark.kernel

REFUSED = {"EPERM", "EACCES"}
UNSEEN = REFUSED | {"ENOENT", "ESRCH"}
NAMESPACE_FLAGS = {
    "NEWTIME": 0x00000080,
    "NEWNS": 0x00020000,
    "NEWCGROUP": 0x02000000,
    "NEWUTS": 0x04000000,
    "NEWIPC": 0x08000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}


def test_a_job_can_kill_only_itself(sandbox: Launcher) -> None:
    """Case 1: SIGKILL to everybody reaches only the job's own children; a sibling job and the launcher
    live.
    """
    with sandbox.job() as sibling:
        sibling.start("say('up'); sys.stdin.read(); time.sleep(1); say('still here')")
        assert sibling.line() == "up"
        ran = sandbox.run(
            """
children = [os.fork() for _ in range(3)]
if 0 in children:
    time.sleep(100)
outcome = tried(os.kill, -1, 9)
codes = [os.waitpid(child, 0)[1] for child in children]
say([outcome, codes, tried(os.kill, 1, 9)])
"""
        ).assert_succeeded()
        assert ran.said == ["ok", [9, 9, 9], "EPERM"]
        assert sibling.wait().assert_succeeded().said == "still here"


def test_a_job_sees_only_its_own_processes(sandbox: Launcher) -> None:
    """Case 1: /proc lists nothing of the host and nothing of a sibling."""
    with sandbox.job() as sibling:
        sibling.start("say(1); time.sleep(0.5)")
        sibling.line()
        ran = sandbox.run("say([sorted(int(p) for p in os.listdir('/proc') if p.isdigit()), os.getpid()])")
        seen, own = ran.assert_succeeded().said
        assert set(seen) <= {1, own}
        assert own == 2
        sibling.wait().assert_succeeded()


def test_namespaces_of_init_cannot_be_entered(sandbox: Launcher) -> None:
    """Case 2: no namespace of PID 1 can be opened or read, and setns is refused even with one's own."""
    ran = sandbox.run(
        """
kinds = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
opened = {kind: tried(os.open, f"/proc/1/ns/{kind}", os.O_RDONLY) for kind in kinds}
linked = {kind: tried(os.readlink, f"/proc/1/ns/{kind}") for kind in kinds}
own = [sc(308, os.open(f"/proc/self/ns/{kind}", os.O_RDONLY), 0) for kind in kinds]
say([opened, linked, own])
"""
    )
    opened, linked, own = ran.assert_succeeded().said
    assert set(opened.values()) <= UNSEEN
    assert set(linked.values()) <= UNSEEN
    assert set(own) == {"EPERM"}


def test_no_user_namespace_can_be_made(sandbox: Launcher) -> None:
    """Case 3: unshare and clone refuse, clone3 does not exist."""
    ran = sandbox.run(
        """
arguments = struct.pack("=11Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
say([sc(272, 0x10000000), sc(56, 0x10000000 | 17, 0, 0, 0, 0), sc(435, arguments, len(arguments))])
"""
    )
    assert ran.assert_succeeded().said == ["EPERM", "EPERM", "ENOSYS"]


def test_no_namespace_of_any_kind_can_be_made(sandbox: Launcher) -> None:
    """Case 4: each flag of unshare is refused by itself, and the namespaces stay what they were."""
    ran = sandbox.run(
        f"""
names = sorted(os.listdir("/proc/self/ns"))
before = [os.readlink(f"/proc/self/ns/{{n}}") for n in names]
say([{{name: sc(272, flag) for name, flag in {NAMESPACE_FLAGS}.items()}},
    before == [os.readlink(f"/proc/self/ns/{{n}}") for n in names]])
"""
    )
    refused, same = ran.assert_succeeded().said
    assert refused == dict.fromkeys(NAMESPACE_FLAGS, "EPERM")
    assert same


def test_every_namespace_of_a_job_is_its_own(sandbox: Launcher) -> None:
    """Case 4: a running job shares no namespace with the host, and none with a sibling."""
    kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
    with sandbox.job() as one, sandbox.job() as two:
        found = []
        for job in (one, two):
            before = set(sandbox.pids())
            job.start("say(1); time.sleep(30)")
            job.line()
            (pid,) = set(sandbox.pids()) - before
            found.append([os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds])
        found.append([os.readlink(f"/proc/self/ns/{kind}") for kind in kinds])
    for of_kind in zip(*found, strict=True):
        assert len(set(of_kind)) == 3


def test_host_name_and_power_are_out_of_reach(sandbox: Launcher) -> None:
    """Case 5: names cannot be set and nothing reboots, whatever root the job is."""
    before = os.uname().nodename
    ran = sandbox.run(
        """
say([sc(170, b"pwned", 5), sc(171, b"pwned", 5), sc(169, 0xfee1dead, 672274793, 0x1234567, 0)])
"""
    )
    assert ran.assert_succeeded().said == ["EPERM"] * 3
    assert os.uname().nodename == before


def test_sysv_objects_are_not_shared_between_jobs(sandbox: Launcher) -> None:
    """Case 6: a key that one job made names nothing in another, and nothing stays on the host."""
    make = "say([sc(29, 0x1234, 4096, 0o1666), sc(68, 0x1234, 0o1666), sc(64, 0x1234, 1, 0o1666)])\n"
    find = "say([sc(29, 0x1234, 4096, 0), sc(68, 0x1234, 0), sc(64, 0x1234, 1, 0)])"
    with sandbox.job() as one:
        one.start(make + "time.sleep(30)")
        assert all(isinstance(identity, int) for identity in one.line())
        assert sandbox.run(find).assert_succeeded().said == ["ENOENT"] * 3
    shared = [
        line for kind in ("shm", "msg", "sem") for line in census.read(f"/proc/sysvipc/{kind}").splitlines()
    ]
    assert not any(line.split()[:1] == [str(0x1234)] for line in shared)


def test_shared_memory_files_are_not_shared_between_jobs(sandbox: Launcher) -> None:
    """Case 7: /dev/shm and /tmp of one job are empty for the other, at the same time and later."""
    look = "say([tried(open, f'{d}/x') for d in ('/dev/shm', '/tmp', '/var/tmp', '/work')])"
    with sandbox.job() as one:
        one.start(
            "[open(f'{d}/x', 'w') for d in ('/dev/shm', '/tmp', '/var/tmp', '/work')]; say(1); time.sleep(30)"
        )
        one.line()
        assert sandbox.run(look).assert_succeeded().said == ["ENOENT"] * 4
    assert sandbox.run(look).assert_succeeded().said == ["ENOENT"] * 4


def test_abstract_sockets_are_not_shared_between_jobs(sandbox: Launcher) -> None:
    """Case 8: another job's abstract socket refuses and is not listed."""
    with sandbox.job() as one:
        one.start(
            "s = socket.socket(socket.AF_UNIX); s.bind('\\0stockade-x'); s.listen(); say(1); time.sleep(30)"
        )
        one.line()
        ran = sandbox.run(
            """
s = socket.socket(socket.AF_UNIX)
say([tried(s.connect, "\\0stockade-x"), content("/proc/self/net/unix")])
"""
        )
        refused, listed = ran.assert_succeeded().said
        assert refused == "ECONNREFUSED"
        assert "stockade-x" not in listed


def test_services_of_the_host_cannot_be_reached(sandbox: Launcher) -> None:
    """Case 9: a listening socket of the host refuses on loopback and has no route on any other address."""
    with socket.create_server(("0.0.0.0", 0)) as listening:
        port = listening.getsockname()[1]
        listening.settimeout(0.05)
        addresses = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", *_host_addresses()]
        ran = sandbox.run(
            f"""
def reach(address):
    with socket.socket() as s:
        s.settimeout(5)
        return tried(s.connect, (address, {port}))
say([{{a: reach(a) for a in {addresses}}}, [name for _, name in socket.if_nameindex()]])
"""
        )
        reached, links = ran.assert_succeeded().said
        with pytest.raises(TimeoutError):
            listening.accept()
    assert reached.pop("127.0.0.1") == "ECONNREFUSED"
    assert set(reached.values()) == {"ENETUNREACH"}
    assert links == ["lo"]


def _host_addresses() -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return [str(probe.getsockname()[0])]
    return []


def test_loopback_works_inside(sandbox: Launcher) -> None:
    """A job's own servers and clients meet on 127.0.0.1 and ::1."""
    ran = sandbox.run(
        """
def talk(family, address):
    with socket.create_server((address, 0), family=family) as server:
        with socket.create_connection(server.getsockname()[:2]) as client:
            peer, _ = server.accept()
            with peer:
                client.sendall(b"ping")
                return peer.recv(4).decode()
say([talk(socket.AF_INET, "127.0.0.1"), talk(socket.AF_INET6, "::1")])
"""
    )
    assert ran.assert_succeeded().said == ["ping", "ping"]


def test_sockets_to_the_hypervisor_do_not_exist(sandbox: Launcher) -> None:
    """Case 10: AF_VSOCK, which no namespace divides on older kernels, is no address family here."""
    ran = sandbox.run("say([sc(41, 40, kind, 0) for kind in (1, 2, 5)])")
    assert ran.assert_succeeded().said == ["EAFNOSUPPORT"] * 3


def test_kernel_keyrings_do_not_exist(sandbox: Launcher) -> None:
    """Case 11: keyrings outlive a job and are not in any namespace, so there are none."""
    ran = sandbox.run(
        """
say([[sc(248, b"user", b"name", b"data", 4, -3), sc(249, b"user", b"name", 0, -3), sc(250, 1, b"shared")],
    content("/proc/keys"), content("/proc/key-users")])
"""
    )
    calls, keys, users = ran.assert_succeeded().said
    assert set(calls) <= {"ENOSYS", "EPERM"}
    assert {keys, users} <= {"", "ENOENT", "EACCES"}


def test_file_locks_are_not_shared_between_jobs(sandbox: Launcher) -> None:
    """Case 12: a lock or lease that one job holds on a file of the image does not exist for the other."""
    hold = """
held = [os.open(path, os.O_RDONLY) for path in ("/bin/sh", "/etc/passwd")]
for descriptor in held:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
leased = os.open("/etc/group", os.O_RDONLY)
say(tried(fcntl.fcntl, leased, 1024, fcntl.F_RDLCK))
time.sleep(30)
"""
    take = """
start = time.monotonic()
opened = [os.open(path, os.O_RDONLY) for path in ("/bin/sh", "/etc/passwd")]
locked = [tried(fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) for descriptor in opened]
say([locked, tried(os.open, "/etc/group", os.O_RDWR | os.O_NONBLOCK)])
"""
    with sandbox.job() as one:
        one.start(hold)
        one.line()
        assert sandbox.run(take).assert_succeeded().said == [["ok", "ok"], "ok"]


def test_locks_and_pressure_of_the_host_are_not_told(sandbox: Launcher) -> None:
    """Case 20: /proc/locks would show every open-file lock of the machine, so what jobs lock, and /proc/pressure
    its load, and take triggers for it."""
    hold = """
import struct
locked = os.open("/work/locked", os.O_RDWR | os.O_CREAT)
fcntl.fcntl(locked, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 4711, 1, 0))
say("locked")
time.sleep(30)
"""
    with sandbox.job() as one:
        one.start(hold)
        assert one.line() == "locked"
        assert "4711 4711" in census.read("/proc/locks")
        ran = sandbox.run("say([content('/proc/locks'), tried(os.open, '/proc/pressure/cpu', os.O_RDWR)])")
        assert ran.assert_succeeded().said == ["", "ENOENT"]


def test_control_groups_are_invisible(sandbox: Launcher) -> None:
    """Case 14: the job's cgroup is `/` to it, no cgroup file system is there and none can be mounted."""
    ran = sandbox.run(
        """
say([content("/proc/self/cgroup"), tried(os.listdir, "/sys/fs/cgroup"),
    [sc(165, b"none", b"/work", kind, 0, 0) for kind in (b"cgroup", b"cgroup2")],
    [line for line in content("/proc/self/mountinfo").splitlines() if " - cgroup" in line]])
"""
    )
    groups, listed, mounted, seen = ran.assert_succeeded().said
    assert {line.split(":", 2)[2] for line in groups.splitlines()} == {"/"}
    assert listed == "ENOENT"
    assert mounted == ["EPERM", "EPERM"]
    assert seen == []


def test_the_clock_cannot_be_set(sandbox: Launcher) -> None:
    """Case 15: none of the calls that set or bend the host's clock is granted."""
    drift = time.time() - time.monotonic()
    ran = sandbox.run(
        """
then = struct.pack("=qq", 1000, 0)
bend = struct.pack("=I", 0x4000).ljust(208, b"\\0")
say([sc(227, 0, then), sc(164, then, 0), sc(159, bend), sc(305, 0, bend)])
"""
    )
    assert ran.assert_succeeded().said == ["EPERM"] * 4
    assert abs((time.time() - time.monotonic()) - drift) < 1


def test_mounts_do_not_travel_between_host_and_job(sandbox: Launcher) -> None:
    """Case 16: a mount made on the host meanwhile is not seen, no mount is shared, none can be taken away."""
    shown = Path("/usr/local/games")
    with sandbox.job() as job:
        job.start(
            f"""
say("up")
while not sys.stdin.read(1) and not os.path.exists("/work/go"):
    if time.monotonic() > float(os.environ["UNTIL"]): break
    time.sleep(0.05)
info = content("/proc/self/mountinfo").splitlines()
say([os.listdir({str(shown)!r}), [line for line in info if "shared:" in line or "master:" in line],
    [sc(166, line.split()[4].encode(), flag) for line in info for flag in (0, 2)]])
""",
            env={"UNTIL": str(time.monotonic() + 1.5)},
        )
        job.line()
        subprocess.run(["mount", "-t", "tmpfs", "visitor", shown], check=True)
        try:
            (shown / "visitor").touch()
            ran = job.wait().assert_succeeded()
        finally:
            subprocess.run(["umount", shown], check=True)
    listed, travelling, unmounted = ran.said
    assert listed == []
    assert travelling == []
    assert set(unmounted) == {"EPERM"}


def test_the_jobs_namespaces_belong_to_the_host(sandbox: Launcher) -> None:
    """Case 17: the user namespace comes last, so the job's root owns no other namespace that it lives in."""
    get_owner = 0xB701
    with sandbox.job() as job:
        job.start(
            """
say({kind: tried(fcntl.ioctl, os.open(f"/proc/self/ns/{kind}", os.O_RDONLY), 0xb701)
    for kind in ("net", "mnt", "ipc", "uts", "pid", "cgroup")})
time.sleep(30)
"""
        )
        from_job = job.line()
        (pid,) = sandbox.pids()
        owners = set()
        for kind in ("net", "mnt", "ipc", "uts", "pid", "cgroup"):
            with open(f"/proc/{pid}/ns/{kind}") as namespace:
                owner = fcntl.ioctl(namespace, get_owner)
            owners.add(os.fstat(owner).st_ino)
            os.close(owner)
    assert owners == {os.stat("/proc/self/ns/user").st_ino}
    assert set(from_job.values()) == {"EPERM"}


def test_nothing_can_be_typed_into_a_terminal(sandbox: Launcher) -> None:
    """Case 18: there is no controlling terminal, and pushing input is refused on a terminal of one's own
    too.
    """
    ran = sandbox.run(
        """
mine, other = os.openpty()
say([tried(fcntl.ioctl, 0, 0x5412, b"x"), tried(fcntl.ioctl, other, 0x5412, b"x"),
    tried(fcntl.ioctl, other, 0x541c, b"\\2"), sc(16, other, (1 << 32) | 0x5412, b"x"),
    tried(os.open, "/dev/tty", os.O_RDWR)])
"""
    )
    on_stdin, pushed, console, high_bits, controlling = ran.assert_succeeded().said
    assert on_stdin in {"EPERM", "ENOTTY"}
    assert [pushed, console, high_bits] == ["EPERM"] * 3
    assert controlling in {"ENXIO", "ENOENT"}


def test_init_cannot_be_looked_into(sandbox: Launcher) -> None:
    """Case 19: PID 1 cannot be traced, and nothing of its /proc entry tells anything."""
    ran = sandbox.run(
        """
attach, seize = 16, 0x4206
names = ["mem", "exe", "environ", "root", "cwd", "fd", "maps", "stack", "syscall", "auxv", "io"]
def look(name):
    path = f"/proc/1/{name}"
    if name == "fd":
        return tried(os.listdir, path)
    return tried(os.readlink if name in ("exe", "root", "cwd") else open, path)
say([[sc(101, attach, 1, 0, 0), sc(101, seize, 1, 0, 0), sc(310, 1, 0, 0, 0, 0, 0)],
    {name: look(name) for name in names}])
"""
    )
    traced, looked = ran.assert_succeeded().said
    assert set(traced) <= UNSEEN | {"ENOSYS"}
    assert set(looked.values()) <= UNSEEN


def test_masked_parts_of_proc_tell_nothing(sandbox: Launcher) -> None:
    """Case 20: what tells about the host's kernel, timing or hardware is absent, closed or empty."""
    names = [
        "kcore", "keys", "key-users", "timer_list", "interrupts", "softirqs", "latency_stats",
        "sched_debug", "kmsg",
        "kallsyms", "modules", "config.gz", "kpagecount", "kpageflags", "cmdline", "sysrq-trigger",
    ]  # fmt: skip
    ran = sandbox.run(
        f"""
def listing(path):
    try:
        return os.listdir(path)
    except OSError as error:
        return errno.errorcode[error.errno]
say([{{n: content("/proc/" + n) for n in {names}}},
    {{n: listing(n) for n in ("/proc/scsi", "/proc/acpi", "/proc/driver", "/proc/asound", "/sys",
        "/sys/firmware",
        "/sys/devices/virtual/powercap")}}])
"""
    )
    files, directories = ran.assert_succeeded().said
    assert {name: text for name, text in files.items() if text not in ("", "ENOENT", "EACCES", "EPERM")} == {}
    assert {name: seen for name, seen in directories.items() if seen not in ([], "ENOENT", "EACCES")} == {}


def test_a_job_cannot_learn_where_it_runs(sandbox: Launcher) -> None:
    """Case 21: no path of the service and no identity of the host is in any text that a job can read."""
    ran = sandbox.run(
        """
text = {}
for name in os.listdir("/proc/self"):
    path = f"/proc/self/{name}"
    if os.path.isfile(path) and name not in ("mem", "pagemap", "clear_refs", "kcore"):
        text[path] = content(path)
for path in ("/proc/cmdline", "/proc/mounts", "/etc/machine-id", "/etc/hostname", "/etc/hosts",
    "/proc/1/cmdline",
             "/proc/1/mountinfo", "/proc/swaps", "/proc/locks", "/proc/net/unix"):
    text[path] = content(path)
text["hostname"] = socket.gethostname()
text["uname"] = " ".join(os.uname())
say(text)
"""
    )
    texts = ran.assert_succeeded().said
    machine = census.read("/etc/machine-id").strip()
    private = [
        str(sandbox.directory),
        str(sandbox.state),
        sandbox.directory.name,
        os.uname().nodename,
        machine,
    ]
    found = {(path, word) for path, text in texts.items() for word in private if word and word in text}
    assert found == set()
    assert texts["hostname"] == "sandbox"


def test_many_jobs_at_once_never_share_an_identity(sandbox: Launcher) -> None:
    """Each sandbox that runs has host uids of its own, none of them 0."""
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(sandbox.job()) for _ in range(5)]
        for job in jobs:
            job.start("say(open('/proc/self/uid_map').read().split()); time.sleep(60)")
        maps = [job.line() for job in jobs]
        uids = [census.uid_of(pid) for pid in sandbox.pids()]
    assert len({base for _, base, _ in maps}) == 5
    assert len(set(uids)) == 5
    for inside, base, size in maps:
        assert inside == "0"
        assert int(base) >= census.FIRST_JOB_UID
        assert int(size) == 65536
