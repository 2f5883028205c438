"""Group B, the image: what a job can read of it and of the host, and that it changes neither.

Numbers after "case" are those of the table in this directory's README.md.
"""

import hashlib
import os
import pty
import stat
from pathlib import Path

import pytest

from tests import census
from tests.sandboxes import Launcher

pytestmark = pytest.mark.kernel

REFUSED = {"EPERM", "EACCES"}
UNSEEN = REFUSED | {"ENOENT"}
WRITE_REFUSED = UNSEEN | {"EROFS"}


DEVICES = {
    "null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "ptmx", "pts",
    "shm",
}  # fmt: skip


def test_secrets_of_the_host_are_not_there(sandbox: Launcher, sentinel: Path) -> None:
    """Case 22: no password hash, no home, no configuration, no state of the service under any name."""
    guesses = [
        "/etc/shadow", "/etc/gshadow", "/etc/ssh/sshd_config", "/etc/sudoers", "/root/.ssh/authorized_keys",
        "/root/.bashrc", "/var/lib/dpkg/status", "/var/log/dpkg.log", str(sandbox.state), str(sandbox.socket),
        str(sentinel / "precious"), "/proc/1/root/etc/shadow", "/boot", "/srv", "/opt", "/mnt",
    ]  # fmt: skip
    ran = sandbox.run(
        f"""
def look(path):
    return tried(os.listdir, path) if os.path.isdir(path) else content(path)
say([{{path: look(path) for path in {guesses}}}, os.listdir("/home"), os.listdir("/root"),
    content("/etc/passwd")])
"""
    )
    looked, home, root, users = ran.assert_succeeded().said
    assert set(looked.values()) <= UNSEEN
    assert home == root == []
    assert users != Path("/etc/passwd").read_text()


def test_only_chosen_places_are_mounted(sandbox: Launcher) -> None:
    """Case 22: the job's mount table holds the few mounts of a sandbox and names no directory of the host."""
    ran = sandbox.run("say(content('/proc/self/mountinfo').splitlines())")
    kinds, roots = set(), set()
    for line in ran.assert_succeeded().said:
        before, after = line.split(" - ")
        kinds.add(after.split()[0])
        roots.add((before.split()[4], before.split()[3]))
    assert kinds <= {"overlay", "proc", "tmpfs", "devpts"}
    assert {root for target, root in roots if not target.startswith("/proc/")} <= {"/", "/work"} | {
        root for target, root in roots if target == "/dev/shm" and root.startswith("/shm-")
    }


def test_chroot_is_no_way_out(sandbox: Launcher) -> None:
    """Case 23: chroot is refused, and `..` of the root is the root."""
    ran = sandbox.run(
        """
os.mkdir("d")
say([sc(161, b"d"), os.stat("/..").st_ino == os.stat("/").st_ino, sorted(os.listdir("/"))])
"""
    )
    refused, closed, top = ran.assert_succeeded().said
    assert refused == "EPERM"
    assert closed
    allowed = {
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "root",
        "run",
        "sbin",
        "tmp",
    }
    assert set(top) <= allowed | {"usr", "var", "work"}


def test_no_descriptor_but_stdio_is_inherited(sandbox: Launcher) -> None:
    """Case 24: a job starts with descriptors 0, 1 and 2 and not one more."""
    ran = sandbox.run(["/bin/ls", "/proc/self/fd"])
    assert ran.assert_succeeded().stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is ls reading the directory


@pytest.mark.parametrize(
    "directory", ["/proc/self/fd/5", "/proc/self/cwd", "/dev/fd/4", "/dev/fd/7", "/dev/fd/9"]
)
def test_no_working_directory_leads_through_a_descriptor(sandbox: Launcher, directory: str) -> None:
    """Case 24 (CVE-2024-21626): a working directory below /proc, by name or by link, runs nothing."""
    ran = sandbox.run(["/bin/pwd"], cwd=directory)
    assert ran.stdout == b""
    assert ran.ended["op"] == "failed" or ran.ended["exec_errno"]


@pytest.mark.parametrize("program", ["/proc/self/exe", "/proc/1/exe", "/usr/../proc/self/exe", "/work/link"])
def test_the_launchers_program_cannot_be_run(sandbox: Launcher, program: str) -> None:
    """Case 25 (CVE-2019-5736): what the launcher itself is executed from is no program for a job."""
    with sandbox.job() as job:
        job.run(["/bin/ln", "-s", "/proc/self/exe", "/work/link"], plan={"keep": True}).assert_succeeded()
        ran = job.run([program, "-c", "print('ran')"])
    assert ran.stdout == b""
    assert ran.ended["op"] == "failed" or ran.ended["exec_errno"]


def test_an_interpreter_line_gives_no_hold_on_the_launcher(sandbox: Launcher) -> None:
    """Case 25 (CVE-2019-5736): a script run by `#!/proc/self/exe` cannot open its program for writing."""
    script = f"""#!/proc/self/exe
import os
for path in ("/proc/self/exe", "/proc/1/exe"):
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        try:
            os.open(path, flags)
            print("{"opened"}", path)
        except OSError as error:
            print(error.strerror)
"""
    before = census.identity(Path(os.path.realpath("/usr/bin/python3")))
    ran = sandbox.run(["/work/script"], files={"script": (script.encode(), 0o755)})
    assert b"opened" not in ran.stdout
    assert census.identity(Path(os.path.realpath("/usr/bin/python3"))) == before


def test_kernel_settings_cannot_be_written(sandbox: Launcher) -> None:
    """Case 26: nothing below /proc/sys and no trigger file takes a write."""
    paths = [
        "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches",
        "/proc/irq/0/smp_affinity",
        "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ping_group_range", "/proc/sys/kernel/hostname",
        "/proc/sys/user/max_user_namespaces", "/proc/sys/kernel/shmmax", "/proc/sys/fs/mqueue/queues_max",
        "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/modprobe", "/proc/irq/default_smp_affinity",
    ]  # fmt: skip
    ran = sandbox.run(f"say({{p: tried(os.open, p, os.O_WRONLY) for p in {paths}}})")
    opened = ran.assert_succeeded().said
    assert set(opened.values()) <= WRITE_REFUSED, opened


def test_no_release_agent_can_be_planted(sandbox: Launcher) -> None:
    """Case 27 (CVE-2022-0492): the namespaces and mounts that this needs are refused."""
    ran = sandbox.run(
        "say([sc(272, 0x10000000 | 0x20000 | 0x02000000), "
        "[sc(165, b'none', b'/work', b'cgroup', 0, o) for o in (b'rdma', b'memory', b'none,name=x')]])"
    )
    assert ran.assert_succeeded().said == ["EPERM", ["EPERM"] * 3]


def test_devices_are_the_few_harmless_ones(sandbox: Launcher) -> None:
    """Case 28: /dev holds exactly the list, nodes cannot be made, and no other device can be opened."""
    ran = sandbox.run(
        """
nodes = [tried(os.mknod, f"/{where}/node", kind | 0o666, os.makedev(major, minor))
    for where in ("work", "tmp", "dev", "dev/shm")
    for kind, major, minor in ((0o060000, 8, 0), (0o020000, 1, 1), (0o020000, 10, 229), (0o020000, 1, 3))]
say([sorted(os.listdir("/dev")), nodes,
    {name: tried(os.open, f"/dev/{name}", os.O_RDONLY)
     for name in ("mem", "kmsg", "fuse", "net/tun", "kvm", "loop0", "vda", "sda", "userfaultfd",
         "vhost-net")},
    tried(os.unlink, "/dev/null"), tried(os.mkdir, "/dev/x")])
"""
    )
    listed, nodes, opened, removed, made = ran.assert_succeeded().said
    assert set(listed) == DEVICES
    assert set(nodes) <= REFUSED | {"EROFS"}
    assert set(opened.values()) == {"ENOENT"}
    assert {removed, made} <= REFUSED | {"EROFS"}


def test_devices_behave(sandbox: Launcher) -> None:
    """Case 28: null swallows, zero and random give, full is full."""
    ran = sandbox.run(
        """
null = os.open("/dev/null", os.O_RDWR)
say([os.write(null, b"x"), os.read(null, 1).decode(), open("/dev/zero", "rb").read(4).hex(),
    len(open("/dev/urandom", "rb").read(16)), tried(os.write, os.open("/dev/full", os.O_WRONLY), b"x")])
"""
    )
    assert ran.assert_succeeded().said == [1, "", "00000000", 16, "ENOSPC"]


def test_set_user_id_does_nothing(sandbox: Launcher) -> None:
    """Case 29: a set-user-id program of the job's own making runs as who started it."""
    ran = sandbox.run(
        """
import shutil
for directory in ("/work", "/tmp", "/var/tmp"):
    shutil.copy("/usr/bin/id", f"{directory}/id")
    os.chmod(f"{directory}/id", 0o6755)
os.chmod("/work", 0o755)
def as_user(path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([]); os.setresgid(1000, 1000, 1000); os.setresuid(1000, 1000, 1000)
        os.dup2(write, 1)
        os.execv(path, [path, "-u"])
    os.close(write)
    os.waitpid(child, 0)
    return os.read(read, 100).decode().strip()
status = dict(line.split(":\\t", 1) for line in content("/proc/self/status").splitlines())
say([as_user(d + "/id") for d in ("/work", "/tmp", "/var/tmp")] + [status["NoNewPrivs"]])
"""
    )
    assert ran.assert_succeeded().said == ["1000", "1000", "1000", "1"]


def test_file_capabilities_cannot_be_given(sandbox: Launcher) -> None:
    """Case 30: the attribute that grants capabilities on execution cannot be set."""
    ran = sandbox.run(
        """
open("f", "w").close()
value = struct.pack("<5I", 0x02000001, 0xffffffff, 0, 0xffffffff, 0)
say([tried(os.setxattr, path, "security.capability", value) for path in ("f", "/usr/bin/id", "/etc/passwd")])
"""
    )
    assert set(ran.assert_succeeded().said) <= REFUSED | {"EROFS"}


def test_mounting_is_refused_in_every_form(sandbox: Launcher) -> None:
    """Case 31: none of the old and new mount calls is granted."""
    ran = sandbox.run(
        """
at = -100
say({"mount": sc(165, b"none", b"/work", b"tmpfs", 0, 0), "bind": sc(165, b"/usr", b"/work", 0, 4096, 0),
    "remount": sc(165, b"none", b"/usr", 0, 32 | 4096, 0), "umount2": sc(166, b"/work", 0),
    "detach": sc(166, b"/proc", 2), "fsopen": sc(430, b"tmpfs", 0), "fsmount": sc(432, 0, 0, 0),
    "fspick": sc(433, at, b"/work", 0), "fsconfig": sc(431, 0, 6, 0, 0, 0),
    "open_tree": sc(428, at, b"/work", 1), "move_mount": sc(429, at, b"/work", at, b"/tmp", 0),
    "mount_setattr": sc(442, at, b"/usr", 0, b"\\0" * 32, 32), "pivot_root": sc(155, b"/work", b"/work"),
    "swapon": sc(167, b"/work/f", 0)})
"""
    )
    assert set(ran.assert_succeeded().said.values()) == {"EPERM"}


def test_file_handles_open_nothing(sandbox: Launcher) -> None:
    """Case 32 ("shocker"): opening files of the host by guessed handles is refused."""
    ran = sandbox.run(
        """
handle = struct.pack("=Ii8s", 8, 1, struct.pack("=II", 2, 0))
say([sc(304, os.open(d, os.O_RDONLY), handle, 0) for d in ("/usr", "/work", "/")])
"""
    )
    assert ran.assert_succeeded().said == ["EPERM"] * 3


def test_pseudo_terminals_are_bounded(sandbox: Launcher) -> None:
    """Case 41: a job cannot use up the host's pseudo-terminals."""
    ran = sandbox.run(
        """
held = []
try:
    while len(held) < 400:
        held.append(os.open("/dev/ptmx", os.O_RDWR))
except OSError as error:
    say([len(held), errno.errorcode[error.errno]])
time.sleep(0.2)
""",
        open_files=1024,
    )
    count, refused = ran.assert_succeeded().said
    assert count <= 128
    assert refused == "ENOSPC"
    for descriptor in pty.openpty():
        os.close(descriptor)


def test_overlay_attributes_cannot_be_forged(sandbox: Launcher) -> None:
    """Case 42: the attributes by which an overlay redirects and hides cannot be set or have no meaning."""
    ran = sandbox.run(
        """
os.mkdir("/tmp/d")
say([tried(os.setxattr, place, name, b"/etc")
    for place in ("/tmp/d", "/etc") for name in ("trusted.overlay.redirect", "trusted.overlay.opaque")])
"""
    )
    assert set(ran.assert_succeeded().said) <= REFUSED | {"EOPNOTSUPP", "ENOTSUP"}


def test_files_of_the_image_cannot_be_changed(sandbox: Launcher) -> None:
    """Case 43: writes of every kind are refused or go to the job's own copy; the next job sees the
    original.
    """
    program = Path("/usr/bin/env")
    before = census.identity(program)
    look = """
import hashlib
say([hashlib.sha256(open("/usr/bin/env", "rb").read()).hexdigest(), content("/etc/passwd")])
"""
    original = sandbox.run(look).assert_succeeded().said
    ran = sandbox.run(
        """
import mmap
def by_map():
    with open("/usr/bin/env", "rb+") as f, mmap.mmap(f.fileno(), 0) as m:
        m[0:4] = b"pwnd"
say([tried(open, "/usr/bin/env", "ab"), tried(os.open, "/usr/bin/env", os.O_WRONLY | os.O_TRUNC),
    tried(by_map),
    tried(os.rename, "/usr/bin/env", "/usr/bin/x"), tried(os.unlink, "/usr/bin/env"), tried(os.truncate,
        "/usr/bin/env", 0),
    tried(os.utime, "/usr/bin/env"), tried(os.mkdir, "/usr/x"), tried(os.link, "/usr/bin/env", "/usr/bin/y"),
    tried(os.rename, "/etc/passwd", "/etc/x"), tried(lambda: open("/etc/group", "w").write("pwned"))])
"""
    )
    of_usr, of_etc = ran.assert_succeeded().said[:9], ran.said[9:]
    assert set(of_usr) <= {"EROFS", "EPERM", "EACCES"}
    assert of_etc == ["ok", "ok"]
    assert census.identity(program) == before
    assert sandbox.run(look).assert_succeeded().said == original


def test_the_page_cache_of_an_image_cannot_be_written(sandbox: Launcher) -> None:
    """Case 44 (CVE-2022-0847 and kin): splicing a file's page into a pipe and writing there changes
    nothing.
    """
    before = hashlib.sha256(Path("/usr/bin/env").read_bytes()).hexdigest()
    ran = sandbox.run(
        """
read, write = os.pipe()
fcntl.fcntl(write, 1031, 65536)
for _ in range(16):
    os.write(write, b"x" * 4096)
os.read(read, 65536)
file = os.open("/usr/bin/env", os.O_RDONLY)
offset = ctypes.c_long(1)
moved = sc(275, file, ctypes.byref(offset), write, 0, 1, 0)
written = tried(os.write, write, b"pwned")
say([sc(41, 38, 5, 0), moved, written])
"""
    )
    assert ran.assert_succeeded().said[0] == "EAFNOSUPPORT"
    look = "import hashlib; say(hashlib.sha256(open('/usr/bin/env', 'rb').read()).hexdigest())"
    assert sandbox.run(look).assert_succeeded().said == before


def test_file_system_controls_are_refused(sandbox: Launcher) -> None:
    """Case 46: freezing, trimming, immutable flags and quotas are not the job's to set."""
    ran = sandbox.run(
        """
def each(path):
    d = os.open(path, os.O_RDONLY)
    return [tried(fcntl.ioctl, d, code, b"\\0" * 64) for code in (0xC0045877, 0xC0185879)] + [
        tried(fcntl.ioctl, d, 0x40086602, struct.pack("=l", 0x10))]
say([each(p) for p in ("/", "/usr", "/work", "/tmp")] + [[sc(179, 0x800002, b"/dev/vda", 0, 0), sc(443, 0,
    0, 0, 0)]])
"""
    )
    *controls, quotas = ran.assert_succeeded().said
    assert {answer for row in controls for answer in row} <= {
        "EPERM",
        "ENOTTY",
        "EOPNOTSUPP",
        "ENOTSUP",
        "EROFS",
    }
    assert set(quotas) <= {"EPERM", "ENOSYS"}


def test_masks_are_not_made_from_what_a_job_left(sandbox: Launcher) -> None:
    """Case 48 (CVE-2025-31133): replacing /dev/null in one step changes no mask of the next."""
    with sandbox.job() as job:
        first = job.run(
            """
os.symlink("/proc/sys/kernel/core_pattern", "/tmp/null")
say([tried(os.rename, "/tmp/null", "/dev/null"), tried(os.unlink, "/dev/null"), tried(os.rename, "/dev",
    "/gone")])
""",
            plan={"keep": True},
        )
        assert "ok" not in first.assert_succeeded().said
        second = job.run(
            """
about = os.stat("/dev/null")
say([about.st_mode, about.st_rdev, content("/proc/kcore"), tried(os.open, "/proc/kcore", os.O_WRONLY)])
"""
        )
    mode, device, masked, _ = second.assert_succeeded().said
    assert stat.S_ISCHR(mode)
    assert device == os.makedev(1, 3)
    assert masked in ("", "ENOENT", "EACCES")
