"""What images are called in registries: Docker's defaults, and nothing that leads elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.images.errors import ImageError
from worker.images.remote.reference import Reference, is_registry, is_repository, parse_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


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
        *(
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
        ),
        *("r.example/x?y=z", "r.example/x#y", "r.example/x y", "r.example/x\n", "user:password@r.example/x"),
        *(
            "http://r.example/x",
            "r.example:99999/x",
            "r.example:/x",
            "-r.example/x",
            "r..example/x",
            "[::1/x",
        ),
        *(
            "[fe80::1%25eth0]/x",
            "r.example/x:",
            "r.example/x:.tag",
            "r.example/x:" + "t" * 129,
            "\u0430pple/x",
        ),
        *("x@", "x@md5:0123456789abcdef0123456789abcdef", f"x@{DIGEST.upper()}", "x@sha256:../../etc/passwd"),
        *(f"x@{DIGEST}0", f"x@{DIGEST}@{DIGEST}", DIGEST, "r.example/" + "a" * 300, "host"),
    ],
)
def test_what_is_in_no_registry_is_refused(text: str) -> None:
    """What is not of the grammar, a digest alone, and the built-in image."""
    with pytest.raises(ImageError) as caught:
        parse_reference(text)
    assert caught.value.code == "bad_name"


@given(st.text(alphabet="aA0._-:/@[]%?#\\ \n\u00e9sha256", max_size=60))
def test_nothing_that_is_let_through_can_leave_a_path(text: str) -> None:
    """What parses is stable, and its parts hold nothing that means something in a URL or a path."""
    try:
        reference = parse_reference(text)
    except ImageError:
        return
    assert parse_reference(str(reference)) == reference
    parts = f"{reference.repository}/{reference.wanted}".split("/")
    assert not {"", ".", ".."} & set(parts)
    assert not set("%?#\\ \n@[]") & set(reference.repository + (reference.tag or ""))


def test_hosts_and_names_are_known_by_themselves() -> None:
    """For the keys of the operator's files."""
    assert all(map(is_registry, ("r.example", "r.example:5000", "localhost", "[::1]:5000", "127.0.0.1:5000")))
    assert not any(
        map(is_registry, ("", "r", "r.example/x", "r.example:70000", "https://r.example", "a b.c"))
    )
    assert all(map(is_repository, ("x", "a/b", "a/b-c.d__e")))
    assert not any(map(is_repository, ("", "/x", "x/", "x:1", "x@y", "a/../b", "X")))


def test_a_reference_cannot_be_changed() -> None:
    """It is a value."""
    reference = Reference(registry="r.example", repository="x", tag="1")
    with pytest.raises(ValueError, match="frozen"):
        reference.tag = "2"  # type: ignore[misc]
