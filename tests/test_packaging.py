"""The units and the compose file name only what exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "packaging" / "systemd").iterdir())
COMPOSE = ROOT / "docker-compose.dev.yml"


def services() -> dict[str, list[str]]:
    """Each of our services' module and arguments, from the compose file."""
    loaded = yaml.safe_load(COMPOSE.read_text())["services"]
    return {name: loaded[name]["command"] for name in ("launcher", "worker", "api")}


@pytest.mark.parametrize("path", [*UNITS, COMPOSE], ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    """A variable that no process reads would be a setting that silently does nothing."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(PREFIX + "[A-Z_]+", path.read_text())) <= known


def test_units_and_containers_start_the_same_three_processes() -> None:
    """Each is a module of ours that can be run, and systemd and compose agree on them."""
    started = {re.findall(r"-m (\S+)", unit.read_text())[0] for unit in UNITS if unit.suffix == ".service"}
    assert started == {command[0] for command in services().values()}
    assert started == {"worker.sandbox.launcher", "worker", "api"}


def test_the_launchers_options_exist() -> None:
    """Every option that a unit or a container gives to the launcher is one that it has."""
    command = [sys.executable, "-m", "worker.sandbox.launcher", "--help"]
    known = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    unit = (ROOT / "packaging" / "systemd" / "stockade-launcher.service").read_text()
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    given = {word.partition("=")[0] for word in [*shlex.split(line)[4:], *services()["launcher"]]}
    options = {word for word in given if word.startswith("--")}
    assert options
    assert {option for option in options if option not in known} == set()


def test_the_rules_for_redis_are_those_that_stockade_up_uses() -> None:
    """One file, with a place for the SHA-256 of each user's password and no other; nobody else is let in."""
    text = (ROOT / "packaging" / "redis" / "stockade.acl").read_text()
    assert text == (ROOT / "stockade" / "stockade.acl").read_text()
    default, *users = text.splitlines()
    assert default == "user default off resetpass resetkeys resetchannels -@all"
    named = [re.match(r"user stockade-(\w+) on #SHA256_OF_([A-Z]+)_PASSWORD ", line) for line in users]
    assert [(each[1], each[2]) for each in named if each] == [
        (name, name.upper()) for name in ("api", "worker", "admin")
    ]
