"""Group C, what must keep working: real toolchains run under the default profile.

Numbers after "case" are those of the table in this directory's README.md.
"""

from pathlib import Path

import pytest

from tests.census import SLOWDOWN
from tests.sandboxes import Launcher, MiB

"""What the default profile answers, however the arguments look."""
"""Calls that kernels dropped long ago: refused is enough."""

pytestmark = pytest.mark.kernel


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


GENEROUS = {
    "memory": 1024 * MiB,
    "disk": 256 * MiB,
    "pids": 256,
    "wall_time": 60 * SLOWDOWN,
    "cpu_time": 60 * SLOWDOWN,
}


def compile_and_run(
    sandbox: Launcher, compile_argv: list[str], run_argv: list[str], files: dict[str, bytes]
) -> bytes:
    """Two steps as a judge has them: what the second one printed."""
    with sandbox.job() as job:
        job.run(compile_argv, files=files, plan={"keep": True}, **GENEROUS).assert_succeeded()
        return job.run(run_argv, **GENEROUS).assert_succeeded().stdout


def compilers(*names: str) -> list[str]:
    """Those of the programs that the host, and so the image `host`, has."""
    return [name for name in names if Path("/usr/bin", name).exists()]


@pytest.mark.parametrize("compiler", compilers("gcc", "clang"))
def test_c_works(sandbox: Launcher, compiler: str) -> None:
    """Case 68: a threaded C program is compiled and runs."""
    out = compile_and_run(sandbox, [compiler, "-O2", "-pthread", "a.c", "-o", "a"], ["./a"], {"a.c": HELLO_C})
    assert out == b"hello\n"


@pytest.mark.parametrize("compiler", compilers("g++", "clang++"))
def test_cpp_works(sandbox: Launcher, compiler: str) -> None:
    """Case 68: the C++ standard library's headers are compiled and the result runs."""
    out = compile_and_run(
        sandbox, [compiler, "-O1", "-pthread", "a.cc", "-o", "a"], ["./a"], {"a.cc": HELLO_CPP}
    )
    assert out == b"hello1\n"


@pytest.mark.parametrize("compiler", compilers("gcc", "clang"))
def test_address_sanitizer_works(sandbox: Launcher, compiler: str) -> None:
    """Case 68: sanitized programs run, leak check included, and find what they look for."""
    with sandbox.job() as job:
        files = {"good.c": GOOD_C, "bad.c": OVERFLOW_C}
        for name in ("good", "bad"):
            argv = [compiler, "-g", "-fsanitize=address", f"{name}.c", "-o", name]
            job.run(
                argv, files=files if name == "good" else None, plan={"keep": True}, **GENEROUS
            ).assert_succeeded()
        job.run(["./good"], plan={"keep": True}, **GENEROUS).assert_succeeded()
        bad = job.run(["./bad"], **GENEROUS)
    assert bad.ended["exit_code"] not in (0, None)
    assert b"heap-buffer-overflow" in bad.stderr


@pytest.mark.parametrize("machine", compilers("java"))
def test_java_works(sandbox: Launcher, machine: str) -> None:
    """Case 68: the compiler, where there is one, and the virtual machine run."""
    options = ["-XX:ActiveProcessorCount=1", "-Xmx256m"]
    if not Path("/usr/bin/javac").exists():
        ran = sandbox.run([machine, *options, "-version"], **GENEROUS).assert_succeeded()
        assert b"version" in ran.stderr
        return
    out = compile_and_run(
        sandbox, ["javac", "Hello.java"], [machine, *options, "Hello"], {"Hello.java": HELLO_JAVA}
    )
    assert out == b"hello\n"


COMMON: list[tuple[list[str], bytes]] = [
    (["/usr/bin/node", "-e", "setTimeout(() => console.log('hello'), 10)"], b"hello\n"),
    (["/usr/bin/perl", "-e", 'print "hello\\n"'], b"hello\n"),
    (["/usr/bin/ruby", "-e", "puts 'hello'"], b"hello\n"),
    (["/usr/bin/lua5.4", "-e", "print('hello')"], b"hello\n"),
    (["/bin/bash", "-c", "cp /bin/echo /work/e && ./e hello | cat"], b"hello\n"),
    (["/usr/bin/git", "init", "-q", "repository"], b""),
    (["/bin/tar", "cf", "/dev/null", "/etc"], b""),
]


PRESENT = [row for row in COMMON if Path(row[0][0]).exists()]


@pytest.mark.parametrize(("argv", "output"), PRESENT, ids=[row[0][0] for row in PRESENT])
def test_common_programs_work(sandbox: Launcher, argv: list[str], output: bytes) -> None:
    """Case 68: those interpreters and everyday tools that the host has exit 0 under the default profile."""
    assert sandbox.run(argv, **GENEROUS).assert_succeeded().stdout == output


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
