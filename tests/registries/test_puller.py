"""The puller: a process without privileges, started for one image, that leaves nothing but that image."""

import json
import os
import pwd
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydantic import SecretStr

from stockade import image_command, image_pull
from tests.registries.conftest import HURRIED, Ask
from tests.registries.hostile import Asked, Handler, Hostile, body_of
from tests.registries.oci import Layout, blobs_in, random_layers
from tests.registries.running import PASSWORD, Running
from tests.registries.running import USER as USERNAME
from worker.images.remote.credentials import Credential
from worker.images.remote.faults import Fault, RegistryError
from worker.images.remote.pull import Progress
from worker.images.remote.puller import Puller, PullerDiedError
from worker.images.remote.reference import parse_reference

SECRET = "never-on-a-command-line"
MANIFEST = "/v2/x/manifests/latest"
USER = "stockade" if os.geteuid() == 0 else None


@pytest.fixture
def layout() -> Layout:
    """An image of three layers."""
    return Layout()


@pytest.fixture
def image(hostile: Hostile, layout: Layout) -> str:
    """That image, served."""
    return hostile.serve(layout, layout.image(random_layers(3, 50_000), "none"))


@pytest.fixture
def owned(landing: Path) -> Path:
    """A directory of the puller's user, in one that this user cannot enter."""
    if USER is not None:
        os.chown(landing, pwd.getpwnam(USER).pw_uid, -1)
    landing.parent.chmod(0o700)
    return landing


def test_an_image_comes_through_the_process(image: str, layout: Layout, sources: Ask, owned: Path) -> None:
    """With progress, and with all of it in the directory."""
    told: list[Progress] = []
    reference = parse_reference(image)
    found = Puller(USER).pull(reference, sources(image), owned, told.append)
    assert blobs_in(owned) == layout.blobs
    assert told[-1].blobs == 3
    assert found.config in layout.blobs.values() and found.manifest in layout.blobs.values()
    assert Puller(USER).resolve(reference, sources(image)) == found.digest
    (top,) = json.loads((owned / "index.json").read_text())["manifests"]
    assert (top["digest"], top["size"]) == (found.manifest_digest, len(found.manifest))


def test_what_is_wrong_is_told_as_it_was_found(
    image: str, hostile: Hostile, sources: Ask, owned: Path
) -> None:
    """The error crosses the pipe whole."""
    hostile.routes.pop(MANIFEST)
    with pytest.raises(RegistryError, match="the registry does not have it") as caught:
        Puller(USER).pull(parse_reference(image), sources(image), owned)
    assert caught.value.fault is Fault.NOT_FOUND


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_it_has_no_privileges_and_nobody_sees_its_credential(
    image: str, hostile: Hostile, sources: Ask, owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user, no capability, nothing gained by execve, no group, no variable; nothing secret on show."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("STOCKADE_SOMETHING", "1")
    good, seen = hostile.routes[MANIFEST], dict[str, str]()

    def look(handler: Handler, asked: Asked) -> None:
        (pid,) = pullers()
        for name in ("status", "environ", "cmdline", "limits"):
            seen[name] = Path(f"/proc/{pid}/{name}").read_text().replace("\0", "\n")
        good(handler, asked)

    hostile.routes[MANIFEST] = look
    credential = Credential(username="somebody", password=SecretStr(SECRET))
    Puller(USER).pull(parse_reference(image), sources(image, credential=credential), owned)
    status = dict(line.split(":\t", 1) for line in seen["status"].splitlines() if ":\t" in line)
    uid = str(pwd.getpwnam("stockade").pw_uid)
    assert set(status["Uid"].split()) == {uid} and status["Groups"].strip() == ""
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert {line.partition("=")[0] for line in seen["environ"].split()} == {"PATH", "LANG"}
    assert SECRET not in seen["environ"] + seen["cmdline"]
    assert "Max core file size        0" in seen["limits"]


def test_it_ends_with_whoever_started_it(image: str, hostile: Hostile, sources: Ask, owned: Path) -> None:
    """An exception in the middle of a pull leaves no process, and no image."""
    go_on = threading.Event()

    def wait(handler: Handler, asked: Asked) -> None:
        go_on.wait(10)

    _, *others = json.loads(body_of(hostile.routes[MANIFEST]))["layers"]
    for layer in others:
        hostile.routes[f"/v2/x/blobs/{layer['digest']}"] = wait

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Puller(USER).pull(parse_reference(image), sources(image), owned, interrupt)
    go_on.set()
    assert not pullers() and not (owned / "index.json").exists()


def test_one_that_dies_is_an_error_of_its_own(
    image: str, sources: Ask, owned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the registry's, and not silence."""
    puller = Puller(USER)
    monkeypatch.setattr(puller, "_command", ("false",))
    with pytest.raises(PullerDiedError):
        puller.pull(parse_reference(image), sources(image), owned)
    with pytest.raises(PullerDiedError):
        puller.resolve(parse_reference(image), sources(image))


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory where idmapped mounts work, which on tmpfs they may not."""
    with tempfile.TemporaryDirectory(prefix="stockade-test-", dir="/var/tmp") as directory:
        yield Path(directory)


def command(*arguments: str) -> Result:
    """`stockade image …`."""
    return CliRunner().invoke(image_command.image, arguments)


@pytest.mark.kernel
@pytest.mark.once
def test_the_command_pulls_into_the_store(hostile: Hostile, layout: Layout, state: Path, image: str) -> None:
    """The image has the name that it was asked for by, and nothing else is left."""
    done = command("pull", f"{image}:latest", "--state", str(state))
    assert done.exit_code == 0, done.output
    found = json.loads(command("inspect", f"{image}:latest", "--state", str(state)).output)
    assert found["digest"] in layout.blobs and len(found["layers"]) == 3
    assert f"{image}:latest" in command("list", "--state", str(state)).output
    assert not list((state / "images" / "temporary").iterdir())


@pytest.mark.kernel
@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "said"),
    [("UPPER", "bad_name: 'UPPER'"), ("127.0.0.1:1/x", "127.0.0.1:1/x:latest: the connection failed")],
)
def test_the_command_says_what_is_wrong(
    state: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    """In its last line, with status 1, and leaves nothing."""
    monkeypatch.setattr(image_pull, "PATIENCE", HURRIED)
    done = command("pull", name, "--state", str(state))
    assert done.exit_code == 1 and done.output.splitlines()[-1].startswith(f"Error: {said}")
    assert not list((state / "images" / "temporary").iterdir())


@pytest.mark.kernel
@pytest.mark.once
def test_the_command_takes_the_operator_s_files(basic_registry: Running, state: Path, tmp_path: Path) -> None:
    """Credentials from a file; one that others can read is refused."""
    layout = Layout()
    top = layout.image(random_layers(1, 1000))
    name = basic_registry.push(
        layout.write(tmp_path / "layout", top), "private/cli:1", "--dest-creds", f"{USERNAME}:{PASSWORD}"
    )
    auths = {basic_registry.host: {"username": USERNAME, "password": PASSWORD}}
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": auths}))
    path.chmod(0o644)
    arguments = ("pull", name, "--credentials", str(path), "--state", str(state))
    assert "others can read it" in command(*arguments).output
    path.chmod(0o600)
    done = command(*arguments)
    assert done.exit_code == 0 and top["digest"] in done.output and PASSWORD not in done.output


def test_progress_reads_as_people_say_it() -> None:
    """Bytes of bytes, and the rate."""
    progress = Progress(bytes=45 << 20, bytes_total=120 << 20, blobs=1, blobs_total=3, rate=38.1 * (1 << 20))
    assert image_pull.told(progress) == "45.0 MiB of 120.0 MiB, 38.1 MiB/s"


def test_importing_it_is_all_that_it_needs() -> None:
    """The puller does not load Redis, Celery or the API: what it does not have it cannot leak."""
    code = "import sys, worker.images.remote.puller; print(*sys.modules)"
    command = [sys.executable, "-P", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout.split()
    assert not {"redis", "celery", "fastapi", "jobs", "api"} & set(loaded)


def pullers() -> list[str]:
    """Process ids of the pullers that we started."""
    time.sleep(0.05)
    found = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,args="], capture_output=True, text=True, check=False
    )
    return [line.split()[0] for line in found.stdout.splitlines() if "worker.images.remote.puller" in line]
