"""`stockade image`: bring in, run in, look at, remove."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from stockade.progress import Progress
from tests.images import archive, config_of, entry, oci, root

pytestmark = [pytest.mark.kernel, pytest.mark.once]
STOCKADE = Path(sys.executable).with_name("stockade")


class Images:
    """The command on a state directory of the test's own."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def __call__(self, *arguments: str | Path, status: int = 0, command: str = "image") -> str:
        argv = [STOCKADE, command, *arguments[:1], "--state", self.state, *arguments[1:]]
        if command == "run":
            argv = [STOCKADE, "run", "--state", self.state, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def run(self, *arguments: str) -> str:
        """`stockade run` on the same state."""
        return self(*arguments, command="run")


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "state")


def docker_save(path: Path, *layers: bytes, tags: list[str] | None, **config: Any) -> Path:
    """What `docker save` writes, with a layer that is a link to another as older versions do."""
    settings = json.dumps(config_of(layers, **config)).encode()
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    saved = [{"Config": "abc.json", "RepoTags": tags, "Layers": [*names]}]
    with tarfile.open(path, "w") as file:
        for name, content in (("abc.json", settings), *zip(names, layers, strict=True)):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
        about = tarfile.TarInfo("manifest.json")
        text = json.dumps(saved).encode()
        about.size = len(text)
        file.addfile(about, io.BytesIO(text))
    return path


def test_an_image_comes_in_runs_and_goes(images: Images, tmp_path: Path) -> None:
    """The whole life of one, from what `docker save` wrote; its variables, user and directory are the program's."""
    upper = archive(entry("etc/passwd", data=b"app:x:7:9:::\n"), entry("srv/hello", data=b"hello\n"))
    config = {"User": "app", "WorkingDir": "/srv", "Env": ["PATH=/bin", "WHO=image"]}
    saved = docker_save(tmp_path / "saved.tar", root(), upper, tags=["tools:1"], **config)
    assert "tools:1" in images("import", saved)
    assert images("list").split()[0] == "tools:1"
    script = ("sh", "-c", "cat hello; id -u; id -g; echo $WHO $HOME; pwd")
    assert images.run("--image", "tools:1", "--", *script).split() == [
        "hello",
        "7",
        "9",
        "image",
        "/work",
        "/srv",
    ]
    said = images.run(
        "--image", "tools:1", "--env", "WHO=me", "--cwd", "", "--", "sh", "-c", "echo $WHO; pwd"
    )
    assert said.split() == ["me", "/work"]
    record = json.loads(images("inspect", "tools:1"))
    result = json.loads(images.run("--json", "--image", record["digest"], "--", "cat", "hello"))
    assert result["isolation"]["image"] == record["digest"]
    assert result["isolation"]["image_note"] is None
    assert json.loads(images("inspect", "tools:1", "--raw", "config"))["config"]["User"] == "app"
    assert "2 layers, 0 damaged" in images("verify")
    assert "tools:1: freed" in images("remove", "tools:1")
    assert images("list") == ""
    assert os.listdir(images.state) == ["images"], "a run leaves nothing else"
    assert "no such image" in images("--image", "tools:1", "--", "true", command="run", status=125)


def test_every_form_comes_in(images: Images, tmp_path: Path) -> None:
    """OCI layout as a directory and as a tar; a plain root, compressed or not."""
    layout = oci(tmp_path / "layout", root(), compressed=True)
    with tarfile.open(tmp_path / "layout.tar", "w") as file:
        file.add(layout, ".")
    (tmp_path / "root.tar").write_bytes(root())
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(root(), 1))
    for number, name in enumerate(("layout", "layout.tar", "root.tar", "root.tar.gz")):
        images("import", tmp_path / name, "--name", f"form:{number}")
    lines = [line.split() for line in images("list").splitlines()]
    digests = {line[0]: line[1] for line in lines}
    assert digests["form:0"] == digests["form:1"] != digests["form:2"] == digests["form:3"]
    assert images.run("--image", "form:3", "--", "sh", "-c", "echo ok") == "ok\n"
    assert len(os.listdir(images.state / "images" / "layers")) == 1


def test_what_is_no_image_is_said_in_one_line(images: Images, tmp_path: Path) -> None:
    """Text, an empty file, an empty directory, several images, bad names."""
    (tmp_path / "text").write_text("this is not an archive\n" * 100)
    (tmp_path / "empty").touch()
    (tmp_path / "nothing").mkdir()
    both = tmp_path / "both.tar"
    docker_save(both, root(), tags=None)
    with tarfile.open(both, "a") as file:
        file.addfile(tarfile.TarInfo("manifest.json"))
    for name, word in (
        ("text", "layer_bad_header"),
        ("empty", "layer_truncated"),
        ("nothing", "no_image"),
        ("both.tar", "twice"),
    ):
        assert word in images("import", tmp_path / name, status=1)
    (tmp_path / "root.tar").write_bytes(root())
    for bad in ("host", "Upper", "a:b:c", "../x", "a//b", "x@sha256:1", "-x"):
        assert "bad_name" in images("import", tmp_path / "root.tar", f"--name={bad}", status=1)
    assert "there is no image" in images("inspect", "nothing", status=1)
    assert "there is no image" in images("remove", "nothing", status=1)
    assert "image_too_large" in images("import", tmp_path / "root.tar", "--max-size", "1KiB", status=1)


def test_a_compressed_archive_of_an_image_is_not_taken_for_a_root(images: Images, tmp_path: Path) -> None:
    """`docker save | gzip` holds an image, not a file system: it is refused with what to do."""
    saved = docker_save(tmp_path / "saved.tar", root(), tags=["tools:1"])
    (tmp_path / "saved.tar.gz").write_bytes(gzip.compress(saved.read_bytes(), 1))
    assert "decompress it" in images("import", tmp_path / "saved.tar.gz", status=1)
    assert images("list") == ""


def test_progress_is_shown_on_a_terminal_only() -> None:
    """Bytes and rate, over several blobs; the line is gone afterwards."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (Terminal(), io.StringIO()):
        with Progress(stream) as progress:
            progress.bytes(3 << 20)
        shown = stream.getvalue()
        assert ("3.0 MiB" in shown and "/s" in shown and shown.endswith("\r\033[K")) == stream.isatty()
        assert bool(shown) == stream.isatty()


def test_a_root_is_built_on_this_machine(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmdebstrap is asked for the packages and the release; what it makes becomes an image. Here a script stands in."""
    (tmp_path / "root.tar").write_bytes(root())
    asked, stand_in = tmp_path / "asked", tmp_path / "bin" / "mmdebstrap"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/sh\necho "$@" >{asked}\nfor last; do :; done\ncp {tmp_path}/root.tar "$last"\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    assert "debian:12" in images(
        "build-host", "debian:12", "--packages", "python3,g++", "--suite", "bookworm"
    )
    words = asked.read_text().split()
    assert {"--variant=minbase", "--include=python3,g++", "bookworm"} <= set(words)
    assert images.run("--image", "debian:12", "--", "sh", "-c", "echo built") == "built\n"
    assert not Path(words[-1]).exists(), "the archive is gone"
    for wrong in (("--packages", "a;b"), ("--packages", "--x"), ("--suite", "-x")):
        assert "is no name" in images("build-host", "x", "=".join(wrong), status=1)
    stand_in.write_text("#!/bin/sh\necho E: no such package >&2\nexit 1\n")
    assert "no such package" in images("build-host", "x", status=1)


def test_without_mmdebstrap_it_is_said_how_to_get_it(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with the command."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "apt-get install mmdebstrap" in images("build-host", "x", status=1)
