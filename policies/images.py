"""Image patterns: which images a policy lets a job name, and what two such lists have in common.

A pattern is matched against the whole name as the request gives it, `python:3.11` or
`registry.example/team/python@sha256:…`. `*` stands for any characters, `?` for one; nothing else is special.
Several patterns joined by ` & ` must all match: that is how an effective policy writes what two scopes both allow.
"""

from collections.abc import Iterable
from typing import Annotated

from pydantic import StringConstraints

PATTERN_MAX = 1024
"""Characters of one pattern, with all its parts."""
PATTERNS_MAX = 256
"""Patterns of one list."""
AND = " & "

_WILD = frozenset("*?")

Pattern = Annotated[str, StringConstraints(max_length=PATTERN_MAX, pattern=r"^[^\s&]+( & [^\s&]+)*$")]


def matches(pattern: str, image: str) -> bool:
    """Say whether `pattern` lets `image` through."""
    return all(_glob(part, image) for part in pattern.split(AND))


def simplest(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the same list in its one form: sorted, without what another of its patterns covers anyhow."""
    whole = {_joined(pattern.split(AND)) for pattern in patterns}
    return tuple(sorted(each for each in whole if not any(_covers(other, each) for other in whole)))


def common(ours: Iterable[str], theirs: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns of the images that both lists let through; nothing where there can be none."""
    theirs = list(theirs)
    joined = (_both(one, other) for one in ours for other in theirs)
    return simplest(pattern for pattern in joined if pattern is not None)


def literal(pattern: str) -> bool:
    """Say whether `pattern` stands for one name only."""
    return not _WILD & set(pattern) and AND not in pattern


def _both(one: str, other: str) -> str | None:
    if literal(one):
        return one if matches(other, one) else None
    if literal(other):
        return other if matches(one, other) else None
    parts = [*one.split(AND), *other.split(AND)]
    if not all(_overlap(first, second) for first in parts for second in parts):
        return None
    return _joined(parts)


def _joined(parts: Iterable[str]) -> str:
    """Return the parts as one pattern, without those that another part implies."""
    whole = {_collapsed(part) for part in parts}
    kept = (part for part in whole if not any(_implies(other, part) for other in whole))
    return AND.join(sorted(kept))


def _collapsed(part: str) -> str:
    while "**" in part:
        part = part.replace("**", "*")
    return part


def _implies(narrow: str, wide: str) -> bool:
    """Say whether another part, `narrow`, makes `wide` say nothing new."""
    return narrow != wide and _within(narrow, wide) and (not _within(wide, narrow) or narrow < wide)


def _covers(wide: str, narrow: str) -> bool:
    """Say whether another pattern, `wide`, lets through all that `narrow` does."""
    if wide == narrow or not _inside(narrow, wide):
        return False
    return not _inside(wide, narrow) or wide < narrow


def _inside(narrow: str, wide: str) -> bool:
    parts = narrow.split(AND)
    return all(any(_within(part, each) for part in parts) for each in wide.split(AND))


def _within(narrow: str, wide: str) -> bool:
    """Say whether `wide` matches whatever `narrow` does: then it also matches `narrow` read as a name.

    In that name a `*` is a character that only a `*` matches, and a `?` one that `*` and `?` match.
    """
    return _glob(wide, narrow, any_one_but="*")


def _glob(pattern: str, text: str, any_one_but: str = "") -> bool:
    """Match as in file names, in linear space and at most quadratic time, whoever wrote the pattern."""
    at, star, resume = 0, -1, 0
    position = 0
    while position < len(text):
        here = pattern[at] if at < len(pattern) else None
        if here == "*":
            star, resume = at, position
            at += 1
        elif here is not None and ((here == "?" and text[position] != any_one_but) or here == text[position]):
            at, position = at + 1, position + 1
        elif star >= 0:
            at, resume = star + 1, resume + 1
            position = resume
        else:
            return False
    return all(rest == "*" for rest in pattern[at:])


def _overlap(one: str, other: str) -> bool:
    """Say whether there is a name that both patterns match: a walk over both at once."""
    row = [True] + [False] * len(other)
    for column in range(1, len(other) + 1):
        row[column] = row[column - 1] and other[column - 1] == "*"
    for mark in one:
        before, row = row, [row[0] and mark == "*"]
        for column, against in enumerate(other, 1):
            if mark == "*" or against == "*":
                row.append(before[column] or row[column - 1])
            else:
                row.append(before[column - 1] and (mark == against or "?" in (mark, against)))
    return row[-1]
