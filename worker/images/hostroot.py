"""A minimal Debian root file system, made on this machine by mmdebstrap: a real image without any registry."""

import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from worker.images.errors import ImageError

_WORD = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_BUILD_SECONDS = 1800


def release() -> str:
    """This machine's Debian release, whose packages and keys it knows; ``stable`` on another system."""
    about = platform.freedesktop_os_release()
    return about.get("VERSION_CODENAME", "stable") if about.get("ID") == "debian" else "stable"


@contextmanager
def built(suite: str, packages: Sequence[str]) -> Iterator[Path]:
    """The tar archive of a fresh root with these packages; it is gone after the block.

    Raises ``ImageError`` when it cannot be built; the reason is mmdebstrap's own last words.
    """
    for word in (suite, *packages):
        if not _WORD.fullmatch(word):
            raise ImageError("build_failed", f"{word!r} is no name of a Debian release or package")
    program = shutil.which("mmdebstrap")
    if program is None:
        raise ImageError("build_failed", "mmdebstrap is not installed; try: apt-get install mmdebstrap")
    with tempfile.TemporaryDirectory(prefix="stockade-build-", dir="/var/tmp") as directory:
        archive = Path(directory) / "root.tar"
        argv = [program, "--quiet", "--variant=minbase", "--mode=root", "--format=tar"]
        if packages:
            argv.append("--include=" + ",".join(packages))
        try:
            subprocess.run(
                [*argv, suite, str(archive)],
                check=True,
                capture_output=True,
                text=True,
                timeout=_BUILD_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ImageError("build_failed", f"mmdebstrap took longer than {_BUILD_SECONDS} s") from None
        except subprocess.CalledProcessError as error:
            last = "; ".join(error.stderr.strip().splitlines()[-3:])
            raise ImageError("build_failed", f"mmdebstrap: {last}") from None
        yield archive
