"""Admission, again: a job runs under the policy whose digest it names, and not otherwise."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from jobs.job import Attempt
from jobs.policy_source import PolicySource
from jobs.policy_versions import PolicyVersions
from jobs.store import Store
from policies.bounds import Bounds
from policies.loader import load_policies
from policies.policy import Policy
from policies.scopes import effective
from tests.worker.conftest import Claim
from tests.worker.fake_launcher import FakeLauncher
from worker.admission import NotAdmittedError, Policies, demand_floor
from worker.attempt import Workshop, run_attempt
from worker.sandbox.errors import SandboxError
from worker.stop import Stop

pytestmark = pytest.mark.usefixtures("launcher")

DEFAULT = load_policies()["default"]
NARROW = effective(DEFAULT, [("project a", Bounds.model_validate({"ceilings": {"pids": 8}}))])
WIDE = DEFAULT.model_copy(update={"ceilings": DEFAULT.ceilings.model_copy(update={"pids": 2000})})


class Machine(NamedTuple):
    """A worker's host."""

    cgroup: str | None
    kernel: str


def refusal(attempt: Attempt, workshop: Workshop, launcher: FakeLauncher) -> str:
    """Why the worker does not run the attempt."""
    with pytest.raises(NotAdmittedError) as caught:
        run_attempt(attempt, workshop, Stop())
    assert launcher.plans == []
    return str(caught.value)


def forged(attempt: Attempt, **admission: object) -> Attempt:
    """The attempt of a job whose stored admission says something else."""
    changed = attempt.job.admission.model_copy(update=admission)
    return attempt.model_copy(update={"job": attempt.job.model_copy(update={"admission": changed})})


def workshop_of(store: Store, launcher: FakeLauncher, directory: Path, **files: str) -> Workshop:
    """What a worker with these policy files makes its attempts with."""
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return Workshop(store, Policies(PolicySource(directory), PolicyVersions(store.redis)), launcher.path)


def test_a_narrowed_policy_is_loaded_by_its_digest(workshop: Workshop, claim: Claim, store: Store) -> None:
    """A job that was admitted under a tenant's bounds runs under them, though no file here says so."""
    PolicyVersions(store.redis).publish(NARROW)
    result = run_attempt(claim(NARROW, command=["true"]), workshop, Stop())
    assert result.outcome.succeeded


def test_an_unknown_digest_is_refused(workshop: Workshop, claim: Claim, launcher: FakeLauncher) -> None:
    """Without the policy that admitted it no job runs, whatever else is said of it."""
    assert NARROW.digest in refusal(claim(NARROW, command=["true"]), workshop, launcher)


def test_another_content_under_a_digest_is_refused(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, store: Store
) -> None:
    """Who writes a wider policy under a known digest, or what is no policy, changes nothing."""
    for content in (WIDE.model_dump_json(), "{", '"x"', ""):
        store.redis.set(f"stockade:policy:{NARROW.digest}", content)
        assert NARROW.digest in refusal(claim(NARROW, command=["true"]), workshop, launcher)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pool", "big"),
        ("retention", 1e9),
        ("priority", "high"),
        ("max_queue_time", 1.0),
        ("policy", "strict"),
        ("image", "other"),
        ("steps", ()),
    ],
)
def test_a_stored_admission_that_is_not_the_policys_is_refused(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, field: str, value: object
) -> None:
    """Whatever was changed in the stored admission, the worker notices and names it."""
    attempt = forged(claim(command=["true"]), **{field: value})
    assert field in refusal(attempt, workshop, launcher)


def test_limits_that_were_raised_in_the_store_are_refused(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher
) -> None:
    """Limits come from the policy, never from what is stored."""
    attempt = claim(command=["true"])
    [step] = attempt.job.admission.steps
    more = step.model_copy(update={"limits": step.limits.model_copy(update={"memory": 1 << 40})})
    assert "steps" in refusal(forged(attempt, steps=(more,)), workshop, launcher)


def test_a_job_admitted_under_the_policy_of_another_name_is_refused(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher
) -> None:
    """A job that names strict does not run under default."""
    attempt = claim(DEFAULT, command=["true"], policy="strict")
    assert "names the policy strict" in refusal(attempt, workshop, launcher)


def test_a_policy_over_the_workers_own_platform_is_refused(
    store: Store, claim: Claim, launcher: FakeLauncher, tmp_path: Path
) -> None:
    """Whoever can write to Redis cannot get more than the platform file beside the worker allows."""
    workshop = workshop_of(store, launcher, tmp_path, platform="ceilings: {pids: 100}\npolicies: [d*]\n")
    PolicyVersions(store.redis).publish(WIDE)
    told = refusal(claim(WIDE, command={"argv": ["true"], "limits": {"pids": 2000}}), workshop, launcher)
    assert "pids of 2000 is over" in told
    strict = load_policies()["strict"]
    PolicyVersions(store.redis).publish(strict)
    assert "may not be used" in refusal(claim(command=["true"], policy="strict"), workshop, launcher)
    fits = effective(NARROW, [("platform", Bounds.model_validate({"ceilings": {"pids": 100}}))])
    PolicyVersions(store.redis).publish(fits)
    assert run_attempt(claim(fits, command=["true"]), workshop, Stop()).outcome.succeeded


def test_a_platform_that_was_narrowed_refuses_the_jobs_that_no_longer_fit(
    store: Store, claim: Claim, launcher: FakeLauncher, tmp_path: Path
) -> None:
    """Not every job that waits under the policy: what a job was admitted with counts, not what it might have had."""
    workshop = workshop_of(store, launcher, tmp_path, platform="ceilings: {memory: 300MiB}\n")
    PolicyVersions(store.redis).publish(DEFAULT)
    large = claim(command={"argv": ["true"], "limits": {"memory": "512MiB"}})
    assert "memory" in refusal(large, workshop, launcher)
    assert run_attempt(claim(command=["true"]), workshop, Stop()).outcome.succeeded


def test_a_platform_that_takes_what_no_admission_tells_refuses(
    store: Store, claim: Claim, launcher: FakeLauncher, tmp_path: Path
) -> None:
    """A job does not run with fewer capabilities, or a stricter filter, than it was admitted with."""
    PolicyVersions(store.redis).publish(DEFAULT)
    workshop = workshop_of(store, launcher, tmp_path, platform="syscalls: strict\ncapabilities: [CHOWN]\n")
    told = refusal(claim(command=["true"]), workshop, launcher)
    assert "capabilities, syscalls" in told


def test_the_workers_own_policies_need_no_redis(
    claim: Claim, launcher: FakeLauncher, store: Store, tmp_path: Path
) -> None:
    """A job under a policy that the worker's own files have runs though Redis has lost it."""
    workshop = workshop_of(store, launcher, tmp_path, platform="ceilings: {pids: 100}\n")
    platform = Bounds.model_validate({"ceilings": {"pids": 100}})
    attempt = claim(effective(DEFAULT, [("platform", platform)]), command=["true"])
    assert store.redis.keys("stockade:policy:*") == []
    assert run_attempt(attempt, workshop, Stop()).outcome.succeeded


def test_a_reload_does_not_hurt_a_job_that_waits(
    store: Store, claim: Claim, launcher: FakeLauncher, tmp_path: Path
) -> None:
    """A job runs under the policy that admitted it, also when the worker has read a stricter one since."""
    mine = "name: mine\nextends: default\nceilings: {pids: 100}\ndefaults: {pids: 50}\n"
    (tmp_path / "mine.yaml").write_text(mine)
    source = PolicySource(tmp_path)
    workshop = Workshop(store, Policies(source, PolicyVersions(store.redis)), launcher.path)
    admitted = source.current.policies["mine"]
    PolicyVersions(store.redis).publish(admitted)
    attempt = claim(admitted, command=["true"], policy="mine")
    (tmp_path / "mine.yaml").write_text(mine.replace("100", "60"))
    assert source.refresh()
    assert source.current.policies["mine"].digest != admitted.digest
    assert run_attempt(attempt, workshop, Stop()).outcome.succeeded
    os.unlink(tmp_path / "mine.yaml")
    assert source.refresh()
    assert run_attempt(claim(admitted, command=["true"], policy="mine"), workshop, Stop()).outcome.succeeded


def test_an_image_that_is_off_here_is_refused(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher
) -> None:
    """A worker that does not offer the image host runs nothing in it."""
    off = Workshop(workshop.store, workshop.policies, workshop.launcher, False)
    assert "host" in refusal(claim(command=["true"]), off, launcher)


def test_the_policys_environment_is_under_the_steps_own(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, store: Store
) -> None:
    """A policy's variables are over the built-in ones, and a request's are over both."""
    policy = Policy.model_validate(
        DEFAULT.model_dump() | {"environment": {"LANG": "de_DE", "A": "policy", "B": "p"}}
    )
    PolicyVersions(store.redis).publish(policy)
    command = {"argv": ["sh", "-c", "echo $LANG $A $B $HOME"], "env": {"A": "request"}}
    result = run_attempt(claim(policy, command=command), workshop, Stop())
    assert result.steps[0].stdout.text == "de_DE request p /work\n"


def test_a_host_below_the_floor_runs_nothing(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, store: Store
) -> None:
    """The launcher says what its host is: below the policy's floor the job is refused, on it the job runs."""
    for kernel, runs in (("6.1", True), ("6.2", False)):
        floor = {"cgroup": "v2", "kernel": kernel, "image": "any"}
        policy = Policy.model_validate(DEFAULT.model_dump() | {"isolation": floor})
        PolicyVersions(store.redis).publish(policy)
        attempt = claim(policy, command=["true"])
        if runs:
            assert run_attempt(attempt, workshop, Stop()).outcome.succeeded
            launcher.plans.clear()
        else:
            assert "isolation.kernel must be 6.2 and is 6.1.0" in refusal(attempt, workshop, launcher)


def test_a_host_below_the_floor_is_told_with_everything_that_is_missing() -> None:
    """cgroup version and kernel are compared as numbers; what is not known is not enough."""
    floor = {"cgroup": "v2", "kernel": "6.10", "image": "any"}
    policy = Policy.model_validate(DEFAULT.model_dump() | {"isolation": floor})
    demand_floor(policy, Machine("v2", "6.10.3-amd64"))
    demand_floor(policy, Machine("v2", "7.0"))
    with pytest.raises(
        NotAdmittedError, match=r"isolation.cgroup must be v2 and is v1.*isolation.kernel.* 6\.9"
    ):
        demand_floor(policy, Machine("v1", "6.9"))
    for unknown in (Machine(None, "6.18"), Machine("v2", ""), Machine("v2", "fake")):
        with pytest.raises(NotAdmittedError):
            demand_floor(policy, unknown)


A, B = (f"sha256:{letter * 64}" for letter in "ab")
IMAGES = DEFAULT.model_copy(update={"images": ("app:*", "app@*", "host")})


def recorded(digest: str, *names: str) -> dict[str, object]:
    """What a launcher tells of an image."""
    return {"digest": digest, "env": [], "directory": "", "user": None, "group": None, "names": [*names]}


def in_image(claim: Claim, image: str, digest: str | None) -> Attempt:
    """The attempt of a job that was admitted with this digest."""
    return forged(claim(IMAGES, image=image, command=["true"]), image_digest=digest)


@pytest.mark.parametrize("names", [(), ("app:2",), ("other:1", "app:old"), ("app:1",)])
def test_a_job_runs_in_the_digest_of_its_admission(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, store: Store, names: tuple[str, ...]
) -> None:
    """214: whatever the name means meanwhile, and also when no name is left to the image."""
    PolicyVersions(store.redis).publish(IMAGES)
    launcher.images = {A: recorded(A, *names), B: recorded(B, "app:1"), "app:1": recorded(B, "app:1")}
    assert run_attempt(in_image(claim, "app:1", A), workshop, Stop()).outcome.succeeded
    assert [plan["image"] for plan in launcher.plans] == [A]


@pytest.mark.parametrize(
    ("image", "digest"),
    [("app:1", None), ("app:1", "app:1"), (f"app@{A}", B), (f"app:1@{A}", B), ("host", A)],
)
def test_a_digest_that_is_not_the_request_s_is_refused(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, store: Store, image: str, digest: str | None
) -> None:
    """The stored digest is one, and the one that the request names, if it names one."""
    PolicyVersions(store.redis).publish(IMAGES)
    launcher.images = {each: recorded(each, "app:1") for each in (A, B)}
    assert "image" in refusal(in_image(claim, image, digest), workshop, launcher)


def test_an_image_that_goes_by_others_names_is_refused(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, store: Store
) -> None:
    """Who writes another tenant's digest into a job does not get its image."""
    PolicyVersions(store.redis).publish(IMAGES)
    launcher.images = {B: recorded(B, "other/secret:1")}
    assert B in refusal(in_image(claim, "app:1", B), workshop, launcher)


def test_an_image_that_is_on_another_host_only_is_our_failure(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, store: Store
) -> None:
    """The job gets another attempt, maybe there."""
    PolicyVersions(store.redis).publish(IMAGES)
    with pytest.raises(SandboxError, match="does not have"):
        run_attempt(in_image(claim, "app:1", A), workshop, Stop())
    assert launcher.plans == []
