"""Group C: which system calls a job can make.

System call numbers are x86-64's. Numbers after "case" are those of the table in this directory's README.md.
"""

import os
import platform

import pytest

from tests.census import read
from tests.sandboxes import Launcher

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the system call numbers here are x86-64's"),
]

SIGSYS = 31
REFUSED = {"EPERM", "ENOSYS"}

DENIED: dict[str, tuple[int, str]] = {
    "acct": (163, "EPERM"),
    "add_key": (248, "ENOSYS"),
    "adjtimex": (159, "EPERM"),
    "bpf": (321, "EPERM"),
    "chroot": (161, "EPERM"),
    "clock_settime": (227, "EPERM"),
    "create_module": (174, "ENOSYS"),
    "delete_module": (176, "EPERM"),
    "fanotify_init": (300, "EPERM"),
    "finit_module": (313, "EPERM"),
    "fsconfig": (431, "EPERM"),
    "fsmount": (432, "EPERM"),
    "fsopen": (430, "EPERM"),
    "fspick": (433, "EPERM"),
    "get_kernel_syms": (177, "ENOSYS"),
    "init_module": (175, "EPERM"),
    "io_uring_enter": (426, "ENOSYS"),
    "io_uring_register": (427, "ENOSYS"),
    "io_uring_setup": (425, "ENOSYS"),
    "ioperm": (173, "EPERM"),
    "iopl": (172, "EPERM"),
    "kcmp": (312, "EPERM"),
    "kexec_file_load": (320, "EPERM"),
    "kexec_load": (246, "EPERM"),
    "keyctl": (250, "ENOSYS"),
    "lookup_dcookie": (212, "EPERM"),
    "mbind": (237, "EPERM"),
    "migrate_pages": (256, "EPERM"),
    "mount": (165, "EPERM"),
    "mount_setattr": (442, "EPERM"),
    "move_mount": (429, "EPERM"),
    "move_pages": (279, "EPERM"),
    "name_to_handle_at": (303, "EPERM"),
    "nfsservctl": (180, "ENOSYS"),
    "open_by_handle_at": (304, "EPERM"),
    "open_tree": (428, "EPERM"),
    "perf_event_open": (298, "EPERM"),
    "pidfd_getfd": (438, "EPERM"),
    "pivot_root": (155, "EPERM"),
    "process_madvise": (440, "EPERM"),
    "process_vm_writev": (311, "EPERM"),
    "query_module": (178, "ENOSYS"),
    "quotactl": (179, "EPERM"),
    "reboot": (169, "EPERM"),
    "request_key": (249, "ENOSYS"),
    "setdomainname": (171, "EPERM"),
    "sethostname": (170, "EPERM"),
    "setns": (308, "EPERM"),
    "settimeofday": (164, "EPERM"),
    "swapoff": (168, "EPERM"),
    "swapon": (167, "EPERM"),
    "syslog": (103, "EPERM"),
    "umount2": (166, "EPERM"),
    "uselib": (134, "EPERM"),
    "userfaultfd": (323, "EPERM"),
    "ustat": (136, "EPERM"),
    "vhangup": (153, "EPERM"),
}
"""What the default profile answers, however the arguments look."""

EITHER = {
    "create_module", "get_kernel_syms", "lookup_dcookie", "nfsservctl", "process_vm_writev", "query_module",
    "uselib",
    "ustat",
}  # fmt: skip
"""Calls that kernels dropped long ago: refused is enough."""

ATTEMPT_DENIED = f"""
def retry():
    return {{name: sc(number, 0, 0, 0, 0, 0, 0) for name, (number, _) in {DENIED}.items()}}
"""


def expected(answers: dict[str, str]) -> dict[str, str]:
    """Those answers that are not what the table says."""
    return {
        name: answer
        for name, answer in answers.items()
        if answer != DENIED[name][1] and not (name in EITHER and answer in REFUSED)
    }


MACHINE_CODE = """
import mmap
def run_code(code):
    "Call raw instructions; returns what is left in the accumulator."
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return ctypes.CFUNCTYPE(ctypes.c_long)(address)()
"""


@pytest.mark.parametrize("number", [20, 1, 11, 102, 120])
def test_the_32_bit_entry_kills(sandbox: Launcher, number: int) -> None:
    """Case 49: `int 0x80` ends the program by SIGSYS, whichever call it asks for."""
    ran = sandbox.run(
        f"{MACHINE_CODE}\nsay('before')\nrun_code(b'\\xb8' + struct.pack('<I', "
        f"{number}) + b'\\xcd\\x80\\xc3')"
    )
    assert ran.said == "before"
    assert (ran.ended["signal"], ran.ended["killed"]) == (SIGSYS, None)


def test_machine_code_of_ones_own_runs(sandbox: Launcher) -> None:
    """Case 49: the same way of running code works when it makes no call (so the test above means
    something).
    """
    ran = sandbox.run(f"{MACHINE_CODE}\nsay(run_code(b'\\xb8\\x2a\\x00\\x00\\x00\\xc3'))")
    assert ran.assert_succeeded().said == 42


def test_the_x32_calls_do_not_exist(sandbox: Launcher) -> None:
    """Case 50: numbers with bit 30 answer ENOSYS."""
    ran = sandbox.run("say([sc(0x40000000 | n, 0, 0, 0) for n in (0, 1, 39, 59, 165, 272, 512, 520, 547)])")
    assert ran.assert_succeeded().said == ["ENOSYS"] * 9


def test_denied_calls_answer_exactly(sandbox: Launcher) -> None:
    """Case 51: each denied call gives the errno that the table names."""
    ran = sandbox.run(f"{ATTEMPT_DENIED}\nsay(retry())")
    assert expected(ran.assert_succeeded().said) == {}


def test_unknown_calls_do_not_exist(sandbox: Launcher) -> None:
    """Case 52: numbers that the filter does not know answer ENOSYS, so that libraries fall back."""
    ran = sandbox.run(
        "say([sc(n) for n in (337, 350, 400, 423, 480, 999, 4095, 65535, 0x3fffffff, 0x7fffffff, -1)])"
    )
    assert ran.assert_succeeded().said == ["ENOSYS"] * 11


def test_no_flag_of_clone_makes_a_namespace(sandbox: Launcher) -> None:
    """Case 53: each namespace flag is refused, alone, with others, and with high bits set."""
    ran = sandbox.run(
        """
flags = [0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
def clone(value):
    answer = sc(56, value, 0, 0, 0, 0)
    if answer == 0:
        os._exit(0)
    return answer
say([[clone(f | extra) for f in flags] for extra in (17, 0, 17 | 1 << 40, 0x100 | 0x4000 | 17)])
"""
    )
    for row in ran.assert_succeeded().said:
        assert row == ["EPERM"] * 7


def test_only_four_families_of_sockets_exist(sandbox: Launcher) -> None:
    """Case 55: UNIX, INET, INET6 and the routing netlink; every other family answers EAFNOSUPPORT."""
    ran = sandbox.run(
        """
answers = {}
for family in range(47):
    for kind in range(1, 7):
        for call in ("socket", "pair"):
            slot = ctypes.create_string_buffer(8)
            answer = sc(41, family, kind, 0) if call == "socket" else sc(53, family, kind, 0, slot)
            answers.setdefault(family, set()).add("ok" if isinstance(answer, int) else answer)
            if isinstance(answer, int):
                [os.close(d) for d in ([answer] if call == "socket" else struct.unpack("=ii", slot.raw))]
high = [sc(41, 1 << 32 | 40, 1, 0), sc(41, 17, 3 | 0o2000000, 0x0300)]
netlink = {protocol: sc(41, 16, 3, protocol) for protocol in range(23)}
raw = [sc(41, 2, 3, 1), sc(41, 10, 3, 58), sc(41, 2, 10, 0)]
say([{f: sorted(a) for f, a in answers.items()}, high, netlink, raw])
"""
    )
    families, high, netlink, raw = ran.assert_succeeded().said
    usable = {family for family, answers in families.items() if "ok" in answers}
    assert usable == {"1", "2", "10", "16"}
    others = {family: answers for family, answers in families.items() if family not in usable}
    assert {family: a for family, a in others.items() if a != ["EAFNOSUPPORT"]} == {}
    assert set(high) == {"EAFNOSUPPORT"}
    assert isinstance(netlink.pop("0"), int)
    assert not [protocol for protocol, answer in netlink.items() if isinstance(answer, int)]
    assert not [answer for answer in raw if isinstance(answer, int)]


def test_io_uring_does_not_exist(sandbox: Launcher) -> None:
    """Case 56: rings, whose operations no filter sees, cannot be made."""
    ran = sandbox.run("say([sc(425, 1, b'\\0' * 120), sc(426, 0, 1, 0, 0, 0), sc(427, 0, 0, 0, 0)])")
    assert set(ran.assert_succeeded().said) <= REFUSED


def test_page_faults_are_not_handled_by_programs(sandbox: Launcher) -> None:
    """Case 57: userfaultfd is refused, in user mode only too, and has no device."""
    ran = sandbox.run("say([sc(323, 0), sc(323, 1), tried(os.open, '/dev/userfaultfd', os.O_RDWR)])")
    assert ran.assert_succeeded().said == ["EPERM", "EPERM", "ENOENT"]


def test_programs_for_the_kernel_cannot_be_loaded(sandbox: Launcher) -> None:
    """Case 58: bpf and perf_event_open are refused with arguments that would work elsewhere."""
    ran = sandbox.run(
        """
attributes = struct.pack("=IIQQQQ", 1, 112, 0, 0, 0, 0).ljust(112, b"\\0")
say([sc(321, 5, b"\\0" * 120, 120), sc(321, 0, struct.pack("=IIII", 2, 4, 4, 1).ljust(72, b"\\0"), 72),
    sc(298, attributes, 0, -1, -1, 0)])
"""
    )
    assert ran.assert_succeeded().said == ["EPERM"] * 3


OWN_FILTER = """
def own_filter(flags):
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7fff0000))
    program = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(code)))
    return sc(317, 1, flags, program)
"""


def test_a_filter_of_ones_own_loosens_nothing(sandbox: Launcher) -> None:
    """Case 59: an allow-all filter, thread-synchronised or with a listener, leaves every denial in place."""
    ran = sandbox.run(
        f"{ATTEMPT_DENIED}{OWN_FILTER}\nadded = [own_filter(f) for f in (0, 1, 8)]\nsay([added, retry()])"
    )
    _, answers = ran.assert_succeeded().said
    assert expected(answers) == {}


def test_the_filter_is_inherited_everywhere(sandbox: Launcher) -> None:
    """Case 60: children, programs that they execute and threads are filtered, without new privileges."""
    ran = sandbox.run(
        """
import subprocess
def state(text):
    return sorted(line for line in text.splitlines() if line.startswith(("Seccomp:", "NoNewPrivs:")))
found = [state(content("/proc/self/status"))]
found.append(state(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout))
def thread():
    found.append(state(content(f"/proc/self/task/{threading.get_native_id()}/status")))
    found.append(sc(272, 0x10000000))
t = threading.Thread(target=thread)
t.start()
t.join()
if os.fork() == 0:
    os._exit(0 if sc(272, 0x10000000) == "EPERM" else 1)
say([found, os.wait()[1]])
"""
    )
    found, child = ran.assert_succeeded().said
    assert found == [["NoNewPrivs:\t1", "Seccomp:\t2"]] * 3 + ["EPERM"]
    assert child == 0


def test_the_personality_stays(sandbox: Launcher) -> None:
    """Case 61: executable data and a fixed layout cannot be switched on; asking is allowed."""
    ran = sandbox.run(
        "say([sc(135, 0xffffffff), sc(135, 0x0400000), sc(135, 0x0040000), sc(135, 0x0440000), sc(135, 8)])"
    )
    asked, *refused = ran.assert_succeeded().said
    assert asked == 0
    assert refused[0] == refused[2] == "EPERM"
    assert not [answer for answer in refused[:3] if isinstance(answer, int)]


def test_hardware_tables_and_ports_stay_closed(sandbox: Launcher) -> None:
    """Case 62: segments, I/O ports and virtual 8086 mode are refused."""
    ran = sandbox.run("say([sc(154, 1, b'\\0' * 16, 16), sc(172, 3), sc(173, 0, 1024, 1)])")
    assert set(ran.assert_succeeded().said) <= REFUSED


def modules() -> set[str]:
    """Names of the loaded modules; none where the kernel has no modules at all."""
    return {line.split()[0] for line in read("/proc/modules").splitlines()}


def test_no_module_is_loaded_on_a_jobs_behalf(sandbox: Launcher) -> None:
    """Case 64: asking for rare protocols loads nothing into the host's kernel."""
    before = modules()
    ran = sandbox.run(
        """
rare = [(9, 5, 0), (2, 5, 132), (2, 1, 132), (2, 6, 33), (2, 2, 136), (21, 5, 0), (30, 1, 0), (38, 5, 0),
    (16, 3, 6)]
say([sc(41, *each) for each in rare])
"""
    )
    assert not [answer for answer in ran.assert_succeeded().said if isinstance(answer, int)]
    assert modules() == before


def test_what_old_exploits_began_with_is_refused(sandbox: Launcher) -> None:
    """Case 66 (CVE-2022-0185, CVE-2024-1086): file system contexts, nftables and xfrm are out of reach."""
    ran = sandbox.run(
        "say([sc(430, b'ext4', 0), sc(430, b'cgroup2', 0), sc(41, 16, 3, 12), sc(41, 16, 3, 6)])"
    )
    fs, fs2, nft, xfrm = ran.assert_succeeded().said
    assert fs == fs2 == "EPERM"
    assert not isinstance(nft, int)
    assert not isinstance(xfrm, int)


def test_routing_netlink_changes_nothing(sandbox: Launcher) -> None:
    """Case 66: the one netlink protocol that is there tells about the job's links and changes none."""
    ran = sandbox.run(
        """
s = socket.socket(16, 3, 0)
body = struct.pack("=BxHiII", 0, 0, 1, 0, 1)
s.send(struct.pack("=IHHII", 16 + len(body), 16, 5, 1, 0) + body)
answer = s.recv(4096)
say([struct.unpack("=H", answer[4:6])[0], errno.errorcode.get(-struct.unpack("=i", answer[16:20])[0])])
"""
    )
    assert ran.assert_succeeded().said == [2, "EPERM"]


def test_the_page_cache_cannot_be_measured(sandbox: Launcher) -> None:
    """Case 67: cachestat, which tells what others read, does not exist."""
    ran = sandbox.run(
        "f = os.open('/bin/sh', os.O_RDONLY)\nsay(sc(451, f, b'\\0' * 16, "
        "ctypes.create_string_buffer(40), 0))"
    )
    assert ran.assert_succeeded().said == "ENOSYS"


def test_the_profile_that_was_applied_is_said(sandbox: Launcher) -> None:
    """What was isolated, and by what, is part of the answer: profile digest, namespaces, capabilities,
    kernel.
    """
    isolation = sandbox.run(["/bin/true"]).assert_succeeded().ended["isolation"]
    assert isolation["seccomp"]["profile"] == "default"
    assert len(isolation["seccomp"]["sha256"]) == 64
    assert set(isolation["namespaces"]) >= {"mount", "pid", "net", "ipc", "uts", "cgroup", "user"}
    assert isolation["no_new_privs"] is True
    assert isolation["cgroup"] in ("v1", "v2")
    assert isolation["user_namespace"]["size"] == 65536
    assert isolation["kernel"] == os.uname().release
    assert isolation["image"] == "host"
