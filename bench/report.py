"""The report: a dictionary of parts, shown as tables and held against what we aim for."""

from dataclasses import dataclass
from typing import Any

from bench.figures import Summary, number, table
from bench.images import HOST
from bench.release import flatness

OURS = "stockade"
FLOOR = "floor, C, with cgroups"
HEADER = ("", "p50 ms", "p99 ms", "per second", "CPU ms")


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
        found.append(
            Aim("job p50 at one client, ms", report["jobs"]["clients"]["1 clients"].p50_ms, most=12.0)
        )
        found.append(
            Aim("jobs a second at 16 clients", report["jobs"]["clients"]["16 clients"].per_second, least=200)
        )
    if "memory" in report:
        found.append(
            Aim("private MB per idle sandbox", report["memory"]["bytes_per_sandbox"] / 1e6, most=2.0)
        )
    if "images" in report:
        start, unpack = report["images"]["start"], report["images"]["unpack"]
        one, many = (each for name, each in start.items() if name != HOST)
        found.append(Aim("sandbox p50 in 40 layers, times that in 1", many.p50_ms / one.p50_ms, most=1.15))
        found.append(
            Aim(
                "sandbox p50 in a cached image, times that in host",
                one.p50_ms / start[HOST].p50_ms,
                most=1.15,
            )
        )
        for form, each in unpack.items():
            found.append(
                Aim(f"unpacking {form}, times GNU tar's rate", each[OURS] / each["GNU tar"], least=0.8)
            )
    if "release" in report:
        found.append(Aim("release p10, dearest over cheapest", flatness(report["release"]), most=2.0))
    return found


def show(report: dict[str, Any]) -> str:
    """The report as text."""
    shown = []
    for title, summaries in report.get("sandbox", {}).items():
        shown.append(table(f"A fresh sandbox around /bin/true, {title}", HEADER, rows(summaries)))
    if "jobs" in report:
        shown.append(show_jobs(report["jobs"]))
    if "memory" in report:
        shown.append(show_memory(report["memory"]))
    if "images" in report:
        shown += show_images(report["images"])
    if "pull" in report:
        shown.append(show_pull(report["pull"]))
    if "release" in report:
        shown.append(show_release(report["release"]))
    header = ("", "figure", "aim", "")
    if lines := [aim.line() for aim in aims(report)]:
        shown.append(table("Aims, for a machine with 2 cores", header, lines))
    return "\n\n".join(shown)


def show_jobs(jobs: dict[str, Any]) -> str:
    """The table of jobs over HTTP, with the CPU time of each part of the service."""
    spent = [tuple(map(number, jobs["cpu_ms"][name].values())) for name in jobs["clients"]]
    lines = [row + cpu for row, cpu in zip(rows(jobs["clients"]), spent, strict=True)]
    header = (*HEADER, *(f"of it {part}" for part in next(iter(jobs["cpu_ms"].values()))))
    return table("/bin/true as a job over HTTP, durable, closed loop", header, lines)


def show_memory(memory: dict[str, Any]) -> str:
    """The table of private memory."""
    lines = [
        ("everything, the launcher's growth included", number(memory["bytes_per_sandbox"] / 1e6)),
        ("of it the sleeping program", number(memory["of_it_program"] / 1e6)),
    ]
    return table(f"Private memory per sandbox, {memory['sandboxes']} running `sleep`", ("", "MB"), lines)


def show_images(images: dict[str, Any]) -> list[str]:
    """The tables of images."""
    forms = images["unpack"]
    lines = [(name, *(number(form[name]) for form in forms.values())) for name in next(iter(forms.values()))]
    return [
        table("Unpacking a layer, MB of its archive a second", ("", *forms), lines),
        table("A fresh sandbox around /bin/true, by layers of its image", HEADER, rows(images["start"])),
    ]


def show_pull(pull: dict[str, Any]) -> str:
    """The table of pulling, with the rate."""
    size, contenders = pull["bytes"], pull["contenders"]
    lines = [
        (*row, number(size / each.p50_ms / 1e3))
        for row, each in zip(rows(contenders), contenders.values(), strict=True)
    ]
    title = f"Pull of {size / 1e6:.0f} MB from a registry on loopback, onto the disk"
    return table(title, (*HEADER, "MB/s"), lines)


def show_release(release: dict[str, dict[str, float]]) -> str:
    """The table of one job handed in and one ended, which releases one."""
    header = ("", "create p50", "finish p50", "both p10", "both p50", "both p99", "client p50", "client p99")
    lines = [(name, *(number(round(each)) for each in found.values())) for name, found in release.items()]
    return table("One job handed in, one ended, the next released; microseconds in Valkey", header, lines)


def as_json(value: Any) -> Any:
    """The report as plain data."""
    if isinstance(value, Summary):
        return value.as_json()
    return {key: as_json(each) for key, each in value.items()} if isinstance(value, dict) else value
