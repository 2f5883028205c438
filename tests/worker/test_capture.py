"""A captured stream keeps its first and last part, counts everything, and stays small."""

import pytest

from worker.capture import Capture


def fed(limit: int, content: bytes, chunk: int) -> Capture:
    """A capture that was fed in chunks."""
    capture = Capture(limit)
    for start in range(0, len(content), chunk):
        capture.feed(content[start : start + chunk])
    return capture


CONTENT = bytes(range(32, 127)) * 40


@pytest.mark.parametrize("chunk", [1, 7, 64, 65536])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 100, 101, len(CONTENT) - 1])
def test_first_and_last_part_are_kept(limit: int, chunk: int) -> None:
    """However it comes in, what is kept is the first half of the limit and the last half, to the byte."""
    output = fed(limit, CONTENT, chunk).output()
    first, last = limit - limit // 2, limit // 2
    assert output.data == CONTENT[:first] + CONTENT[len(CONTENT) - last :]
    assert output.bytes == len(CONTENT)
    assert output.truncated
    assert output.omitted is not None
    assert (output.omitted.at, output.omitted.bytes) == (first, len(CONTENT) - limit)


@pytest.mark.parametrize("chunk", [1, 7, 65536])
@pytest.mark.parametrize("limit", [len(CONTENT), len(CONTENT) + 1, 1 << 20])
def test_output_within_the_limit_is_whole(limit: int, chunk: int) -> None:
    """Nothing is lost or marked up to the very limit."""
    output = fed(limit, CONTENT, chunk).output()
    assert output.data == CONTENT
    assert not output.truncated
    assert output.omitted is None


def test_nothing_fed_is_nothing() -> None:
    """A silent program has an empty text."""
    output = Capture(10).output()
    assert (output.text, output.bytes, output.truncated) == ("", 0, False)


def test_memory_is_bounded() -> None:
    """A flood of a thousand times the limit leaves no more than twice the limit in memory."""
    capture = Capture(1 << 16)
    for _ in range(1000):
        capture.feed(b"y\n" * (1 << 15))
    assert capture.total == 1000 << 16
    assert len(capture._head) + len(capture._tail) <= 2 << 16


def test_bytes_that_are_no_text_survive() -> None:
    """Output that is not UTF-8 comes back as it was written."""
    content = bytes(range(256)) * 3
    assert fed(1 << 12, content, 100).output().data == content
