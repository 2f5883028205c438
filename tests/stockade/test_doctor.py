"""The doctor tries what it reports, names the exact fix, and leaves the host as it was."""

import json
import os
import time
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from stockade import cgroup_trials, doctor, trials
from stockade.doctor import Finding, Status
from tests.sandboxes import Launcher

MOUNTINFO_V2 = "29 23 0:26 / {root} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNTINFO_HYBRID = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def stray_cgroups() -> list[Path]:
    """Groups of trials that are over; another doctor may be at work on this machine."""
    found = Path("/sys/fs/cgroup").glob("**/stockade-doctor-*")
    return [path for path in found if not Path("/proc", path.name.removeprefix("stockade-doctor-")).exists()]


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_v2_is_what_a_host_has_when_cgroup2_holds_the_memory_controller(tmp_path: Path) -> None:
    """The version comes from where the controllers are, not from which file systems are mounted."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = cgroup_trials.find_hierarchies(MOUNTINFO_V2.format(root=tmp_path))
    assert found.version == "v2"
    assert found.missing == ()
    assert found.mounts["memory"] == str(tmp_path)


def test_hybrid_counts_as_v1_and_names_what_is_missing() -> None:
    """A cgroup2 mount without controllers beside v1 hierarchies does not make a host v2."""
    found = cgroup_trials.find_hierarchies(MOUNTINFO_HYBRID)
    assert found.version == "v1"
    assert found.mounts["cpuacct"] == found.mounts["cpu"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert found.missing == ("blkio", "pids")


def test_a_missing_controller_fails_with_the_command_that_mounts_it() -> None:
    """Every failed finding carries a fix that can be pasted."""
    findings = by_name(list(doctor.control_groups(cgroup_trials.find_hierarchies(MOUNTINFO_HYBRID))))
    assert findings["cgroup_pids"].status is Status.FAIL
    assert "mount -t cgroup -o pids pids /sys/fs/cgroup/pids" in findings["cgroup_pids"].fix
    assert "memory_limit" not in findings, "limits are not tried where a controller is missing"


def test_a_host_without_cgroups_fails_at_once() -> None:
    """With no hierarchy at all there is one finding and one fix, not a list of consequences."""
    (finding,) = doctor.control_groups(cgroup_trials.find_hierarchies("22 1 8:1 / / rw - ext4 /dev/sda rw\n"))
    assert finding.status is Status.FAIL
    assert "mount -t cgroup2" in finding.fix


@pytest.mark.parametrize(
    ("release", "status"), [("5.10.0-8-amd64", "fail"), ("5.15.0", "warn"), ("6.1.0-18-amd64", "ok")]
)
def test_kernel_age(release: str, status: str) -> None:
    """Too old fails, old warns, by number and not by text."""
    assert doctor.kernel(release).status == status


def test_a_piped_core_pattern_is_said() -> None:
    """A core handler that runs on the host as root is reported with the sysctl that ends it."""
    finding = doctor.core_pattern("|/usr/lib/systemd/systemd-coredump %P")
    assert finding.status is Status.WARN
    assert finding.fix.startswith("sysctl -w kernel.core_pattern=core")
    assert doctor.core_pattern("core").status is Status.OK


@pytest.mark.parametrize(("hard", "status"), [(512, "fail"), (2048, "warn"), (20000, "ok"), (-1, "ok")])
def test_open_files(hard: int, status: str) -> None:
    """The hard limit bounds what jobs can be given; -1 is no limit."""
    assert doctor.open_files(hard).status == status


def test_a_state_directory_that_others_may_write_to_fails(tmp_path: Path) -> None:
    """A user who can write to the state directory could plant what root later reads."""
    tmp_path.chmod(0o777)
    finding = doctor.state_directory(tmp_path)
    assert finding.status is Status.FAIL
    assert f"chmod go-w {tmp_path}" in finding.fix
    tmp_path.chmod(0o700)
    assert doctor.state_directory(tmp_path).status is not Status.FAIL


def test_python_that_others_cannot_reach_fails_with_the_set_up_command() -> None:
    """An interpreter below a directory closed to others cannot run the unprivileged processes."""
    finding = doctor.unprivileged_python("/nowhere/python3")
    assert finding.status is Status.FAIL
    assert finding.fix.startswith("make setup")


def test_redis_that_does_not_answer_fails_and_hides_its_password() -> None:
    """The finding names the address, never the credential in it."""
    (finding,) = doctor.redis_server("redis://user:secret@127.0.0.1:1/0")
    assert finding.status is Status.FAIL
    assert "127.0.0.1:1" in finding.found
    assert "secret" not in finding.found + finding.fix


def test_redis_settings_are_judged(redis_url: str) -> None:
    """Durability off is a warning, eviction a failure, each with the command that changes it."""
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        try:
            findings = by_name(list(doctor.redis_server(redis_url)))
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert findings["redis"].status is Status.OK
    assert findings["redis_durability"].status is Status.WARN
    assert "config set appendonly yes" in findings["redis_durability"].fix
    assert findings["redis_eviction"].status is Status.FAIL
    assert "config set maxmemory-policy noeviction" in findings["redis_eviction"].fix


def test_redis_durability_is_ok_only_with_the_file_and_its_fsync() -> None:
    """An append-only file that is never flushed is not durability."""
    good = {"appendonly": "yes", "appendfsync": "everysec"}
    assert doctor.redis_durability(good).status is Status.OK
    assert doctor.redis_durability(good | {"appendfsync": "no"}).status is Status.WARN


def test_a_launcher_that_is_not_there_fails(tmp_path: Path) -> None:
    """A named launcher must run a job, not merely have a socket."""
    finding = doctor.launcher(tmp_path / "launcher.sock")
    assert finding.status is Status.FAIL
    assert finding.fix


def test_a_trial_that_dies_is_reported_not_raised() -> None:
    """The doctor outlives whatever a broken kernel does to a trial."""
    with pytest.raises(trials.Impossible, match="wait status 9"):
        trials.attempt(lambda: os.kill(os.getpid(), 9) or "")


def test_a_trial_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor always answers."""
    monkeypatch.setattr(trials, "PATIENCE", 0.2)
    begin = time.monotonic()
    with pytest.raises(trials.Impossible, match="took too long"):
        trials.attempt(lambda: time.sleep(100) or "")
    assert time.monotonic() - begin < 20


@pytest.mark.kernel
def test_trials_see_limits_that_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that is not enforced fails its trial: it is run into, not read."""
    monkeypatch.setattr(cgroup_trials, "_eat_memory", lambda total: 0)
    monkeypatch.setattr(cgroup_trials, "_refused_forks", lambda count: 0)
    monkeypatch.setattr(cgroup_trials, "_spin", lambda: 100)
    for trial in (cgroup_trials.memory_limit, cgroup_trials.pids_limit, cgroup_trials.cpu_limit):
        finding = doctor.tried("limit", trial, "the fix")
        assert (finding.status, finding.fix) == (Status.FAIL, "the fix")
    assert stray_cgroups() == []


@pytest.mark.kernel
def test_this_host_passes_every_trial_and_is_left_as_it_was(tmp_path: Path) -> None:
    """Whatever is tried is undone: no cgroup, mount or process stays."""
    before_children = children()
    answer = CliRunner().invoke(doctor.doctor, ["--json", "--state", str(tmp_path)])
    report = json.loads(answer.output)
    findings = {finding["name"]: finding for finding in report["findings"]}
    tried = ["namespaces", "user_namespace", "overlay", "seccomp", "memory_limit", "pids_limit", "cpu_limit"]
    for name in [*tried, "kill_all"]:
        assert findings[name]["status"] == "ok", findings[name]
    assert answer.exit_code == (0 if report["ok"] else 1)
    assert "stockade-doctor" not in Path("/proc/self/mountinfo").read_text()
    assert stray_cgroups() == []
    assert children() == before_children


@pytest.mark.kernel
def test_a_failure_gives_exit_status_one_and_is_named_last() -> None:
    """Scripts read the exit status, people the last line."""
    answer = CliRunner().invoke(doctor.doctor, ["--redis", "unix:///nowhere/redis.sock"])
    assert answer.exit_code == 1
    assert answer.output.splitlines()[-1].startswith("not ready: ")
    assert "redis" in answer.output.splitlines()[-1]


@pytest.mark.kernel
def test_a_running_launcher_is_given_a_job() -> None:
    """The launcher is well when a program really ran in a sandbox of it."""
    running = Launcher()
    try:
        finding = doctor.launcher(running.socket)
    finally:
        running.stop()
    assert finding.status is Status.OK, finding
    assert "ran in a sandbox" in finding.found
