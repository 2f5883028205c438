"""Credentials: only from a file that is closed to others, and never to be seen again."""

import base64
import json
import os
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from worker.images.remote.credentials import REVEAL, Credential, load_credentials
from worker.images.remote.faults import Fault, RegistryError

SECRET = "tr0ub4dor-and-3"


def write(directory: Path, content: Any, mode: int = 0o600) -> Path:
    path = directory / "auth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def auth(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


def test_docker_s_own_file_is_understood(tmp_path: Path) -> None:
    """A pair in base64, a pair in plain text, a token; Docker Hub under the name that Docker gives it."""
    auths = {
        "https://index.docker.io/v1/": {"auth": auth(f"hub:{SECRET}:with-colon")},
        "r.example:5000": {"username": "u", "password": SECRET, "email": "ignored"},
        "R2.example": {"identitytoken": SECRET},
        "r3.example": {"registrytoken": SECRET},
    }
    found = load_credentials(write(tmp_path, {"auths": auths, "HttpHeaders": {}}))
    assert found["docker.io"].basic == "Basic " + auth(f"hub:{SECRET}:with-colon")
    assert found["r.example:5000"].basic == "Basic " + auth(f"u:{SECRET}")
    assert found["r2.example"].identity_token.get_secret_value() == SECRET
    assert found["r3.example"].registry_token.get_secret_value() == SECRET
    assert found["r3.example"].basic is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644, 0o666])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    """Its mode must be 0600 or less; the message says how to make it so."""
    with pytest.raises(RegistryError, match="others can read it; chmod 600") as caught:
        load_credentials(write(tmp_path, {"auths": {}}, mode))
    assert caught.value.fault is Fault.SETTINGS


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make another's file")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Who could write it could make us send credentials; only we and root may."""
    path = write(tmp_path, {"auths": {}})
    os.chown(path, 12345, 12345)
    with pytest.raises(RegistryError, match="belongs to user 12345"):
        load_credentials(path)


@pytest.mark.parametrize(
    "content",
    [
        "{" + SECRET,
        "[]",
        {"auths": [SECRET]},
        {"auths": {"not a host": {"auth": auth(f"u:{SECRET}")}}},
        {"auths": {"r.example": SECRET}},
        {"auths": {"r.example": {"auth": SECRET}}},
        {"auths": {"r.example": {"auth": auth(SECRET)}}},
        {"auths": {"r.example": {"password": [SECRET]}}},
        {"credsStore": "secretservice"},
        {"credHelpers": {"r.example": "ecr-login"}},
    ],
)
def test_a_file_that_is_not_right_is_refused_without_quoting_it(tmp_path: Path, content: Any) -> None:
    """No part of its content gets into the message, nor into the trace."""
    with pytest.raises(RegistryError) as caught:
        load_credentials(write(tmp_path, content))
    assert caught.value.fault is Fault.SETTINGS
    assert str(tmp_path) in str(caught.value)
    trace = "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(caught.value) + trace and auth(SECRET) not in trace


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A directory, a FIFO (which would block), nothing at all."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in ("fifo", "", "missing"):
        with pytest.raises(RegistryError):
            load_credentials(tmp_path / name)


def test_a_secret_is_written_out_for_the_pipe_alone() -> None:
    """Not in a repr, not in text, not in JSON without the word; the user's name neither."""
    credential = Credential(
        username="somebody",
        password=SecretStr(SECRET),
        identity_token=SecretStr(SECRET),
        registry_token=SecretStr(SECRET),
    )
    shown = f"{credential!r} {credential} {credential.model_dump()} {credential.model_dump_json()}"
    assert SECRET not in shown and "somebody" not in f"{credential!r} {credential}"
    assert SECRET in credential.model_dump_json(context=REVEAL)
    assert Credential.model_validate_json(credential.model_dump_json(context=REVEAL)) == credential
