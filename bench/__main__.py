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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cgroups, ours, rivals, service
from bench.figures import Samples, Summary, number, table

PARTS = ("sandbox", "jobs", "memory")
OURS = "stockade"
FLOOR = "floor, C, with cgroups"
HEADER = ("", "p50 ms", "p99 ms", "per second", "CPU ms")

Round = Callable[[int, int], tuple[list[float], float, float]]


@dataclass(frozen=True)
class Effort:
    """How much is run: rounds, and per round sandboxes and jobs."""

    rounds: int
    sandboxes: int
    jobs: int
    idle: int


THOROUGH = Effort(rounds=8, sandboxes=100, jobs=250, idle=16)
QUICK = Effort(rounds=3, sandboxes=40, jobs=80, idle=8)


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


def measure_jobs(effort: Effort) -> dict[str, Summary]:
    """/bin/true as a job over HTTP, closed loop with 1, 4 and 16 clients."""
    with service.running() as running:
        samples = {clients: Samples() for clients in (1, 4, 16)}
        running.round(4, 40)
        for turn in range(effort.rounds):
            for clients, each in samples.items():
                each.add(*running.round(clients, effort.jobs))
            say(f"round {turn + 1} of {effort.rounds}, jobs over HTTP")
    return {f"{clients} clients": each.summary() for clients, each in samples.items()}


def measure_memory(effort: Effort) -> dict[str, float]:
    """Private bytes of a sandbox in which a program sleeps."""
    with ours.launcher() as launcher:
        everything, program = launcher.idle_memory(effort.idle)
    return {"sandboxes": effort.idle, "bytes_per_sandbox": round(everything), "of_it_program": round(program)}


def rows(summaries: dict[str, Summary]) -> list[tuple[str, ...]]:
    """Lines of a table."""
    return [
        (name, *(number(value) for value in (each.p50_ms, each.p99_ms, each.per_second, each.cpu_ms)))
        for name, each in summaries.items()
    ]


@dataclass(frozen=True)
class Aim:
    """One figure that we hold ourselves to."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    def line(self) -> tuple[str, str, str, str]:
        """Name, value, aim and whether it is met."""
        met = (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )
        bound = f">= {number(self.least)}" if self.most is None else f"<= {number(self.most)}"
        return self.name, number(self.value), bound, "met" if met else "MISSED"


def aims(report: dict[str, Any]) -> list[Aim]:
    """The aims whose figures were measured."""
    found = []
    if "sandbox" in report:
        serial, four = report["sandbox"]["1 at a time"], report["sandbox"]["4 at a time"]
        found.append(
            Aim("sandbox p50, times the floor's", serial[OURS].p50_ms / serial[FLOOR].p50_ms, most=1.5)
        )
        found.append(Aim("sandbox p99, ms (no 15 ms tail)", serial[OURS].p99_ms, most=12.0))
        found.append(Aim("sandboxes a second, 4 at a time", four[OURS].per_second, least=450))
    if "jobs" in report:
        found.append(Aim("job p50 at one client, ms", report["jobs"]["1 clients"].p50_ms, most=12.0))
        found.append(Aim("jobs a second at 16 clients", report["jobs"]["16 clients"].per_second, least=200))
    if "memory" in report:
        found.append(
            Aim("private MB per idle sandbox", report["memory"]["bytes_per_sandbox"] / 1e6, most=2.0)
        )
    return found


def show(report: dict[str, Any]) -> str:
    """The report as text."""
    parts = []
    for title, summaries in report.get("sandbox", {}).items():
        parts.append(table(f"A fresh sandbox around /bin/true, {title}", HEADER, rows(summaries)))
    if "jobs" in report:
        parts.append(
            table("/bin/true as a job over HTTP, durable, closed loop", HEADER, rows(report["jobs"]))
        )
    if "memory" in report:
        memory = report["memory"]
        lines = [
            ("everything, the launcher's growth included", number(memory["bytes_per_sandbox"] / 1e6)),
            ("of it the sleeping program", number(memory["of_it_program"] / 1e6)),
        ]
        parts.append(
            table(f"Private memory per sandbox, {memory['sandboxes']} running `sleep`", ("", "MB"), lines)
        )
    parts.append(
        table("Aims, for a machine with 2 cores", ("", "figure", "aim", ""), [a.line() for a in aims(report)])
    )
    return "\n\n".join(parts)


def as_json(value: Any) -> Any:
    """The report as plain data."""
    if isinstance(value, Summary):
        return value.as_json()
    return {key: as_json(each) for key, each in value.items()} if isinstance(value, dict) else value


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
    report: dict[str, Any] = {"machine": about_machine()}
    for part in asked.only or PARTS:
        report[part] = measures[part](effort)
    print(show(report))
    asked.json.write_text(json.dumps(as_json(report), indent=1) + "\n")
    say(f"written to {asked.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
