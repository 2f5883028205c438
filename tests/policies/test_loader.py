"""Loading policies: all or nothing, and every error names the file."""

from pathlib import Path

import pytest

from policies.finding import PolicyError
from policies.loader import BUILTIN, load, load_policies

TEXT = (BUILTIN / "default.yaml").read_text()


def test_the_builtin_policies_are_there_and_are_loaded_once() -> None:
    """default, strict and judge come with the service; asking again costs nothing."""
    assert list(load_policies()) == ["default", "judge", "strict"]
    assert load_policies() is load_policies()


def test_default_is_what_the_documentation_promises() -> None:
    """A step that asks for nothing gets a core, 256 MiB, 64 processes, 10 s of CPU and 20 s of time."""
    limits = load_policies()["default"].defaults
    assert (limits.cpus, limits.memory, limits.pids) == (1, 256 << 20, 64)
    assert (limits.cpu_time, limits.wall_time, limits.output) == (10, 20, 64 << 10)


def test_strict_is_stricter_than_default() -> None:
    """No limit of strict is over that of default, and it grants no root and no capability."""
    default, strict = load_policies()["default"], load_policies()["strict"]
    assert all(value <= getattr(default.ceilings, name) for name, value in strict.ceilings)
    assert all(value <= getattr(default.defaults, name) for name, value in strict.defaults)
    assert strict.capabilities == ()
    assert strict.user != 0


def test_a_directory_adds_policies_and_replaces_those_of_the_same_name(tmp_path: Path) -> None:
    """An operator's policy stands beside the built-in ones, or in the place of one."""
    (tmp_path / "mine.yaml").write_text(TEXT.replace("name: default", "name: mine"))
    (tmp_path / "default.yaml").write_text(TEXT.replace("pids: 64", "pids: 32"))
    (tmp_path / "README.md").write_text("not a policy")
    policies = load_policies(tmp_path)
    assert list(policies) == ["default", "judge", "mine", "strict"]
    assert policies["default"].defaults.pids == 32
    assert load_policies()["default"].defaults.pids == 64


def test_the_loaded_policies_cannot_be_changed() -> None:
    """Nobody adds a policy behind the operator's back."""
    with pytest.raises(TypeError):
        load_policies()["mine"] = load_policies()["default"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (TEXT.replace("pids: 64", "pids: -1"), "defaults.pids: must be at least 1"),
        (
            TEXT.replace("pids: 64", "pids: 64\n  pids: 65"),
            "default.yaml:10: defaults.pids: stands twice; first in line 9",
        ),
        (TEXT + "privileged: true\n", "privileged: is not a field"),
        (TEXT.replace("user: 0\n", ""), "user: must be given"),
        (TEXT.replace("name: default", "name: other"), "must be other.yaml"),
        (
            TEXT.replace("syscalls: default", "syscalls: none"),
            "syscalls: must be 'strict', 'default' or 'debug'",
        ),
        (TEXT.replace("cpus: 1\n", "cpus: .nan\n"), "defaults.cpus: must be a finite number"),
        (TEXT.replace("memory: 256MiB", "memory: 256"), "defaults.memory: must be at least"),
        ("", "default.yaml:1: must be an object"),
        ("[1, 2]", "default.yaml:1: must be an object"),
        ("{", "expected"),
        ("a: !!python/object/apply:os.system [id]", "put text into quotation marks"),
        ("? [a, b]\n: c", "key"),
        ("\x00", "special characters"),
    ],
)
def test_a_wrong_file_is_refused_and_named(tmp_path: Path, text: str, complaint: str) -> None:
    """What is not exactly a policy stops the service with the file, the field and what is wrong with it."""
    path = tmp_path / "default.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_policies(tmp_path)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    """A directory that is not there is not the same as no directory."""
    with pytest.raises(PolicyError, match="No such file"):
        load_policies(tmp_path / "absent")


def test_a_file_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are refused like any other wrong file."""
    path = tmp_path / "default.yaml"
    path.write_bytes(b"name: \xff")
    with pytest.raises(PolicyError, match=r"default\.yaml"):
        load(path.parent)
