"""The benchmark's arithmetic, which nobody would notice to be wrong."""

import json

import pytest

from bench.figures import Samples, percentile, table
from bench.release import Pair, flatness, summary
from bench.report import FLOOR, OURS, aims, as_json


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (0.5, 1)])
def test_a_percentile_is_one_of_the_measured_values(percent: float, value: int) -> None:
    """Nearest rank: the smallest value that so many percent do not exceed."""
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_rounds_add_up() -> None:
    """Runs per second and CPU per run are over all rounds, not the mean of each round's."""
    samples = Samples()
    samples.add([0.001] * 10, elapsed=0.01, cpu=0.02)
    samples.add([0.003] * 30, elapsed=0.09, cpu=0.02)
    summary = samples.summary()
    assert (summary.runs, summary.p50_ms, summary.per_second, summary.cpu_ms) == pytest.approx(
        (40, 3, 400, 1)
    )


def test_ours_is_held_against_the_floor_with_cgroups() -> None:
    """The aim is a ratio within one run, so it holds on any machine."""

    def taking(seconds: float) -> Samples:
        samples = Samples()
        samples.add([seconds] * 4, elapsed=4 * seconds, cpu=0.0)
        return samples

    both = {OURS: taking(0.003).summary(), FLOOR: taking(0.002).summary()}
    report = {"sandbox": {"1 at a time": both, "4 at a time": both}}
    ratio, tail, rate = aims(report)
    assert ratio.line() == ("sandbox p50, times the floor's", "1.50", "<= 1.50", "met")
    assert tail.line()[3] == "met"
    assert rate.line()[1:] == ("333", ">= 450", "MISSED")
    assert json.loads(json.dumps(as_json(report)))["sandbox"]["1 at a time"][OURS]["p50_ms"] == 3.0


def test_a_table_lines_up() -> None:
    """Names to the left, figures to the right."""
    assert table("Title", ("", "ms"), [("a", "1.0"), ("long", "10.0")]).splitlines() == [
        "Title", "----------", "        ms", "----------", "a      1.0", "long  10.0", "----------",
    ]  # fmt: skip


def test_flatness_is_the_dearest_over_the_cheapest() -> None:
    """Of a pair of calls the sum counts, and of all pairs the quiet ones."""
    cheap = summary([Pair(10, 20, 50)] * 9 + [Pair(1000, 1000, 3000)])
    dear = summary([Pair(20, 25, 60)] * 10)
    assert (cheap["server_p50"], cheap["server_p99"], cheap["client_p50"]) == (30, 2000, 50)
    report = {"few": cheap, "many": dear}
    assert flatness(report) == 1.5
    (aim,) = aims({"release": report})
    assert aim.line()[3] == "met"
