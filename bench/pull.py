"""`python -m bench.pull`: pulling an image from a registry on this machine, ours beside `skopeo copy`.

The image has four layers of 50 MB that cannot be compressed, in Debian's docker-registry on loopback. Both pull it
into a new OCI layout, check every digest, and end when all of it is on disk (syncfs). They take turns. Ours includes
the start of the puller's process.
"""

import argparse
import contextlib
import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.figures import Samples, number, percentile, table
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


def measure(rounds: int) -> tuple[dict[str, Samples], int]:
    """The samples of both, and the bytes of the image."""
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
            print(f"bench: round {turn} of {rounds}", file=sys.stderr, flush=True)
    return samples, size


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.pull", description="Pulling beside skopeo.")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where to write the figures as well")
    asked = parser.parse_args()
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    if os.geteuid() != 0 or missing:
        sys.exit(f"bench: must run as root, and needs: {' '.join(missing) or 'nothing else'}")
    load = os.getloadavg()[0]
    samples, size = measure(asked.rounds)
    rows, figures = [], {}
    for name, each in samples.items():
        middle, cpu = percentile(each.took, 50), (each.cpu or 0) / len(each.took)
        rows.append((name, number(middle), number(min(each.took)), number(size / middle / 1e6), number(cpu)))
        figures[name] = {"p50_s": middle, "best_s": min(each.took), "cpu_s": cpu, "took_s": each.took}
    header = ("", "p50 s", "best s", "MB/s", "CPU s")
    print(
        table(
            f"pull of {size / 1e6:.0f} MB from a registry on loopback (load before: {load:.2f})", header, rows
        )
    )
    if asked.json:
        asked.json.write_text(json.dumps({"bytes": size, "load_before": load, **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
