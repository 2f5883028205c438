"""Policy documents: what one leaves to another, and what is wrong told with file, line and path, all at once."""

import os
from pathlib import Path

import pytest

from policies.finding import Finding, PolicyError
from policies.lint import lint
from policies.loader import BUILTIN, PolicySet, load, load_files
from policies.marked_yaml import BYTES_MAX, DEPTH_MAX, NODES_MAX, parse, read
from policies.policy import Policy

TEXT = (BUILTIN / "default.yaml").read_text()


def directory(at: Path, **files: str) -> Path:
    """A directory with these policy files."""
    for name, text in files.items():
        (at / f"{name}.yaml").write_text(text)
    return at


def findings(at: Path, **files: str) -> list[tuple[str, int, str, str]]:
    """What is wrong with these files: file, line, path, message."""
    with pytest.raises(PolicyError) as caught:
        load(directory(at, **files))
    assert str(caught.value) == "\n".join(map(str, caught.value.findings))
    return [(Path(f.file).name, f.line, f.path, f.message) for f in caught.value.findings]


def test_a_policy_takes_over_what_it_does_not_say(tmp_path: Path) -> None:
    """Field by field, limit by limit, variable by variable; along a chain of policies; lists are replaced whole."""
    loaded = load(
        directory(
            tmp_path,
            base="name: base\nextends: strict\nenvironment: {A: a, B: b}\nisolation: {cgroup: v2}\nimages: [x, y]\n",
            mine="name: mine\nextends: base\ndefaults: {pids: 3}\nenvironment: {B: mine}\n"
            "isolation: {kernel: '6.1'}\nimages: [z]\n",
        )
    )
    strict, mine = loaded.policies["strict"], loaded.policies["mine"]
    assert mine.defaults == strict.defaults.model_copy(update={"pids": 3})
    assert mine.ceilings == strict.ceilings
    assert mine.environment == {"A": "a", "B": "mine"}
    assert (mine.isolation.cgroup, mine.isolation.kernel, mine.images) == ("v2", "6.1", ("z",))
    assert mine.name == "mine"
    origins = loaded.resolved["mine"].origins
    assert [
        origins[path] for path in ("defaults.pids", "environment.A", "environment.B", "images", "user")
    ] == [*("mine", "base", "mine", "mine", "strict")]


def test_a_policy_that_extends_is_the_same_as_one_that_is_written_out(tmp_path: Path) -> None:
    """What counts is the content: the digest does not tell how it was written."""
    loaded = load(
        directory(tmp_path, a="name: a\nextends: default\n", b=TEXT.replace("name: default", "name: b"))
    )
    a, b = loaded.policies["a"], loaded.policies["b"]
    assert a.model_copy(update={"name": "b"}).digest == b.digest


def test_null_is_the_same_as_leaving_out(tmp_path: Path) -> None:
    """A field without a value is inherited."""
    loaded = load(directory(tmp_path, a="name: a\nextends: default\nuser:\ndefaults: {pids: null}\n"))
    assert (loaded.policies["a"].user, loaded.policies["a"].defaults.pids) == (0, 64)


def test_everything_wrong_is_told_at_once_with_file_line_and_path(tmp_path: Path) -> None:
    """Unknown keys, wrong values, doubled keys, missing fields, in several files: each at its line."""
    found = findings(
        tmp_path,
        a="name: a\nextends: default\nceilings:\n  memmory: 1GiB\n  pids: many\nprivileged: true\n",
        b="name: b\nextends: default\nuser: 1\nuser: 2\n",
        c=TEXT.replace("name: default", "name: c").replace("user: 0\n", "").replace("  stack: 64MiB\n", ""),
    )
    assert [each[:3] for each in found] == [
        ("a.yaml", 4, "ceilings.memmory"),
        ("a.yaml", 5, "ceilings.pids"),
        ("a.yaml", 6, "privileged"),
        ("b.yaml", 4, "user"),
        ("c.yaml", 3, "user"),
        ("c.yaml", 6, "defaults.stack"),
    ]
    messages = [each[3] for each in found]
    assert "did you mean memory?" in messages[0]
    assert messages[3] == "stands twice; first in line 3"
    assert messages[4] == messages[5] == "must be given"


def test_policies_that_extend_each_other_are_told_once_with_the_circle(tmp_path: Path) -> None:
    """A circle is named from one end to the other, once, and also when a policy extends itself."""
    [found] = findings(
        tmp_path,
        a="name: a\nextends: b\n",
        b="name: b\n\nextends: c\n",
        c="name: c\nextends: b\n",
    )
    assert found == ("b.yaml", 3, "extends", "the policies extend each other in a circle: b → c → b")
    os.unlink(tmp_path / "a.yaml")
    assert findings(tmp_path, b="name: b\nextends: b\n", c=TEXT.replace("name: default", "name: c"))[0][
        3
    ].endswith("b → b")


def test_an_unknown_parent_is_told_with_the_chain(tmp_path: Path) -> None:
    """Where the chain breaks off, and how it led there; what hangs on a broken file is not told again."""
    [found] = findings(tmp_path, a="name: a\nextends: b\n", b="name: b\nextends: nothing\n")
    assert found[:3] == ("b.yaml", 2, "extends")
    assert "there is no policy nothing to extend" in found[3]
    [found] = findings(tmp_path, b="name: b\nextends: default\nusr: 1\n")
    assert found[:3] == ("b.yaml", 3, "usr")


def test_contradictions_name_both_places(tmp_path: Path) -> None:
    """A default over a ceiling that another document sets is told where it stands, with where the ceiling does."""
    found = findings(
        tmp_path,
        low="name: low\nextends: default\nceilings: {memory: 64MiB, pids: 32}\n",
        mine="name: mine\nextends: low\ndefaults:\n  cpu_time: 10m\n",
        much="name: much\nextends: default\nceilings:\n  cpus: 300\n",
    )
    assert [each[:3] for each in found] == [
        ("low.yaml", 3, "ceilings.memory"),
        ("low.yaml", 3, "ceilings.pids"),
        ("mine.yaml", 4, "defaults.cpu_time"),
        ("much.yaml", 4, "ceilings.cpus"),
    ]
    assert "default.yaml:8" in found[0][3]
    assert "default.yaml:22" in found[2][3]
    assert "the launcher gives" in found[3][3]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("syscalls: none", "syscalls"),
        ("capabilities: [SYS_ADMIN]", "capabilities[0]"),
        ("network: egress", "network"),
        ("isolation: {kernel: '99.0'}", "isolation.kernel"),
        ("isolation: {image: oci}", "images"),
        ("priority_max: urgent", "priority_max"),
        ("pools: [Big]", "pools[0]"),
        ("environment: {A=B: c}", 'environment["A=B"]'),
        ("wall_time: 10s", "wall_time"),
        ("version: 2024-01-01", "version"),
    ],
)
def test_what_no_kernel_and_no_profile_has_is_refused(tmp_path: Path, line: str, path: str) -> None:
    """Unknown profiles, capabilities, network modes, floors: refused with their place, never ignored."""
    found = findings(tmp_path, mine=f"name: mine\nextends: default\n{line}\n")
    assert path in [each[2] for each in found]
    assert {each[0] for each in found} <= {"mine.yaml", "default.yaml"}  # where what it contradicts stands


def test_the_platform_bounds_all_policies_and_may_leave_none_without_anything(tmp_path: Path) -> None:
    """platform.yaml is bounds; one that leaves a policy no image is an error, unless it rules the policy out."""
    loaded = load(directory(tmp_path, platform="ceilings: {pids: 10}\n"))
    assert loaded.platform.ceilings is not None
    assert loaded.policies["default"].ceilings.pids == 512  # the scopes are applied to it, they are not in it
    found = findings(tmp_path, platform="ceilings: {pids: 10}\nimages: [other]\npools: [p]\n")
    assert {each[:3] for each in found} == {("platform.yaml", 2, "images"), ("platform.yaml", 3, "pools")}
    mine = "name: mine\nextends: default\nimages: [other]\n"
    assert load(directory(tmp_path, platform="policies: [mine]\nimages: [other]\n", mine=mine))
    [none] = findings(tmp_path, platform="policies: [nothing]\n")
    assert none[3] == "lets through none of the policies"
    [typo] = findings(tmp_path, platform="\n\nceilings: {cpu: 1}\n")
    assert typo[:3] == ("platform.yaml", 3, "ceilings.cpu")
    assert load(directory(tmp_path, platform="# nothing\n")).platform.ceilings is None


def test_no_policy_is_called_platform(tmp_path: Path) -> None:
    """The name stands for the platform."""
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    (drafts / "platform.yaml").write_text("name: platform\nextends: default\n")
    assert load(tmp_path).drafts == {}


def test_drafts_are_beside_the_policies(tmp_path: Path) -> None:
    """A draft may extend the policy of its own name, or be of a new one; a broken one keeps nothing from loading."""
    drafts = tmp_path / "drafts"
    drafts.mkdir()
    directory(
        drafts,
        default="name: default\nextends: default\nceilings: {pids: 100}\n",
        new="name: new\nextends: strict\n",
        broken="name: broken\nextends: nothing\n",
        wrong="name: wrong\nuser: x\n",
    )
    loaded = load(tmp_path)
    assert sorted(loaded.drafts) == ["default", "new"]
    assert loaded.drafts["default"].policy.ceilings.pids == 100
    assert loaded.policies["default"].ceilings.pids == 512
    assert "new" not in loaded.policies
    assert {(Path(f.file).name, f.path) for f in loaded.draft_findings} == {
        ("broken.yaml", "extends"),
        ("wrong.yaml", "user"),
    }


def refusal(text: str) -> Finding:
    """The one thing that is wrong with a text."""
    with pytest.raises(PolicyError) as caught:
        parse(text, "file")
    [finding] = caught.value.findings
    return finding


def test_a_yaml_bomb_is_refused_before_it_grows() -> None:
    """Aliases, with which a few lines become gigabytes, are no part of a document; nor is endless or deep YAML."""
    bomb = "a: &a [x, x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(30))
    assert (refusal(bomb).line, refusal(bomb).message) == (
        2,
        "*a is an alias; write the value out, or use extends",
    )
    assert "values" in refusal("[" + "x," * NODES_MAX + "]").message
    assert "deeper" in refusal("[" * 5000).message
    assert "deeper" in refusal("\n".join(" " * n + "a:" for n in range(DEPTH_MAX + 2))).message
    assert "alias" in refusal("a: &a [*a]").message


@pytest.mark.parametrize(
    "text",
    [
        "a: 1" + "0" * 5000,
        "a: !!binary aGk=",
        "a: 2024-01-01",
        "a: !!set {b}",
        "a: !!python/name:os.system",
        "{a: 1",
        "a: 1\n--- \nb: 2",
        "? {a: 1}\n: b",
        "1: a",
        "<<: {a: 1}",
        "a: \x01",
        "%YAML 9.9\n---\na: 1",
        "\tb: 1",
    ],
)
def test_what_is_no_plain_document_is_refused_with_a_line(text: str) -> None:
    """Tags, dates, sets, several documents, merge keys, numbers without end: each is one finding."""
    assert refusal(text).line >= 1


def test_files_are_bounded_and_not_everybodys(tmp_path: Path) -> None:
    """A huge file, a device, and a file that anybody can write are refused."""
    path = tmp_path / "x.yaml"
    path.write_text("#" * (BYTES_MAX + 1))
    for change, message in ((lambda: None, "bytes"), (lambda: os.chmod(path, 0o666), "chmod o-w")):
        change()
        with pytest.raises(PolicyError, match=message):
            read(path)
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(PolicyError, match="not a regular file"):
        read(path)


def test_lint_tells_what_is_odd(tmp_path: Path) -> None:
    """Out of reach under the platform, open to every image, the same as another, not to be used: with their lines."""
    loaded = load(
        directory(
            tmp_path,
            platform="ceilings: {memory: 1GiB}\npolicies: [default, wide, twin, high]\nisolation: {kernel: '6.1'}\n",
            wide="name: wide\nextends: default\nceilings: {memory: 512MiB}\nimages:\n  - '*'\n",
            twin="name: twin\nextends: wide\n",
            high="name: high\nextends: strict\nceilings:\n  memory: 2GiB\n",
            out="name: out\nextends: strict\nuser: 7\n",
        )
    )
    told = [(Path(f.file).name, f.line, f.path) for f in lint(loaded)]
    assert told == [
        ("high.yaml", 4, "ceilings.memory"),
        ("out.yaml", 1, "name"),
        ("wide.yaml", 1, "name"),
        ("wide.yaml", 4, "images"),
    ]


def test_the_builtin_policies_have_nothing_odd() -> None:
    """What comes with the service is clean."""
    assert lint(load()) == []


def test_files_are_loaded_beside_the_builtin_ones(tmp_path: Path) -> None:
    """Single files can be looked at without a directory; platform.yaml among them bounds."""
    directory(tmp_path, mine="name: mine\nextends: default\n", platform="ceilings: {pids: 7}\n")
    loaded: PolicySet = load_files([tmp_path / "mine.yaml"])
    assert list(loaded.policies) == ["default", "judge", "mine", "strict"]
    assert loaded.platform.ceilings is None
    assert load_files([tmp_path / "platform.yaml"]).platform.ceilings is not None


def test_a_policy_read_from_yaml_is_a_policy() -> None:
    """The documents' model has the fields of the policy's, and `extends`."""
    from policies.document import PolicyDocument

    assert set(PolicyDocument.model_fields) == {*Policy.model_fields, "extends"}
