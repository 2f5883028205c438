"""References to images: Docker's defaults, the distribution project's grammar, and nothing that leads elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.images.remote.reference import Reference, ReferenceFormError, parse_reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12", "docker.io/library/python:3.12"),
        ("team/tool", "docker.io/team/tool:latest"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("index.docker.io/python", "docker.io/library/python:latest"),
        ("localhost/tool", "localhost/tool:latest"),
        ("localhost:5000/tool:1", "localhost:5000/tool:1"),
        ("Registry.Example/team/tool", "registry.example/team/tool:latest"),
        ("registry.example:5000/a/b__c/d-e.f:V1", "registry.example:5000/a/b__c/d-e.f:V1"),
        ("[::1]:5000/tool", "[::1]:5000/tool:latest"),
        (f"python@{DIGEST}", f"docker.io/library/python@{DIGEST}"),
        (f"python:3@{DIGEST}", f"docker.io/library/python:3@{DIGEST}"),
        (f"r.example/x@sha512:{HEX}{HEX}", f"r.example/x@sha512:{HEX}{HEX}"),
        ("r.example/" + "a" * 245, "r.example/" + "a" * 245 + ":latest"),
    ],
)
def test_what_is_left_out_is_what_docker_would_take(text: str, canonical: str) -> None:
    """The canonical form has every default written out, and is its own canonical form."""
    assert str(parse_reference(text)) == canonical
    assert str(parse_reference(canonical)) == canonical


def test_a_digest_is_asked_for_rather_than_the_tag_beside_it() -> None:
    """With both, the tag is a comment: it may have moved."""
    assert parse_reference(f"python:3@{DIGEST}").wanted == DIGEST
    assert parse_reference("python:3").wanted == "3"
    assert parse_reference("python:3").at(DIGEST).wanted == DIGEST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        ":",
        "@",
        "Python",
        "a//b",
        "a/../b",
        "../../etc/passwd",
        "r.example/../x",
        "r.example/%2e%2e/x",
        "r.example/x?y=z",
        "r.example/x#y",
        "r.example/x y",
        "r.example/x\n",
        "user:password@r.example/x",
        "http://r.example/x",
        "r.example:99999/x",
        "r.example:/x",
        "-r.example/x",
        "r..example/x",
        "[::1/x",
        "[fe80::1%25eth0]/x",
        "r.example/x:",
        "r.example/x:.tag",
        "r.example/x:-tag",
        "r.example/x:" + "t" * 129,
        "r.example/" + "a" * 246,
        "x@",
        "x@md5:0123456789abcdef0123456789abcdef",
        f"x@sha256:{HEX.upper()}",
        "x@sha256:../../etc/passwd",
        f"x@sha256:{HEX}0",
        f"x@{DIGEST}@{DIGEST}",
        "\u0430pple/x",
    ],
)
def test_what_is_no_reference_is_refused_with_the_form(text: str) -> None:
    """Whatever is not of the grammar is refused, and told what it must be."""
    with pytest.raises(ReferenceFormError, match=r"not an image: .*It must be"):
        parse_reference(text)


@given(st.text(alphabet="aA0._-:/@[]%?#\\ \n\u00e9sha256", max_size=60))
def test_nothing_that_is_let_through_can_leave_a_path(text: str) -> None:
    """What parses is stable, and its parts hold nothing that means something in a URL or a path."""
    try:
        reference = parse_reference(text)
    except ReferenceFormError:
        return
    assert parse_reference(str(reference)) == reference
    parts = f"{reference.repository}/{reference.wanted}".split("/")
    assert not {"", ".", ".."} & set(parts)
    assert not set("%?#\\ \n@[]") & set(reference.repository + (reference.tag or ""))


def test_a_reference_cannot_be_changed() -> None:
    """It is a value."""
    reference = Reference(registry="r.example", repository="x", tag="1")
    with pytest.raises(ValueError, match="frozen"):
        reference.tag = "2"  # type: ignore[misc]
