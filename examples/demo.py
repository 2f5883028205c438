"""Starts Stockade in a temporary state directory, sends it good and hostile jobs over HTTP, and shows
what became of each. Exit status 1 when an outcome is not the expected one. Run it with `make demo`.

The jobs run in an image that is built on this machine, where mmdebstrap is there to do it; else in `host`. The image is
kept below the installation's prefix, for the next time.
"""

import csv
import heapq
import io
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockade.client import ApiError, Client, JobView, Outcome, OutcomeKind, StepResult

EXAMPLES = Path(__file__).parent
PATIENCE = 120.0  # s, for all jobs together
STOCKADE = Path(sys.executable).with_name("stockade")
IMAGES = Path(sys.prefix).parent / "demo"  # a state directory for `stockade image`
IMAGE, PACKAGES = "demo:1", "python3,g++"
POLICY = f"""\
name: demo
extends: default
description: What the policy default allows, in the demo's own image too.
images: [host, "{IMAGE}"]
"""


@dataclass(frozen=True)
class Case:
    """A job to send, and the outcome that its last step must have."""

    name: str
    spec: dict
    expected: str


def main() -> int:
    graph, measurements = make_graph(), make_measurements()
    image, about = prepare_image()
    cases = good_cases(graph, measurements) + hostile_cases()
    started = time.monotonic()
    with stack() as (url, key):
        print(f"Stockade runs on {url}, started in {time.monotonic() - started:.1f} s.")
        print(f"The jobs run in the image {image}: {about}.")
        print(f"Sending {len(cases)} jobs.\n")
        with Client(url, key) as client:
            jobs = run_all(client, cases, {"policy": "demo", "image": image})
            print_table(cases, jobs)
            wrong = [c for c in cases if verdict(jobs[c.name]).kind != c.expected]
            wrong_answer = show_results(client, jobs, graph)
    for case in wrong:
        print(f"NOT AS EXPECTED: {case.name} should have ended {case.expected}: {verdict(jobs[case.name])}")
    if wrong or wrong_answer:
        return 1
    print("Every outcome is the expected one. Stockade has stopped.")
    return 0


# ---- the jobs


def good_cases(graph: str, measurements: str) -> list[Case]:
    compile_command = ["g++", "-O2", "-std=c++17", "-o", "shortest_paths", "shortest_paths.cpp"]
    compiler = {
        "steps": [
            {"name": "compile", "argv": compile_command},
            {"name": "run", "argv": ["./shortest_paths"], "stdin": graph, "limits": {"memory": "32MiB"}},
        ],
        "files": [source("shortest_paths.cpp")],
    }
    report = {
        "command": ["python3", "stations.py"],
        "files": [source("stations.py"), {"path": "measurements.csv", "text": measurements}],
        "outputs": ["report.txt"],
    }
    return [Case("shortest paths", compiler, "exited"), Case("stations", report, "exited")]


def hostile_cases() -> list[Case]:
    return [
        hostile("fork_bomb", "pids_exceeded", {"pids": 32}),
        hostile("memory_hog", "memory_exceeded", {"memory": "64MiB"}),
        hostile("endless_loop", "cpu_time_exceeded", {"cpu_time": "1s"}),
        hostile("output_flood", "output_exceeded", {"output": "64KiB"}, on_output_limit="kill"),
        hostile("disk_filler", "disk_exceeded", {"disk": "16MiB"}),
    ]


def hostile(name: str, expected: str, limits: dict, **step: str) -> Case:
    command = {"argv": ["python3", f"{name}.py"], "limits": limits, **step}
    spec = {"command": command, "files": [source(f"hostile/{name}.py")]}
    return Case(name.replace("_", " "), spec, expected)


def source(name: str) -> dict:
    path = EXAMPLES / name
    return {"path": path.name, "text": path.read_text()}


def make_graph(nodes: int = 8000, edges: int = 32000) -> str:
    """A road map of a kind: about 500 KB, the same every time."""
    rng = random.Random(20)
    lines = [f"{nodes} {edges}"]
    for number in range(edges):
        start = number % nodes
        end = min(nodes - 1, max(0, start + rng.randint(-90, 99)))
        lines.append(f"{start} {end} {rng.randint(1, 10_000)}")
    return "\n".join(lines) + "\n"


def make_measurements() -> str:
    """Two years of daily temperatures at five stations: about 60 KB."""
    rng = random.Random(21)
    stations = {"Bergen": 8, "Oulu": 3, "Palermo": 19, "Porto": 15, "Vienna": 11}
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["station", "day", "celsius"])
    for name, mean in stations.items():
        for day in range(730):
            season = -9 * abs(1 - (day % 365) / 182.5) + 4.5
            rows.writerow([name, day, f"{mean + season + rng.gauss(0, 2):.1f}"])
    return out.getvalue()


def shortest_paths(graph: str) -> str:
    """The same answer as examples/shortest_paths.cpp, computed here."""
    numbers = iter(map(int, graph.split()))
    nodes, edges = next(numbers), next(numbers)
    out: list[list[tuple[int, int]]] = [[] for _ in range(nodes)]
    for _ in range(edges):
        start, end, length = next(numbers), next(numbers), next(numbers)
        out[start].append((end, length))
    distance = {0: 0}
    queue = [(0, 0)]
    while queue:
        here, node = heapq.heappop(queue)
        if here > distance[node]:
            continue
        for end, length in out[node]:
            if here + length < distance.get(end, sys.maxsize):
                distance[end] = here + length
                heapq.heappush(queue, (here + length, end))
    farthest = min(distance, key=lambda node: (-distance[node], node))
    checksum = 0
    for node in sorted(distance):
        checksum = (checksum * 31 + distance[node]) % 1_000_000_007
    return f"{len(distance)} reached, farthest {farthest} at {distance[farthest]}, checksum {checksum}\n"


# ---- the image


def prepare_image() -> tuple[str, str]:
    """The image to use, and what it is; built on this machine, if it is not there yet and can be."""
    IMAGES.mkdir(exist_ok=True)
    about = f"Debian with {PACKAGES}, built on this machine by mmdebstrap"
    if image_command("inspect", IMAGE).returncode == 0:
        return IMAGE, f"{about} and kept in {IMAGES}"
    if shutil.which("mmdebstrap") is None:
        return (
            "host",
            "this machine's own programs; with mmdebstrap installed it would be an image of its own",
        )
    print(
        f"Building the image {IMAGE} with mmdebstrap, for this and later demos; a minute or more.", flush=True
    )
    started = time.monotonic()
    built = image_command("build-host", IMAGE, "--packages", PACKAGES)
    if built.returncode:
        return "host", f"this machine's own programs, for no image could be built: {built.stderr.strip()}"
    return IMAGE, f"{about} in {time.monotonic() - started:.0f} s and kept in {IMAGES}"


def image_command(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [STOCKADE, "image", *argv, "--state", IMAGES], capture_output=True, text=True, check=False
    )


# ---- the service


@contextmanager
def stack() -> Iterator[tuple[str, str]]:
    """A running `stockade up`: its address and a key. Its state directory goes with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    home = Path(tempfile.mkdtemp(prefix="stockade-demo-"))
    home.chmod(0o755)
    state, policies, images = home / "state", home / "policies", IMAGES / "images"
    policies.mkdir()
    (policies / "demo.yaml").write_text(POLICY)
    images.mkdir(exist_ok=True)
    command = [
        STOCKADE,
        "up",
        "--state",
        state,
        "--listen",
        listen,
        "--policies",
        policies,
        "--images",
        images,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        while "is ready on" not in (line := process.stdout.readline()):
            if not line:
                sys.exit(f"demo: stockade up ended with status {process.wait()}")
        yield f"http://{listen}", (state / "dev-key").read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
        shutil.rmtree(home)


def run_all(client: Client, cases: list[Case], where: dict[str, str]) -> dict[str, JobView]:
    """Send every job at once to run there, say how each gets on, return the finished ones by case name."""
    started = time.monotonic()
    jobs: dict[str, JobView] = {}
    for case in cases:
        try:
            jobs[case.name] = client.submit(case.spec | where)
        except ApiError as error:
            sys.exit(f"demo: {case.name} was refused: {error}")
    shown: dict[str, str] = {}
    while any(state != "finished" for state in shown.values()) or not shown:
        for name, job in jobs.items():
            if not job.finished:
                job = jobs[name] = client.get(job.id)
            if job.state != shown.get(name):
                shown[name] = job.state
                print(f"  {time.monotonic() - started:5.1f} s  {name:<16}{job.state}", flush=True)
        if time.monotonic() - started > PATIENCE:
            late = ", ".join(name for name, job in jobs.items() if not job.finished)
            sys.exit(f"demo: not finished after {PATIENCE:g} s: {late}")
        time.sleep(0.1)
    return jobs


def verdict(job: JobView) -> Outcome:
    """Why a finished job ended."""
    assert job.outcome is not None
    return job.outcome


# ---- what is shown


def print_table(cases: list[Case], jobs: dict[str, JobView]) -> None:
    rows = [("job", "outcome", "limit", "evidence", "wall s", "cpu s", "memory")]
    for case in cases:
        steps = jobs[case.name].steps
        for step in steps:
            name = case.name if len(steps) == 1 else f"{case.name}: {step.name}"
            rows.append(row(name, step))
    widths = [max(len(r[column]) for r in rows) for column in range(len(rows[0]))]
    print()
    for number, cells in enumerate(rows):
        left = [cell.ljust(width) for cell, width in zip(cells[:4], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(cells[4:], widths[4:], strict=True)]
        print("  " + "  ".join(left + right))
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))
    print()


def row(name: str, step: StepResult) -> tuple[str, ...]:
    outcome, usage = step.outcome, step.usage
    kind, limits, seen = outcome.kind.value, "", ""
    if outcome.kind is OutcomeKind.EXITED:
        kind = f"exited {outcome.exit_code}"
    else:
        limits = ", ".join(f"{e.limit} {human(e.limit, e.value)}" for e in outcome.evidence)
        seen = ", ".join(f"{e.where} = {human(e.limit, e.observed)}" for e in outcome.evidence)
    memory = human("memory", usage.memory)
    return name, kind, limits, seen, f"{usage.wall_time:.2f}", f"{usage.cpu_time:.2f}", memory


def human(limit: str, value: Any) -> str:
    """A limit's value, or what was observed of it, with its unit; small numbers are counts."""
    if limit.endswith("_time"):
        return f"{value:.4g} s"
    if limit not in ("memory", "disk", "output") or value < 2**10:
        return f"{value:g}"
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.0f} KiB"


def show_results(client: Client, jobs: dict[str, JobView], graph: str) -> bool:
    """Print the good jobs' results; whether the compiled program's answer differs from ours."""
    answer, ours = jobs["shortest paths"].steps[-1].stdout.text or "", shortest_paths(graph)
    compared = "the same as computed here" if answer == ours else f"NOT AS EXPECTED, computed here: {ours}"
    print(f"shortest paths over {len(graph) // 1000} KB of input: {answer.strip()} ({compared})\n")
    report = client.artifact(jobs["stations"].id, "report.txt").decode()
    print("artifact report.txt of stations:")
    print("".join(f"  {line}\n" for line in report.splitlines()))
    return answer != ours


if __name__ == "__main__":
    sys.exit(main())
