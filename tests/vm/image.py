"""What the test machine is made of: a Debian kernel, a root disk, a disk with the product.

Kernel and root disk come from Debian's packages and are kept under PREFIX/vm, so they are made
once per kernel version; the product's disk is made for each run. Nothing is installed into the
host's /boot or /lib/modules, and nothing of the host but PREFIX/venv and the checkout is in the
guest. All file systems are ext4: 9p and, before Linux 6.3, tmpfs cannot be mounted idmapped.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST_PACKAGES = {  # a program that shows that the package is there: the package
    "qemu-system-x86_64": "qemu-system-x86",
    "depmod": "kmod",
    "busybox": "busybox-static",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "dpkg-deb": "dpkg",
}
GUEST_PACKAGES = (
    "ca-certificates",
    "curl",
    "g++",
    "iproute2",
    "kmod",
    "mount",
    "procps",
    "python3",
    "python3-venv",
)
META_PACKAGES = {"6.1": "linux-image-amd64", "6.12": "linux-image-6.12-amd64"}
BOOT_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "crc32c")
DRIVERS_KEPT = ("block", "virtio", "net")  # the others are for hardware that the machine lacks
COMMAND_SECONDS = 600
GUEST_SIZE = "4G"  # sparse
HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
NOT_COPIED = (".git", "__pycache__", ".*_cache", ".venv", "build", "*.egg-info", "node_modules")


class Unprepared(Exception):
    """The machine could not be made; the message says what failed."""


@dataclass(frozen=True)
class Machine:
    """The files from which a machine boots."""

    kernel: Path
    initramfs: Path
    root: Path


def say(text: str) -> None:
    """One line of progress."""
    print(f"test-v2: {text}", flush=True)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return its output; a failure shows the command and the end of what it printed."""
    words = [str(word) for word in command]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            words, cwd=cwd, env=env, text=True, check=False, timeout=COMMAND_SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unprepared(f"{' '.join(words)}: not done after {COMMAND_SECONDS} s") from None
    if done.returncode:
        raise Unprepared(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-3000:]}")
    return done.stdout


def install_host_packages() -> None:
    """Install with apt-get what the host lacks of HOST_PACKAGES."""
    missing = sorted({package for program, package in HOST_PACKAGES.items() if not shutil.which(program)})
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    run("apt-get", "-q", "update")
    run("apt-get", "-q", "install", "-y", "--no-install-recommends", *missing)


def kernel_package(series: str) -> str:
    """The package with the newest kernel of a series, e.g. linux-image-6.1.0-56-amd64."""
    for refresh in (False, True):
        if refresh:
            run("apt-get", "-q", "update")
        shown = subprocess.run(
            ["apt-cache", "depends", META_PACKAGES[series]], text=True, capture_output=True, check=False
        ).stdout
        for line in shown.splitlines():
            if "Depends: linux-image-" in line:
                return line.split()[-1]
    raise Unprepared(f"apt knows no kernel {META_PACKAGES[series]}")


def machine(cache: Path, series: str) -> Machine:
    """The machine with a Debian kernel series, made now or found in the cache."""
    recipe = repr((GUEST_PACKAGES, BOOT_MODULES, DRIVERS_KEPT)) + (HERE / "initramfs.sh").read_text()
    label = f"{series}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    home = cache / label
    if not home.exists():
        cache.mkdir(parents=True, exist_ok=True)
        for stale in cache.glob(f"{series}-*"):
            shutil.rmtree(stale)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as scratch:
            made = Path(scratch) / "machine"
            made.mkdir()
            make_machine(Path(scratch), made, kernel_package(series))
            made.rename(home)
    return Machine(home / "vmlinuz", home / "initramfs", home / "root.ext4")


def make_machine(scratch: Path, made: Path, package: str) -> None:
    """Download a kernel package and make kernel, initramfs and root disk of it."""
    say(f"downloading {package}")
    run("apt-get", "-q", "download", "-o", "APT::Sandbox::User=root", package, cwd=scratch)
    unpacked = scratch / "kernel"
    run("dpkg-deb", "-x", next(scratch.glob("*.deb")), unpacked)
    release = next((unpacked / "lib/modules").iterdir()).name
    shutil.copy(unpacked / f"boot/vmlinuz-{release}", made / "vmlinuz")
    drop_drivers(unpacked / "lib/modules" / release / "kernel")
    run("depmod", "-b", unpacked, release)
    make_initramfs(scratch / "first", unpacked, release, made / "initramfs")
    say(f"making a root disk with {', '.join(GUEST_PACKAGES)}")
    root = scratch / "root"
    run("mmdebstrap", "--variant=minbase", "--format=directory", f"--include={','.join(GUEST_PACKAGES)}",
        "--customize-hook=chroot \"$1\" useradd --system --user-group --no-create-home stockade",
        "bookworm", root)  # fmt: skip
    shutil.copytree(unpacked / "lib/modules", root / "usr/lib/modules", symlinks=True)
    make_disk(made / "root.ext4", root, GUEST_SIZE)


def drop_drivers(modules: Path) -> None:
    """Leave out the drivers of hardware, nine tenths of the package."""
    for directory in (modules / "sound", *(modules / "drivers").iterdir()):
        if directory.is_dir() and directory.name not in DRIVERS_KEPT:
            shutil.rmtree(directory)
    for name in ("ethernet", "wireless", "usb", "phy", "can", "wan", "fddi"):
        shutil.rmtree(modules / "drivers/net" / name, ignore_errors=True)


def make_initramfs(root: Path, unpacked: Path, release: str, target: Path) -> None:
    """A first file system of busybox and the modules that the disks need."""
    modules = root / "modules"
    modules.mkdir(parents=True)
    (root / "bin").mkdir()
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    shutil.copy(HERE / "initramfs.sh", root / "init")
    order = modules_in_order(unpacked, release)
    for path in order:
        decompress(path, modules)
    (modules / "order").write_text("".join(f"{plain_name(path)}\n" for path in order))
    listing = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
    archive = subprocess.run(
        ["busybox", "cpio", "-o", "-H", "newc"],
        cwd=root,
        input=listing.encode(),
        capture_output=True,
        check=True,
    ).stdout
    target.write_bytes(archive)


def modules_in_order(unpacked: Path, release: str) -> list[Path]:
    """The files of BOOT_MODULES and of what they depend on, dependencies first; built-in ones have none."""
    order: dict[Path, None] = {}
    for module in BOOT_MODULES:
        shown = run("modprobe", "-d", unpacked, "-S", release, "--show-depends", module)
        for line in shown.splitlines():
            if line.startswith("insmod "):
                order[Path(line.split()[1])] = None
    return list(order)


def plain_name(module: Path) -> str:
    """ext4.ko for ext4.ko.xz."""
    return module.name.removesuffix(".xz")


def decompress(module: Path, directory: Path) -> None:
    """Put a module into a directory, uncompressed: busybox's insmod knows no xz."""
    content = module.read_bytes()
    if module.suffix == ".xz":
        content = subprocess.run(["xz", "-dc"], input=content, capture_output=True, check=True).stdout
    (directory / plain_name(module)).write_bytes(content)


def product_disk(target: Path, prefix: Path, arguments: Sequence[str]) -> None:
    """A disk with the virtual environment, this checkout and a place for results and state."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="stage-") as scratch:
        stage = Path(scratch)
        stage.chmod(0o755)
        run("cp", "-al", prefix / "venv", stage / "venv")  # hard links: the same file system
        shutil.copytree(
            CHECKOUT, stage / "checkout", symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED)
        )
        (stage / "results").mkdir()
        (stage / "results/arguments").write_bytes(b"".join(word.encode() + b"\0" for word in arguments))
        make_disk(target, stage, "3G")


def make_disk(target: Path, content: Path, size: str) -> None:
    """An ext4 file system image with the content of a directory."""
    target.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-d", content, target, size)


def read_from_disk(disk: Path, names: Iterable[str], into: Path) -> None:
    """Copy files from /results of a disk that is not in use; one that is missing is not made."""
    for name in names:
        (into / name).unlink(missing_ok=True)
        run("debugfs", "-R", f"dump /results/{name} {into / name}", disk)
