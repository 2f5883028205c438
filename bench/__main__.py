"""The command: what to measure, in which order, and how it is shown."""

import argparse
import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cgroups, images, ours, pull, release, rivals, service
from bench.figures import Samples, Summary
from bench.report import OURS, as_json, show

PARTS = ("sandbox", "jobs", "memory", "images", "pull", "release")
LAYERS = (1, 40)
Round = Callable[[int, int], tuple[list[float], float, float]]


@dataclass(frozen=True)
class Effort:
    """How much is run: rounds, and per round sandboxes and jobs."""

    rounds: int
    sandboxes: int
    jobs: int
    idle: int
    pulls: int
    pairs: int
    waiting: int


THOROUGH = Effort(rounds=8, sandboxes=100, jobs=250, idle=16, pulls=7, pairs=600, waiting=4)
QUICK = Effort(rounds=3, sandboxes=40, jobs=80, idle=8, pulls=3, pairs=200, waiting=3)


def say(text: str) -> None:
    """Progress, beside the table on standard output."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def interleaved(contenders: dict[str, Round], runs: int, parallel: int, rounds: int) -> dict[str, Summary]:
    """Let each contender run in turn, round after round."""
    samples = {name: Samples() for name in contenders}
    for run in contenders.values():
        run(max(parallel, 8), parallel)  # warm: caches, prepared sandboxes
    for turn in range(rounds):
        for name, run in contenders.items():
            samples[name].add(*run(runs, parallel))
        say(f"round {turn + 1} of {rounds}, {parallel} at a time")
    return {name: each.summary() for name, each in samples.items()}


def measure_sandboxes(effort: Effort) -> dict[str, dict[str, Summary]]:
    """A fresh sandbox around /bin/true: ours and the others, serial and 4-way."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stockade-bench-")))
        leaves = stack.enter_context(cgroups.parents())
        floor = rivals.compiled(directory)
        found, absent = rivals.programs(directory, leaves)
        for line in absent:
            say(line)
        launcher = stack.enter_context(ours.launcher())
        contenders: dict[str, Round] = {OURS: launcher.round}
        contenders |= {each.name: functools.partial(each.round, floor) for each in found}
        return {
            f"{parallel} at a time": interleaved(contenders, effort.sandboxes, parallel, effort.rounds)
            for parallel in (1, 4)
        }


def measure_jobs(effort: Effort) -> dict[str, dict[str, Any]]:
    """/bin/true as a job over HTTP, closed loop with 1, 4 and 16 clients; CPU of each part of the service."""
    spent: dict[int, Counter[str]] = {clients: Counter() for clients in (1, 4, 16)}
    with service.running() as running:
        samples = {clients: Samples() for clients in spent}
        running.round(4, 40)
        for turn in range(effort.rounds):
            for clients, each in samples.items():
                took, elapsed, cpu = running.round(clients, effort.jobs)
                each.add(took, elapsed, sum(cpu.values()))
                spent[clients].update(cpu)
            say(f"round {turn + 1} of {effort.rounds}, jobs over HTTP")
    jobs = effort.rounds * effort.jobs
    parts = {
        f"{clients} clients": {part: round(seconds / jobs * 1e3, 3) for part, seconds in cpu.items()}
        for clients, cpu in spent.items()
    }
    return {"clients": {f"{n} clients": each.summary() for n, each in samples.items()}, "cpu_ms": parts}


def measure_memory(effort: Effort) -> dict[str, float]:
    """Private bytes of a sandbox in which a program sleeps."""
    with ours.launcher() as launcher:
        everything, program = launcher.idle_memory(effort.idle)
    return {"sandboxes": effort.idle, "bytes_per_sandbox": round(everything), "of_it_program": round(program)}


def measure_images(effort: Effort) -> dict[str, Any]:
    """Unpacking a layer, ours and others; a sandbox in an image of one layer, of many, and in `host`."""
    with ours.launcher() as launcher, images.small_images(launcher.images, LAYERS) as found:
        contenders: dict[str, Round] = {
            f"{count} layers": functools.partial(_in_image, launcher, digest)
            for count, digest in found.items()
        }
        contenders[images.HOST] = launcher.round
        start = interleaved(contenders, effort.sandboxes, 1, effort.rounds)
    return {"unpack": images.rates(min(effort.rounds, 5), say), "start": start}


def _in_image(
    launcher: ours.Launcher, digest: str, runs: int, parallel: int
) -> tuple[list[float], float, float]:
    return launcher.round(runs, parallel, digest)


def measure_pull(effort: Effort) -> dict[str, Any] | None:
    """Pulling an image from a registry on this machine, ours and skopeo's; None where they are not installed."""
    if missing := pull.missing():
        say(f"no registry to pull from; it needs: {' '.join(missing)}")
        return None
    return pull.measure(effort.pulls, say)


def about_machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "cgroup": "v1" if "memory" in cgroups.mounts() else "v2",
        "load_before": os.getloadavg()[0],
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Figures of one run, side by side.")
    parser.add_argument("--quick", action="store_true", help="a minute instead of several: rougher figures")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="measure this part only (may be repeated)"
    )
    parser.add_argument(
        "--install", action="store_true", help="install the sandboxes to compare with by apt-get"
    )
    default = Path(os.environ.get("PREFIX", "/opt/stockade")) / "bench.json"
    parser.add_argument(
        "--json", type=Path, default=default, help="where to write the report (default: %(default)s)"
    )
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    asked = arguments()
    if os.geteuid() != 0:
        sys.exit("bench: must run as root: it makes sandboxes")
    if asked.install:
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "bubblewrap", "crun", "runc"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    effort = QUICK if asked.quick else THOROUGH
    measures = {"sandbox": measure_sandboxes, "jobs": measure_jobs, "memory": measure_memory}
    measures |= {"images": measure_images, "pull": measure_pull}
    measures["release"] = lambda effort: release.measure(effort.pairs, release.JOBS[: effort.waiting], say)
    report: dict[str, Any] = {"machine": about_machine()}
    for part in asked.only or PARTS:
        if (figures := measures[part](effort)) is not None:
            report[part] = figures
    print(show(report))
    asked.json.write_text(json.dumps(as_json(report), indent=1) + "\n")
    say(f"written to {asked.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
