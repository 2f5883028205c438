"""What the profiles refuse and let work on the real kernel: root with every capability, the filter alone."""

import ctypes
import errno
import itertools
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.sandbox import seccomp

pytestmark = pytest.mark.kernel

PROFILES = Path(__file__).parents[2] / "policies" / "syscalls"
PROGRAMS = seccomp.load_profiles(PROFILES)
NUMBERS = seccomp.MACHINES[os.uname().machine].numbers
PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER = 38, 1
NEW_FLAGS = {
    "NEWTIME": 0x80,
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
    "NEWUSER": 0x10000000,
    "NEWPID": 0x20000000,
    "NEWNET": 0x40000000,
}
# Kernels that have these two answer them before any filter (kernel/seccomp.c), and not kindly.
NEVER_FILTERED = {"uretprobe", "uprobe"}
LIBC = ctypes.CDLL(None, use_errno=True)


class Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def sc(number: int | str, *arguments: int) -> str:
    """One system call: the name of its errno, or "ok"."""
    if isinstance(number, str):
        number = NUMBERS[number]
    full = [ctypes.c_ulong(each) for each in (number, *arguments, *[0] * (6 - len(arguments)))]
    LIBC.syscall.restype = ctypes.c_long
    return "ok" if LIBC.syscall(*full) != -1 else errno.errorcode.get(ctypes.get_errno(), "?")


def confine(bpf: bytes, flags: int = 0) -> int:
    """Attach a filter to this process for good; seccomp(2)'s result."""
    assert LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    program = Filter(len(bpf) // 8, bpf)
    result: int = LIBC.syscall(NUMBERS["seccomp"], SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))
    return result


def inside(profile: str, story: Callable[[], Any]) -> Any:
    """What ``story`` returns in a forked child under a profile, as JSON carries it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            assert confine(PROGRAMS[profile].bpf) == 0
            os.write(writer, json.dumps(story()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the child failed; see its output"
    return json.loads(text)


REFUSED = {
    "EPERM": """
        mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr
        setns open_by_handle_at name_to_handle_at quotactl quotactl_fd fanotify_init fanotify_mark
        bpf perf_event_open userfaultfd memfd_secret vmsplice remap_file_pages
        kexec_load kexec_file_load init_module finit_module delete_module
        swapon swapoff acct reboot syslog sync vhangup nfsservctl lookup_dcookie sethostname setdomainname
        settimeofday clock_settime clock_adjtime adjtimex
        kcmp pidfd_getfd process_madvise process_mrelease process_vm_readv process_vm_writev ptrace
        move_pages migrate_pages mbind set_mempolicy set_mempolicy_home_node
        io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
        """,
    "ENOSYS": """
        clone3 io_uring_setup io_uring_enter io_uring_register add_key request_key keyctl
        cachestat statmount listmount listns open_tree_attr file_getattr file_setattr
        setxattrat getxattrat listxattrat removexattrat
        lsm_get_self_attr lsm_set_self_attr lsm_list_modules rseq_slice_yield
        """,
    "EAFNOSUPPORT": "socket socketpair",
}
REFUSED_X86 = """
    uselib _sysctl modify_ldt iopl ioperm ustat sysfs create_module get_kernel_syms query_module getpmsg
    putpmsg afs_syscall tuxcall security epoll_ctl_old epoll_wait_old vserver set_thread_area get_thread_area
    """


def expected_refusals() -> dict[str, str]:
    table = {name: wanted for wanted, names in REFUSED.items() for name in names.split()}
    if os.uname().machine == "x86_64":
        table |= dict.fromkeys(REFUSED_X86.split(), "EPERM")
    return table


def test_every_refused_call_has_its_exact_errno() -> None:
    """Called with zeros by root; the list is complete: whatever else the profile names is let through."""
    wanted = expected_refusals()
    assert inside("default", lambda: {name: sc(name) for name in wanted}) == wanted
    profile = json.loads((PROFILES / "default.json").read_bytes())
    allow = {
        name
        for name, rules in seccomp.read_rules(profile, seccomp.MACHINES[os.uname().machine].oci).items()
        if any(rule.verdict == seccomp.RET_ALLOW for rule in rules)
    }
    assert set(NUMBERS) - allow - NEVER_FILTERED == set(wanted) - {"socket", "socketpair", "ptrace"}


def test_numbers_that_no_table_knows_do_not_exist() -> None:
    """Newer than the newest, holes, and x32's bit 30: ENOSYS, so that programs fall back."""
    newest = max(NUMBERS.values())
    numbers = [*range(newest + 1, newest + 100), 999, 400, 0x40000000 | 39, 0x40000000 | newest, 0x7FFFFFFF]
    assert inside("default", lambda: [sc(number) for number in numbers]) == ["ENOSYS"] * len(numbers)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="i386 entry is a thing of x86_64")
def test_the_i386_entry_kills_with_sigsys() -> None:
    """mov eax, 20 (getpid); int 0x80; ret."""
    child = os.fork()
    if child == 0:
        confine(PROGRAMS["default"].bpf)
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSYS


def loaded_modules() -> list[str]:
    """Names of /proc/modules, empty for a kernel without modules."""
    path = Path("/proc/modules")
    return sorted(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else []


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_socket_families_by_allow_list(call: str) -> None:
    """AF_UNIX, AF_INET, AF_INET6 and NETLINK_ROUTE, of every type; no module is loaded by trying."""
    pair = ctypes.addressof((ctypes.c_int * 2)())
    before = loaded_modules()
    tried = [(family, kind, 0) for family in range(48) for kind in range(1, 7)]
    answers = dict(
        zip(tried, inside("default", lambda: [sc(call, *each, pair) for each in tried]), strict=True)
    )
    for (family, _, _), answer in answers.items():
        assert (answer == "EAFNOSUPPORT") == (family not in (1, 2, 10, 16)), (family, answer)
    if call == "socket":
        assert {answers[each] for each in itertools.product((1, 2, 10), (1, 2), (0,))} == {"ok"}
        assert answers[16, 2, 0] == "ok"
    assert loaded_modules() == before


def test_sockets_that_hide_behind_an_allowed_family() -> None:
    """Other netlink protocols, SCTP, DCCP, MPTCP, UDP-Lite, AF_PACKET's old name; upper halves of ints."""
    netlink = inside("default", lambda: [sc("socket", 16, 3, protocol) for protocol in range(1, 24)])
    assert netlink == ["EAFNOSUPPORT"] * 23
    internet = ((1, 132), (5, 132), (6, 33), (1, 262), (2, 136), (3, 255))
    for family in (2, 10):
        answers = inside("default", lambda f=family: [sc("socket", f, kind, p) for kind, p in internet])
        assert set(answers) == {"EPROTONOSUPPORT", "ESOCKTNOSUPPORT"}
        assert inside("default", lambda f=family: sc("socket", f, 10, 0x300)) == "ESOCKTNOSUPPORT"
    assert inside("default", lambda: sc("socket", 1 << 32 | 40, 1, 0)) == "EAFNOSUPPORT"
    assert inside("default", lambda: sc("socket", 1 << 32 | socket.AF_UNIX, 1, 0)) == "ok"
    assert inside("strict", lambda: [sc("socket", family, 2, 0) for family in (1, 2, 10, 16)]) == [
        "ok",
        *["EAFNOSUPPORT"] * 3,
    ]


@pytest.mark.parametrize("call", ["clone", "unshare"])
@pytest.mark.parametrize("flag", NEW_FLAGS)
def test_no_namespace_can_be_made(call: str, flag: str) -> None:
    """Each CLONE_NEW* bit alone, with others, and with a bit of the upper half."""
    bit = NEW_FLAGS[flag]
    tried = [bit, bit | 0x400, bit | 1 << 40, bit | 0x7E020080]
    answers = inside(
        "default", lambda: [sc(call, each | (signal.SIGCHLD if call == "clone" else 0)) for each in tried]
    )
    assert answers == ["EPERM"] * len(tried)


def test_arguments_are_compared_as_the_kernel_reads_them() -> None:
    """Terminal requests, huge pages, execution domains, prctl options; ints in their lower half only."""
    high = 1 << 32
    story = [
        *[("ioctl", 0, request) for request in (0x5412, 0x541C, 0x5423, 0x5412 | high, 0x5412 | 1 << 63)],
        *[("personality", value) for value in (0x0440000, 0x40000, 0x400000, 0x400000 | high, 1)],
        *[("prctl", option) for option in (62, 62 | high, 35)],
        *[("setsockopt", 0, 1 | high, option) for option in (26, 51, 26 | high)],
        *[("ptrace", request) for request in (0, 1, 3, 4, 5, 6, 9, 13, 24, 0x4200, 0x4206, 0x420C)],
    ]
    assert set(inside("default", lambda: [sc(*each) for each in story])) == {"EPERM"}
    name = ctypes.create_string_buffer(b"x")
    huge = [
        ("mmap", 0, 1 << 21, 3, 0x40022, high - 1, 0),
        ("mmap", 0, 1 << 21, 3, 0x40022 | 21 << 26, high - 1, 0),
        ("memfd_create", ctypes.addressof(name), 4),
        ("memfd_create", ctypes.addressof(name), 4 | high),
        ("shmget", 0, 1 << 21, 0x800 | 0o1600),
    ]
    assert inside("default", lambda: [sc(*each) for each in huge]) == ["ENOMEM"] * len(huge)
    works = [
        ("personality", 0xFFFF_FFFF),
        ("personality", 0),
        ("unshare", 0x400),
        ("memfd_create", huge[2][1], 0),
    ]
    assert inside("default", lambda: [sc(*each) for each in works]) == ["ok"] * len(works)


def test_a_filter_of_ones_own_lifts_nothing() -> None:
    """Allow-everything filters, with TSYNC and with a listener, only add to what is there."""

    def story() -> list[object]:
        allow_all = struct.pack("<HBBI", 0x06, 0, 0, seccomp.RET_ALLOW)
        attached = [
            confine(allow_all) == 0,
            confine(allow_all, flags=1) == 0,
            confine(allow_all, flags=8) > 0,
        ]
        return [*attached, {name: sc(name) for name in expected_refusals()} == expected_refusals()]

    assert inside("default", story) == [True] * 4


def test_children_threads_and_new_programs_keep_the_filter() -> None:
    """Seccomp: 2 and NoNewPrivs: 1 in each; the refusals are the same."""

    def story() -> list[object]:
        seen: list[object] = []

        def look() -> None:
            status = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
            seen.append(["Seccomp:\t2" in status, "NoNewPrivs:\t1" in status, sc("mount")])

        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        code = "import os; print(*[l for l in open('/proc/self/status') if l[:5] in ('Secco', 'NoNew')])"
        seen.append(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
        )
        return seen

    *tasks, program = inside("default", story)
    assert tasks == [[True, True, "EPERM"]] * 2
    assert program[:4] == ["NoNewPrivs:", "1", "Seccomp:", "2"]


CPP = '#include <thread>\n#include <cstdio>\nint main(){std::thread t([]{std::puts("42");});t.join();}\n'
LEAK = """#include <stdlib.h>
#include <stdio.h>
int main() { puts("42"); fflush(stdout); void *volatile p = malloc(7); p = 0; }
"""
JAVA = """public class A { public static void main(String[] a) throws Exception {
  Thread t = new Thread(() -> System.out.println(42)); t.start(); t.join();
  if (a.length > 0) new java.net.ServerSocket(0).close();
  if (a.length > 0) java.net.NetworkInterface.getNetworkInterfaces().nextElement();
  System.exit(new ProcessBuilder("true").start().waitFor()); } }
"""
RUST = """fn main() { std::thread::spawn(|| println!("42")).join().unwrap();
  assert!(std::process::Command::new("true").status().unwrap().success());
  std::fs::copy("a.rs", "b.rs").unwrap(); }
"""
GO = 'package main\nimport ("fmt"; "os/exec")\nfunc main() { exec.Command("true").Run(); fmt.Println(42) }\n'
NODE = """require("child_process").execSync("true"); require("fs").copyFileSync("a.js", "b.js");
  if (process.argv.length > 2) require("net").createServer().listen(0, function () { this.close(); });
  new (require("worker_threads").Worker)("console.log(42)", {eval: true});
"""
PYTHON = """import asyncio, multiprocessing, shutil, socket, subprocess, sys
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1]) == [1]
    subprocess.run(["true"], check=True); asyncio.run(asyncio.sleep(0)); shutil.copy("a.py", "b.py")
    if sys.argv[1:]: socket.create_server(("127.0.0.1", 0)).close()
    print(42)
"""
GIT = """git init -q g && cd g && cp ../a.sh . && git add . &&
git -c user.name=a -c user.email=a commit -qm a && echo 42
"""
GDB = """gdb -q -batch -ex 'break main' -ex run -ex 'info registers' -ex continue ./a >log 2>&1
grep -q 'Breakpoint 1, main' log && echo 42
"""
C = "int main(void){return 0;}\n"
TOOLS = {
    "gcc": ("a.c", '#include <stdio.h>\nint main(){puts("42");}\n', "gcc -O2 a.c -o a && ./a"),
    "g++": ("a.cc", CPP, "g++ -O1 -pthread a.cc -o a && ./a"),
    "clang++": ("a.cc", CPP, "clang++ -O1 -pthread a.cc -o a && ./a"),
    "javac": ("A.java", JAVA, "javac A.java && java A $NET"),
    "rustc": ("a.rs", RUST, "rustc a.rs -o a && ./a"),
    "go": ("a.go", GO, "GOCACHE=$PWD/c GOPATH=$PWD/p go run a.go"),
    "node": ("a.js", NODE, "node a.js $NET"),
    "python3": ("a.py", PYTHON, f"{sys.executable} a.py $NET"),
    "git": ("a.sh", GIT, "sh a.sh"),
}


def work(
    profile: str, directory: Path, file: str, text: str, command: str
) -> subprocess.CompletedProcess[str]:
    """Run a shell command under a profile in a directory with one file; $NET where sockets are allowed."""
    (directory / file).write_text(text)
    rustup = os.environ.get("RUSTUP_HOME", str(Path.home() / ".rustup"))  # rustc may be rustup's shim
    network = "" if profile == "strict" else "net"
    return subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ
        | {"HOME": str(directory), "TMPDIR": str(directory), "RUSTUP_HOME": rustup, "NET": network},
        preexec_fn=lambda: confine(PROGRAMS[profile].bpf),
    )


@pytest.mark.parametrize("profile", ["default", "strict"])
@pytest.mark.parametrize("tool", [tool for tool in TOOLS if shutil.which(tool)])
def test_tools_work(tool: str, profile: str, tmp_path: Path) -> None:
    """Compilers, runtimes with threads and children, git; internet sockets too, but for strict."""
    done = work(profile, tmp_path, *TOOLS[tool])
    assert (done.returncode, done.stdout.strip()) == (0, "42"), done.stderr


def test_leak_sanitizer_works_by_default(tmp_path: Path) -> None:
    """It attaches to its own threads with ptrace(2) at exit; the leak is found, not a fatal error."""
    done = work("default", tmp_path, "a.c", LEAK, "gcc -fsanitize=address a.c -o a && ./a")
    assert "7 byte(s) leaked in 1 allocation" in done.stderr
    assert (done.returncode, done.stdout.strip()) == (1, "42")


@pytest.mark.parametrize(
    ("profile", "answer"), [("debug", "42"), ("default", "")] if shutil.which("gdb") else []
)
def test_gdb_works_in_debug_only(profile: str, answer: str, tmp_path: Path) -> None:
    """Breakpoints, registers, fixed addresses."""
    done = work(profile, tmp_path, "a.c", C, f"gcc -g a.c -o a && {GDB}")
    assert done.stdout.strip() == answer, done.stderr
