"""Image patterns: exact names, digests and globs, and what two lists have in common."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.images import common, literal, matches, simplest

globs = st.text("ab*?", min_size=1, max_size=6)
names = st.text("abc", max_size=7)


@pytest.mark.parametrize(
    ("pattern", "image", "expected"),
    [
        ("host", "host", True),
        ("host", "HOST", False),
        ("py:*", "py:3.11", True),
        ("py:*", "python:3.11", False),
        ("py@sha256:aa", "py@sha256:aa", True),
        ("py@sha256:aa", "py@sha256:ab", False),
        ("py@sha256:aa", "py", False),
        ("[::1]:5000/py:?", "[::1]:5000/py:3", True),
        ("[ab]", "a", False),
        ("a* & *b", "axb", True),
        ("a* & *b", "ax", False),
    ],
)
def test_what_a_pattern_matches(pattern: str, image: str, expected: bool) -> None:
    """Names and digests exactly, `*` and `?` as in file names, brackets as they are, all parts of an `&`."""
    assert matches(pattern, image) is expected


@given(globs, names)
def test_patterns_match_as_file_names_do(pattern: str, name: str) -> None:
    """The matcher agrees with the standard library's, which knows `*` and `?` too."""
    assert matches(pattern, name) == fnmatchcase(name, pattern)


def test_no_pattern_takes_long() -> None:
    """Many stars against a long name that does not fit are decided at once."""
    assert not matches("*a" * 100 + "b", "a" * 255)


@given(st.lists(globs, max_size=3), st.lists(globs, max_size=3), st.lists(names, max_size=20))
def test_common_patterns_match_what_both_lists_match(
    ours: list[str], theirs: list[str], images: list[str]
) -> None:
    """A name is let through by the common patterns exactly when both lists let it through."""
    both = common(ours, theirs)
    for image in images:
        expected = any(matches(p, image) for p in ours) and any(matches(p, image) for p in theirs)
        assert any(matches(p, image) for p in both) == expected


@given(st.lists(globs, max_size=3), st.lists(globs, max_size=3), st.lists(globs, max_size=2))
def test_common_patterns_have_one_form(first: list[str], second: list[str], third: list[str]) -> None:
    """Order, grouping and repetition make no difference to how they are written."""
    assert common(first, second) == common(second, first)
    assert common(common(first, second), third) == common(first, common(second, third))
    assert common(common(first, second), second) == common(first, second)
    assert common(first, first) == simplest(first)


@given(st.lists(globs, max_size=5), st.lists(names, max_size=20))
def test_the_simplest_form_matches_the_same(patterns: list[str], images: list[str]) -> None:
    """Leaving out what another pattern covers changes nothing."""
    for image in images:
        assert any(matches(p, image) for p in patterns) == any(matches(p, image) for p in simplest(patterns))


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [
        (["reg/py:*"], ["reg/*"], ("reg/py:*",)),
        (["host", "py:*"], ["*"], ("host", "py:*")),
        (["py:*"], ["*:3"], ("*:3 & py:*",)),
        (["a*"], ["b*"], ()),
        (["host"], ["py"], ()),
    ],
)
def test_common_patterns_read_well(ours: list[str], theirs: list[str], both: tuple[str, ...]) -> None:
    """The narrower of two patterns where there is one, both where neither is, nothing where none can be."""
    assert common(ours, theirs) == both


def test_a_literal_is_one_name() -> None:
    """Only what has no wildcard stands for one name."""
    assert [literal(each) for each in ("host", "py@sha256:aa", "py:*", "a?", "a & b")] == [
        True,
        True,
        False,
        False,
        False,
    ]
