"""Pulling an image from a registry on this machine, ours beside `skopeo copy`.

The image has four layers of 50 MB that cannot be compressed, in Debian's docker-registry on loopback. Both pull it
into a new OCI layout, check every digest, and end when all of it is on disk (syncfs). They take turns. Ours includes
the start of the puller's process.
"""

import contextlib
import os
import pwd
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.figures import Samples
from tests.registries.oci import Layout, random_layers
from tests.registries.running import PROGRAMS, Running
from worker.images.remote.pull import sources_of
from worker.images.remote.puller import Puller
from worker.images.remote.reference import parse_reference

OURS, SKOPEO = "stockade", "skopeo copy"
LAYERS, LAYER_SIZE = 4, 50_000_000
SERVICE_USER = "stockade"


def ours(image: str, target: Path) -> None:
    """Pull by our puller, as the service user."""
    reference = parse_reference(image)
    target.mkdir()
    os.chown(target, pwd.getpwnam(SERVICE_USER).pw_uid, -1)
    Puller(SERVICE_USER).pull(reference, sources_of(reference, None, None), target)


def skopeo(image: str, target: Path) -> None:
    """Copy by skopeo."""
    command = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", f"docker://{image}"]
    subprocess.run([*command, f"oci:{target}:it"], check=True, capture_output=True)


def timed(pull: Callable[[str, Path], None], image: str, target: Path) -> tuple[float, float]:
    """Pull once into a new directory, which is gone afterwards; seconds that it took, and of CPU in children."""
    before, started = _cpu(), time.perf_counter()
    pull(image, target)
    subprocess.run(["sync", "--file-system", target], check=True)
    took, spent = time.perf_counter() - started, _cpu() - before
    shutil.rmtree(target)
    return took, spent


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def missing() -> list[str]:
    """The packages that have to be installed before."""
    return [package for program, package in PROGRAMS.items() if not shutil.which(program)]


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The figures of both, and the bytes of the image."""
    contenders = {OURS: ours, SKOPEO: skopeo}
    samples = {name: Samples() for name in contenders}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stockade-bench-")))
        layout = Layout()
        top = layout.image(random_layers(LAYERS, LAYER_SIZE))
        size = sum(map(len, layout.blobs.values()))
        registry = stack.enter_context(Running(directory).started())
        image = registry.push(layout.write(directory / "layout", top), "bench:1")
        for turn in range(rounds + 1):
            for name, pull in contenders.items():
                took, cpu = timed(pull, image, directory / "target")
                if turn:  # the first round warms the registry's files
                    samples[name].add([took], took, cpu)
            say(f"round {turn} of {rounds}, pulling")
    return {"bytes": size, "contenders": {name: each.summary() for name, each in samples.items()}}
