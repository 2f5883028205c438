"""JobSpec: what a request may look like, and what is refused before any policy is asked."""

import re
import timeit
from base64 import b64encode
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.spec import ARGV_ENV_BYTES, ARGV_MAX, WORKSPACE, Content, File, JobSpec, Step
from policies.violation import violations

TRUE = {"command": ["/bin/true"]}


def refused(body: Any) -> dict[str, str]:
    """What is wrong with a body: the message, by field."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    return {found.field: found.message for found in violations(caught.value)}


def with_step(**values: Any) -> dict[str, Any]:
    """A body whose only step has these values."""
    return {"command": {"argv": ["a"]} | values}


def with_files(*paths: str) -> dict[str, Any]:
    """A body with an empty file at each of these paths."""
    return TRUE | {"files": [{"path": path, "text": ""} for path in paths]}


def test_the_smallest_request_is_a_command() -> None:
    """A list of arguments is a whole request; all else has a default."""
    spec = JobSpec.model_validate(TRUE)
    assert spec.sequence == (Step(argv=("/bin/true",)),)
    assert (spec.image, spec.policy, spec.files, spec.outputs) == ("host", "default", (), ())
    step = spec.sequence[0]
    assert (step.cwd, step.env, step.stdin.data, step.on_output_limit) == (WORKSPACE, {}, b"", "truncate")


def test_a_command_may_be_a_list_or_an_object() -> None:
    """`["a", "b"]` is short for `{"argv": ["a", "b"]}`."""
    assert JobSpec.model_validate({"command": ["a", "b"]}) == JobSpec.model_validate(
        {"command": {"argv": ["a", "b"]}}
    )


def test_steps_stand_in_the_place_of_a_command() -> None:
    """Several steps come in their order."""
    spec = JobSpec.model_validate({"steps": [{"argv": ["a"]}, {"argv": ["b"], "name": "run"}]})
    assert [step.argv[0] for step in spec.sequence] == ["a", "b"]


@pytest.mark.parametrize("body", [{}, TRUE | {"steps": [{"argv": ["a"]}]}, {"command": None, "steps": None}])
def test_exactly_one_of_command_and_steps(body: dict[str, Any]) -> None:
    """Neither, and both, are refused."""
    assert refused(body) == {"": 'give exactly one of "command" and "steps"'}


@pytest.mark.parametrize("body", [None, [], "x", 1, float("nan"), [TRUE]])
def test_a_body_is_an_object(body: object) -> None:
    """Anything that is no JSON object is refused as a whole."""
    assert refused(body) == {"": "must be an object"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (TRUE | {"urgency": 1}, "urgency"),
        (with_step(shell=True), "command.shell"),
        (with_step(limits={"ram": 1}), "command.limits.ram"),
        (with_step(stdin={"text": "", "encoding": "x"}), "command.stdin.encoding"),
        (TRUE | {"files": [{"path": "a", "text": "", "owner": 0}]}, "files[0].owner"),
        ({"steps": [{"argv": ["a"], "network": "host"}]}, "steps[0].network"),
    ],
)
def test_an_unknown_field_is_refused_wherever_it_stands(body: dict[str, Any], field: str) -> None:
    """A key that we do not know is an error at every depth, never ignored."""
    assert refused(body) == {field: "is not a field that is known here"}


@pytest.mark.parametrize(
    ("argv", "field", "message"),
    [
        ([], "command.argv", "must have at least 1 items"),
        ([""], "command.argv[0]", "the program must not be empty"),
        (["a", "b\0c"], "command.argv[1]", "must not contain a NUL character"),
        (["a", 1], "command.argv[1]", "must be text"),
        (["a", True], "command.argv[1]", "must be text"),
        (["a", None], "command.argv[1]", "must be text"),
        (["a", "\ud800"], "command.argv[1]", "must be text in valid Unicode, without lone surrogates"),
        (["a"] * (ARGV_MAX + 1), "command.argv", f"must have at most {ARGV_MAX} items"),
        ("ls -l", "command.argv", "must be a list"),
        ({"0": "a"}, "command.argv", "must be a list"),
    ],
)
def test_an_argv_that_no_program_can_get_is_refused(argv: object, field: str, message: str) -> None:
    """Empty, with NUL, not text, not Unicode, too many: each is refused where it stands."""
    assert refused({"command": {"argv": argv}}) == {field: message}


@pytest.mark.parametrize("command", ["ls -l", 1, True])
def test_a_command_is_never_text_for_a_shell(command: object) -> None:
    """A command line in one text is refused; no shell would split it."""
    assert refused({"command": command}) == {
        "command": 'must be a list of arguments, or an object with "argv"'
    }


def test_argv_and_env_have_a_size_together() -> None:
    """They are counted in bytes, terminators included, just as execve counts them."""
    room = ARGV_ENV_BYTES - len("a\0") - len("K=\0")
    assert JobSpec.model_validate(with_step(env={"K": "x" * room}))
    over = f"argv and env are {ARGV_ENV_BYTES + 1} bytes together; at most {ARGV_ENV_BYTES} are allowed"
    assert refused(with_step(env={"K": "x" * (room + 1)})) == {"command.argv": over}
    assert "command.argv" in refused({"command": ["a", "€" * (ARGV_ENV_BYTES // 3)]})


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0B"])
def test_an_environment_variable_has_a_name(name: str) -> None:
    """A name is not empty and has neither `=` nor NUL in it."""
    (message,) = refused(with_step(env={name: "x"})).values()
    assert message == 'must not be empty, nor contain "=" or NUL'


def test_an_environment_variable_has_text() -> None:
    """Values are text without NUL; numbers are not turned into text."""
    assert refused(with_step(env={"A": "\0", "B": 1})) == {
        "command.env.A": "must not contain a NUL character",
        "command.env.B": "must be text",
    }


@pytest.mark.parametrize(
    ("cwd", "directory"),
    [
        *[(same, "/work") for same in ("", ".", "/work", "/work/")],
        *[(same, "/work/src/lib") for same in ("src/lib", "src/lib/", "/work/src/lib")],
        ("work", "/work/work"),
    ],
)
def test_a_working_directory_is_in_the_workspace(cwd: str, directory: str) -> None:
    """However it is written, it is kept in its absolute form."""
    assert JobSpec.model_validate(with_step(cwd=cwd)).sequence[0].cwd == directory


@pytest.mark.parametrize(
    "cwd",
    ["/", "/proc/self/fd/8", "/etc", "/workshop", "..", "a/../..", "/work/..", "/work//etc", "a\0b", 1, None],
)
def test_a_working_directory_is_never_elsewhere(cwd: object) -> None:
    """Paths of the host, of descriptors and out of the workspace are refused."""
    assert list(refused(with_step(cwd=cwd))) == ["command.cwd"]


@pytest.mark.parametrize(
    ("stdin", "data"),
    [("häh\n", "häh\n".encode()), ({"text": "\0"}, b"\0"), ({"base64": "/wA="}, b"\xff\x00"), ("", b"")],
)
def test_standard_input_is_text_or_bytes(stdin: object, data: bytes) -> None:
    """Text is sent as UTF-8, base64 as the bytes that it stands for."""
    content = JobSpec.model_validate(with_step(stdin=stdin)).sequence[0].stdin
    assert content.data == data
    assert content.size == len(data)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, ""),
        ({"text": "", "base64": ""}, ""),
        ({"text": None, "base64": None}, ""),
        ({"text": 1}, ".text"),
        ({"text": "\ud800"}, ".text"),
        *[
            ({"base64": wrong}, ".base64")
            for wrong in ("a", "a===", "aa", "YQ", "YQ==\n", "YQ==YQ==", "_-==", "é")
        ],
    ],
)
def test_content_has_exactly_one_exact_form(content: dict[str, Any], field: str) -> None:
    """Neither form, both, text that is no Unicode and base64 that is not quite base64 are refused."""
    assert list(refused(with_step(stdin=content))) == ["command.stdin" + field]


@given(st.binary())
def test_content_tells_its_size_without_decoding(data: bytes) -> None:
    """Size and data agree for base64 and for text."""
    content = Content(base64=b64encode(data).decode())
    assert (content.data, content.size) == (data, len(data))
    text = Content(text=data.decode("latin-1"))
    assert text.size == len(text.data)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/passwd", "must be relative to the workspace, without a leading /"),
        *[
            (path, 'must be a plain path: no component may be empty, "." or ".."')
            for path in ("../x", "a/../../x", "a/..", "..", ".", "./a", "a//b", "a/", "a/./b")
        ],
        ("a\0b", "must not contain a NUL character"),
        ("", "must have at least 1 characters"),
        ("x" * 256, "must have at most 255 bytes in each component"),
        ("ü" * 128, "must have at most 255 bytes in each component"),
        ("x/" * 64 + "x", "must have at most 4095 bytes and 64 components"),
        ("\ud800", "must be text in valid Unicode, without lone surrogates"),
        ("x" * 5000, "must have at most 4095 characters"),
    ],
)
def test_a_path_that_is_not_plainly_inside_is_refused(path: str, message: str) -> None:
    """Absolute, upward, doubled, empty, NUL, too long: for files and for outputs alike."""
    assert refused(with_files(path)) == {"files[0].path": message}
    assert refused(TRUE | {"outputs": [path]}) == {"outputs[0]": message}


@pytest.mark.parametrize(
    "path", ["a", "src/main.py", "...", "..a", "con", "-rf", "a b", "ü/€", "x" * 255, "a\nb"]
)
def test_an_odd_name_is_still_a_name(path: str) -> None:
    """Names that are only odd are taken as they are."""
    assert JobSpec.model_validate(with_files(path)).files[0].path == path


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "c d"]), max_size=6))
def test_no_accepted_path_leaves_the_workspace(parts: list[str]) -> None:
    """What is accepted resolves to itself below the workspace."""
    path = "/".join(parts)
    try:
        File(path=path, text="")
    except ValidationError:
        return
    assert not path.startswith("/")
    assert not {"", ".", ".."} & set(path.split("/"))


def test_a_path_stands_once() -> None:
    """The second file of one path is named."""
    assert refused(with_files("a", "b", "a")) == {"files[2].path": "this path stands twice"}


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("x/a/b/c", "x/a")])
def test_a_file_is_not_also_a_directory(paths: tuple[str, str]) -> None:
    """Two files of which one would have to be a directory of the other are refused, in either order."""
    (message,) = refused(with_files(*paths)).values()
    assert "is a file of this request itself" in message


def test_files_side_by_side_do_not_clash() -> None:
    """A common directory, and a name that begins like another, are fine."""
    assert len(JobSpec.model_validate(with_files("a/b", "a/c", "ab", "a.b", "a/d/e")).files) == 5


@pytest.mark.parametrize(("mode", "bits"), [("0644", 0o644), ("755", 0o755), ("0000", 0), ("0777", 0o777)])
def test_a_mode_is_octal_text(mode: str, bits: int) -> None:
    """Three octal digits, with or without a leading zero."""
    file = File.model_validate({"path": "a", "text": "", "mode": mode})
    assert file.mode_bits == bits
    assert len(file.mode) == 4


@pytest.mark.parametrize(
    "mode", [644, 0o644, "4755", "0o644", "888", "rw-r--r--", "", "64", True, None, "0644\n"]
)
def test_a_mode_that_could_be_misread_is_refused(mode: object) -> None:
    """A number would be read as decimal; set-uid bits are not for a request to give."""
    body = TRUE | {"files": [{"path": "a", "text": "", "mode": mode}]}
    assert refused(body) == {"files[0].mode": 'must be three octal digits as text, such as "0644" or "755"'}


def test_step_names_are_unique() -> None:
    """Two steps of one name are refused, also when one is named as another is by default."""
    steps = [{"argv": ["a"], "name": "x"}, {"argv": ["a"], "name": "x"}]
    assert refused({"steps": steps}) == {"steps[1].name": "the name 'x' stands twice"}
    steps = [{"argv": ["a"], "name": "step-2"}, {"argv": ["a"]}]
    assert refused({"steps": steps}) == {"steps[1].name": "the name 'step-2' stands twice"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "Default"),
        ("policy", "../x"),
        ("policy", ""),
        ("policy", 1),
        ("policy", None),
        ("image", ""),
        ("image", "x" * 256),
        ("image", None),
        ("image", ["host"]),
        ("files", {}),
        ("files", None),
        ("outputs", "*"),
        ("steps", {}),
        ("steps", []),
    ],
)
def test_wrong_types_and_names_are_refused(field: str, value: object) -> None:
    """Each field takes its own type only, and names have their form."""
    body = {field: value} if field == "steps" else TRUE | {field: value}
    assert list(refused(body)) == [field]


@pytest.mark.parametrize("value", ["TRUNCATE", "", None, True, "drop"])
def test_on_output_limit_has_two_values(value: object) -> None:
    """Truncate or kill, nothing else."""
    assert list(refused(with_step(on_output_limit=value))) == ["command.on_output_limit"]


def test_a_spec_cannot_be_changed() -> None:
    """What was accepted stays what it was."""
    with pytest.raises(ValidationError, match="frozen"):
        JobSpec.model_validate(TRUE).image = "other"


names = st.text("abc", min_size=1, max_size=3)
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)
contents = st.builds(lambda text: {"text": text}, texts) | st.builds(
    lambda data: {"base64": b64encode(data).decode()}, st.binary(max_size=20)
)
step_bodies = st.fixed_dictionaries(
    {"argv": st.lists(texts.filter(bool), min_size=1, max_size=3)},
    optional={
        "env": st.dictionaries(names, texts, max_size=2),
        "stdin": texts | contents,
        "cwd": st.sampled_from(["", "src", "/work/a/b", "a/"]),
        "limits": st.fixed_dictionaries(
            {}, optional={"memory": st.just("64MiB"), "cpu_time": st.just("500ms")}
        ),
        "on_output_limit": st.sampled_from(["truncate", "kill"]),
    },
)
file_bodies = st.builds(
    lambda path, content, mode: {"path": path, "mode": mode} | content,
    names,
    contents,
    st.sampled_from(["0600", "755"]),
)
bodies = st.fixed_dictionaries(
    {"steps": st.lists(step_bodies, min_size=1, max_size=3)},
    optional={
        "files": st.lists(file_bodies, max_size=3, unique_by=lambda file: file["path"]),
        "outputs": st.lists(st.sampled_from(["*.txt", "out/**"])),
    },
)


@given(bodies)
def test_a_spec_survives_being_stored(body: dict[str, Any]) -> None:
    """Written as JSON, with or without what was left out, and read again, it is the same request."""
    spec = JobSpec.model_validate(body)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json(exclude_unset=True)) == spec
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_the_schema_shows_every_form() -> None:
    """The JSON schema tells the short forms, that one of two must be there, and closes every object."""
    schema = JobSpec.model_json_schema()
    command = schema["properties"]["command"]["anyOf"]
    assert [form.get("type", form.get("$ref")) for form in command] == ["#/$defs/Step", "array", "null"]
    assert [one["required"] for one in schema["oneOf"]] == [["command"], ["steps"]]
    stdin = schema["$defs"]["Step"]["properties"]["stdin"]["anyOf"]
    assert [form.get("type", form.get("$ref")) for form in stdin] == ["string", "#/$defs/Content"]
    objects = [part for part in [schema, *schema["$defs"].values()] if part["type"] == "object"]
    assert len(objects) > 3
    assert all(part["additionalProperties"] is False for part in objects)


@pytest.mark.parametrize("parts", list(product(["", ".", "..", "...", "a", "/work", "a\0b"], repeat=2)))
@pytest.mark.parametrize("end", ["", "/"])
def test_the_schema_knows_paths_as_we_do(parts: tuple[str, str], end: str) -> None:
    """A path fits the pattern in the JSON schema just when it is accepted."""
    schema = JobSpec.model_json_schema()
    path = "/".join(parts) + end
    for body, pattern in (
        (TRUE | {"outputs": [path]}, schema["properties"]["outputs"]["items"]["pattern"]),
        (with_step(cwd=path), schema["$defs"]["Step"]["properties"]["cwd"]["pattern"]),
    ):
        try:
            JobSpec.model_validate(body)
            accepted = True
        except ValidationError:
            accepted = False
        assert bool(re.search(pattern, path)) == accepted, body


def test_deep_paths_cost_little() -> None:
    """The most files of the deepest paths are checked for clashes within a second or so."""
    files = [{"path": "/".join([str(number), *["d"] * 63]), "text": ""} for number in range(10_000)]
    assert timeit.timeit(lambda: JobSpec.model_validate(TRUE | {"files": files}), number=1) < 5
