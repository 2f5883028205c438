"""Group C, what must keep working: real toolchains run under the default profile.

Numbers after "case" are those of the table in this directory's README.md.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB

pytestmark = [pytest.mark.kernel, pytest.mark.once]

HELLO_C = b"""
#include <pthread.h>
#include <stdio.h>
static void *same(void *x) { return x; }
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, same, 0);
    pthread_join(thread, 0);
    return puts("hello") < 0;
}
"""
HELLO_CPP = b"""
#include <algorithm>
#include <iostream>
#include <thread>
#include <vector>
int main() {
    std::vector<int> v{3, 1, 2};
    std::thread sorting([&] { std::sort(v.begin(), v.end()); });
    sorting.join();
    std::cout << "hello" << v[0] << std::endl;
}
"""
GOOD_C = b"""
#include <stdlib.h>
int main(void) { volatile char *p = malloc(10); p[3] = 1; free((void *)p); return 0; }
"""
OVERFLOW_C = b"""
#include <stdlib.h>
int main(void) { volatile char *p = malloc(10); p[10] = 1; return 0; }
"""
HELLO_JAVA = b'public class Hello { public static void main(String[] a) { System.out.println("hello"); } }\n'
JAVA = ("-XX:ActiveProcessorCount=1", "-Xmx256m")
GENEROUS = {
    "memory": 1024 * MiB,
    "disk": 256 * MiB,
    "pids": 256,
    "wall_time": 60 * SLOWDOWN,
    "cpu_time": 60 * SLOWDOWN,
}


@dataclass(frozen=True)
class Toolchain:
    """What is compiled how, and how the result is run to say hello."""

    program: str
    source: str
    text: bytes
    compiling: tuple[str, ...]
    running: tuple[str, ...]
    output: bytes = b"hello\n"


HELLO = ("./hello",)
TOOLCHAINS = [
    Toolchain("gcc", "a.c", HELLO_C, ("gcc", "-O2", "-pthread", "a.c", "-o", "hello"), HELLO),
    Toolchain("clang", "a.c", HELLO_C, ("clang", "-O2", "-pthread", "a.c", "-o", "hello"), HELLO),
    Toolchain(
        "g++", "a.cc", HELLO_CPP, ("g++", "-O1", "-pthread", "a.cc", "-o", "hello"), HELLO, b"hello1\n"
    ),
    Toolchain(
        "clang++", "a.cc", HELLO_CPP, ("clang++", "-pthread", "a.cc", "-o", "hello"), HELLO, b"hello1\n"
    ),
    Toolchain("gcc", "a.c", GOOD_C, ("gcc", "-g", "-fsanitize=address", "a.c", "-o", "hello"), HELLO, b""),
    Toolchain("javac", "Hello.java", HELLO_JAVA, ("javac", "Hello.java"), ("java", *JAVA, "Hello")),
    Toolchain("java", "none", b"", ("java", *JAVA, "-version"), ("java", *JAVA, "-version"), b""),
    Toolchain(
        "node", "a.js", b"setTimeout(() => console.log('hello'), 10)", ("node", "--version"), ("node", "a.js")
    ),
    Toolchain("perl", "a.pl", b'print "hello\\n";', ("perl", "-c", "a.pl"), ("perl", "a.pl")),
    Toolchain("ruby", "a.rb", b"puts 'hello'", ("ruby", "-c", "a.rb"), ("ruby", "a.rb")),
    Toolchain("lua5.4", "a.lua", b"print('hello')", ("lua5.4", "a.lua"), ("lua5.4", "a.lua")),
    Toolchain("bash", "a.sh", b"cp /bin/echo e && ./e hello | cat", ("bash", "-n", "a.sh"), ("bash", "a.sh")),
    Toolchain("git", "a", b"a", ("git", "init", "-q", "r"), ("git", "-C", "r", "status", "-s"), b""),
    Toolchain("tar", "a", b"a", ("tar", "cf", "a.tar", "a"), ("tar", "xf", "a.tar", "-O"), b"a"),
]
PRESENT = [chain for chain in TOOLCHAINS if Path("/usr/bin", chain.program).exists()]


@pytest.mark.parametrize("chain", PRESENT, ids=[" ".join(chain.compiling)[:30] for chain in PRESENT])
def test_toolchains_work(sandbox: Launcher, chain: Toolchain) -> None:
    """Case 68: what the host has of compilers, sanitizers, virtual machines and tools works under the profile."""
    with sandbox.job() as job:
        files = {chain.source: chain.text}
        job.run(chain.compiling, files=files, plan={"keep": True}, **GENEROUS).assert_succeeded()
        assert job.run(chain.running, **GENEROUS).assert_succeeded().stdout == chain.output


@pytest.mark.skipif(not Path("/usr/bin/gcc").exists(), reason="needs a C compiler in the image `host`")
def test_address_sanitizer_finds_an_overflow(sandbox: Launcher) -> None:
    """Case 68: a sanitized program reports what it is made to find."""
    with sandbox.job() as job:
        argv = ["gcc", "-g", "-fsanitize=address", "bad.c", "-o", "bad"]
        job.run(argv, files={"bad.c": OVERFLOW_C}, plan={"keep": True}, **GENEROUS).assert_succeeded()
        bad = job.run(["./bad"], **GENEROUS)
    assert bad.ended["exit_code"] not in (0, None)
    assert b"heap-buffer-overflow" in bad.stderr


def test_python_works(sandbox: Launcher) -> None:
    """Case 68: processes, threads, sub-programs, locks, sqlite, sockets and temporary files of Python."""
    ran = sandbox.run(
        """
import asyncio, concurrent.futures, multiprocessing, sqlite3, ssl, subprocess, tempfile
def square(x):
    return x * x
with multiprocessing.get_context("fork").Pool(3) as pool:
    by_processes = pool.map(square, range(5))
with concurrent.futures.ThreadPoolExecutor(3) as threads:
    by_threads = list(threads.map(square, range(5)))
lock = multiprocessing.Lock()
with lock, tempfile.TemporaryFile() as file:
    file.write(b"x")
async def program():
    process = await asyncio.create_subprocess_exec("echo", "hi", stdout=subprocess.PIPE)
    return (await process.communicate())[0].decode()
say([by_processes, by_threads, sqlite3.connect("db").execute("select 6 * 7").fetchone(),
    asyncio.run(program())])
""",
        **GENEROUS,
    )
    squares = [0, 1, 4, 9, 16]
    assert ran.assert_succeeded().said == [squares, squares, [42], "hi\n"]


def test_a_debugger_works_on_ones_own_child(sandbox: Launcher) -> None:
    """Case 68: tracing a child of the same user is allowed or refused cleanly, and never reaches further."""
    ran = sandbox.run(
        """
child = os.fork()
if child == 0:
    time.sleep(30)
    os._exit(0)
attached = sc(101, 16, child, 0, 0)
if attached == 0:
    os.waitpid(child, 0)
os.kill(child, 9)
say(attached)
"""
    )
    assert ran.assert_succeeded().said in (0, "EPERM", "ENOSYS")
