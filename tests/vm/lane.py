"""Run the kernel tests where cgroup v2 is all there is: a Debian kernel under software emulation.

The host makes two disks (image.py), boots QEMU with them and prints what the guest writes to its
second serial line: pytest's output. The first line is the kernel's console, kept in a file. The
guest (guest.sh) leaves pytest's exit status and JUnit report on the second disk and switches
itself off; the host reads them when QEMU has ended. No status on the disk means that the guest
died, which fails like a timeout does, with the end of the kernel's console shown.

Everything is 10 to 15 times slower in there: STOCKADE_TEST_SLOWDOWN tells the tests.
"""

import contextlib
import fcntl
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import image

SLOWDOWN = 15
SILENCE = 60.0  # seconds after which a line says that the machine is still running
RESERVE = 90.0  # seconds of the time-out that the guest has to start, to report and to stop
INTERRUPTED = 124  # what timeout(1) in the guest says of tests that it ended
DIED, TIMED_OUT, UNPREPARED = 70, 71, 72  # exit statuses; pytest's own end at 5


def qemu_command(
    machine: image.Machine, product: Path, console: Path, prefix: Path, timeout: float
) -> list[str]:
    """QEMU with both disks; the root disk is shared by runs, so what is written to it is thrown away."""
    cpus = min(os.cpu_count() or 1, 4)
    line = (
        "console=ttyS0 loglevel=5 cgroup_no_v1=all panic=-1 oops=panic mitigations=off"
        f" prefix={prefix} slowdown={SLOWDOWN} seconds={max(1, timeout - RESERVE):.0f} CI={os.environ.get('CI', '')}"
    )
    return [
        "qemu-system-x86_64",
        "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max,la57=off",
        "-smp", str(cpus), "-m", "2G",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(machine.kernel), "-initrd", str(machine.initramfs), "-append", line,
        "-drive", f"file={machine.root},if=virtio,format=raw,snapshot=on",
        "-drive", f"file={product},if=virtio,format=raw,cache=unsafe",
        "-serial", f"file:{console}", "-serial", "stdio",
    ]  # fmt: skip


def watch(qemu: subprocess.Popen[bytes], timeout: float) -> bool:
    """Print what the guest says until QEMU ends; False when the time ran out first."""
    assert qemu.stdout is not None
    deadline = time.monotonic() + timeout
    spoken = started = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(qemu.stdout, selectors.EVENT_READ)
        while (now := time.monotonic()) < deadline:
            if selector.select(min(deadline - now, SILENCE)):
                data = os.read(qemu.stdout.fileno(), 65536)
                if not data:
                    return True
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
                spoken = time.monotonic()
            elif time.monotonic() - spoken >= SILENCE:
                image.say(f"still running after {time.monotonic() - started:.0f} s")
    return False


def boot(command: list[str], timeout: float) -> bool:
    """Run the machine to its end; False when it had to be ended."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:
        try:
            return watch(qemu, timeout)
        finally:
            qemu.kill()


def verdict(results: Path, console: Path, in_time: bool, timeout: float) -> int:
    """The exit status: pytest's, or one that says how the machine failed."""
    status = results / "status"
    text = status.read_text().strip() if status.exists() else ""
    if in_time and text.isdigit() and int(text) != INTERRUPTED:
        image.say(f"report: {results / 'junit.xml'}")
        return int(text)
    if in_time and text:
        image.say(f"FAILED: the tests were interrupted after {timeout - RESERVE:.0f} s")
        return TIMED_OUT
    said = console.read_text(errors="replace") if console.exists() else "no kernel was started\n"
    sys.stdout.write("".join(said.splitlines(keepends=True)[-40:]))
    image.say("FAILED: " + ("the guest died" if in_time else f"not done after {timeout:.0f} s"))
    return DIED if in_time else TIMED_OUT


def main(arguments: list[str]) -> int:
    """Run once, as the environment and the arguments ask."""
    prefix = Path(os.environ.get("PREFIX", "/opt/stockade"))
    series = os.environ.get("STOCKADE_VM_KERNEL", "6.1")
    timeout = float(os.environ.get("STOCKADE_VM_TIMEOUT", "2400"))
    cache = prefix / "vm"
    if series not in image.META_PACKAGES:
        image.say(f"STOCKADE_VM_KERNEL={series}: only {', '.join(image.META_PACKAGES)} are known")
        return UNPREPARED
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with alone(cache / "lock", timeout):
            return run(arguments or ["-m", "kernel and not e2e and not once"], prefix, series, timeout)
    except image.Unprepared as error:
        image.say(f"FAILED: {error}")
        return UNPREPARED


@contextlib.contextmanager
def alone(path: Path, timeout: float) -> Iterator[None]:
    """One run at a time: they share the cache and the place of the results."""
    deadline = time.monotonic() + timeout
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise image.Unprepared(f"another run has held {path} for {timeout:.0f} s") from None
                image.say("waiting for another run to end")
                time.sleep(10)
        yield


def run(arguments: list[str], prefix: Path, series: str, timeout: float) -> int:
    """One run: prepare what is missing, boot, read the results."""
    cache = prefix / "vm"
    results = cache / "results"
    for scratch in (*cache.glob("making-*"), *cache.glob("stage-*")):
        shutil.rmtree(scratch)  # of a run that was killed
    image.install_host_packages()
    machine = image.machine(cache, series)
    results.mkdir(exist_ok=True)
    product, console = cache / "product.ext4", results / "console.log"
    console.unlink(missing_ok=True)
    try:
        image.product_disk(product, prefix, arguments)
        image.say(f"booting {machine.root.parent.name}, at most {timeout:.0f} s")
        in_time = boot(qemu_command(machine, product, console, prefix, timeout), timeout)
        image.read_from_disk(product, ("status", "junit.xml"), results)
    finally:
        product.unlink(missing_ok=True)
    return verdict(results, console, in_time, timeout)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("tests/vm/run: must run as root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the machine is ended as well
    sys.exit(main(sys.argv[1:]))
