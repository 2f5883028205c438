"""One attempt: steps in order over one workspace, supervised, with their output, files and verdicts."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from jobs.outcome import OutcomeKind
from jobs.policy_versions import PolicyVersions
from jobs.store import Store
from policies.loader import load_policies
from tests.worker.conftest import Claim, until
from tests.worker.fake_launcher import FakeLauncher
from worker import attempt as attempts
from worker.attempt import Workshop, run_attempt
from worker.sandbox.errors import SandboxError
from worker.stop import Reason, Stop, StoppedError

pytestmark = pytest.mark.usefixtures("launcher")


def test_output_is_exact(workshop: Workshop, claim: Claim) -> None:
    """Both streams come back to the byte, text as text and bytes as bytes."""
    script = r"printf 'grüße\n'; printf '\000\377' >&2; exit 3"
    result = run_attempt(claim(command=["sh", "-c", script]), workshop, Stop())
    [step] = result.steps
    assert (result.outcome.kind, result.outcome.exit_code) == (OutcomeKind.EXITED, 3)
    assert step.stdout.text == "grüße\n"
    assert step.stderr.text is None
    assert step.stderr.data == b"\0\xff"
    assert (step.usage.stdout_bytes, step.usage.stderr_bytes) == (8, 2)


def test_stdin_reaches_the_program(workshop: Workshop, claim: Claim) -> None:
    """A large standard input arrives whole; none at all is an end of file."""
    text = "0123456789" * 20_000
    result = run_attempt(claim(command={"argv": ["sha256sum"], "stdin": text}), workshop, Stop())
    assert result.steps[0].stdout.text == hashlib.sha256(text.encode()).hexdigest() + "  -\n"
    assert run_attempt(claim(command=["cat"]), workshop, Stop()).steps[0].stdout.bytes == 0


def test_input_that_is_not_read_hangs_nothing(workshop: Workshop, claim: Claim) -> None:
    """A program that ignores megabytes of input just ends."""
    result = run_attempt(claim(command={"argv": ["true"], "stdin": "x" * 4_000_000}), workshop, Stop())
    assert result.outcome.succeeded


def test_steps_share_files_and_stop_at_a_failure(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher
) -> None:
    """Each step sees what the one before left; after one that failed none runs: its verdict is the job's."""
    steps = [
        {"argv": ["sh", "-c", "cat in/a.txt > out.txt"]},
        {"argv": ["sh", "-c", "cat out.txt; exit 7"], "name": "second"},
        {"argv": ["true"]},
    ]
    result = run_attempt(claim(steps=steps, files=[{"path": "in/a.txt", "text": "hello"}]), workshop, Stop())
    assert [(step.name, step.outcome.exit_code) for step in result.steps] == [("step-1", 0), ("second", 7)]
    assert result.steps[1].stdout.text == "hello"
    assert result.outcome == result.steps[1].outcome
    assert [plan["keep"] for plan in launcher.plans] == [True, True]


def test_plan_is_what_the_policy_says(workshop: Workshop, claim: Claim, launcher: FakeLauncher) -> None:
    """The launcher gets the policy's user, profile and capabilities, and limits without the worker's own."""
    command = {
        "argv": ["true"],
        "env": {"A": "1", "HOME": "/tmp"},
        "cwd": "sub",
        "limits": {"memory": 64 << 20},
    }
    with pytest.raises(SandboxError):
        launcher.fail = {"op": "failed", "step": "x", "errno": 0, "subject": "", "hint": ""}
        run_attempt(claim(command=command), workshop, Stop())
    [plan] = launcher.plans
    policy = load_policies()["default"]
    assert plan["limits"]["memory"] == 64 << 20
    assert set(plan["limits"]) == set(type(policy.defaults).model_fields) - {"output"}
    assert plan["env"]["PATH"].startswith("/usr/local")
    assert (plan["env"]["A"], plan["env"]["HOME"], plan["cwd"]) == ("1", "/tmp", "/work/sub")
    assert (plan["user"], plan["syscalls"]) == (policy.user, policy.syscalls)
    assert plan["capabilities"] == list(policy.capabilities)
    assert plan["keep"] is False


def test_missing_program_is_named(workshop: Workshop, claim: Claim) -> None:
    """A program that is not there is the job's verdict, not a failure of ours."""
    outcome = run_attempt(claim(command=["/no/such/program"]), workshop, Stop()).outcome
    assert (outcome.kind, outcome.errno) == (OutcomeKind.EXEC_FAILED, "ENOENT")


@pytest.mark.parametrize("stream", ["1", "2"])
def test_flood_is_cut_and_the_program_goes_on(workshop: Workshop, claim: Claim, stream: str) -> None:
    """Output over the limit keeps its first and last part and its total; the program ends by itself."""
    script = f"(echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end) >&{stream}"
    command = {"argv": ["sh", "-c", script], "limits": {"output": 1000}}
    result = run_attempt(claim(command=command), workshop, Stop())
    output = result.steps[0].stdout if stream == "1" else result.steps[0].stderr
    assert result.outcome.succeeded
    assert output.text is not None
    assert output.text.startswith("begin\nxxx")
    assert output.text.endswith("xxx\nend\n")
    assert (len(output.text), output.bytes, output.truncated) == (1000, 3_000_011, True)


def test_flood_that_shall_kill_kills(workshop: Workshop, claim: Claim) -> None:
    """With on_output_limit: kill the step is ended at once, and the evidence says by which stream."""
    command = {"argv": ["yes"], "limits": {"output": 1000}, "on_output_limit": "kill"}
    begun = time.monotonic()
    outcome = run_attempt(claim(command=command), workshop, Stop()).outcome
    assert time.monotonic() - begun < 5
    assert outcome.kind is OutcomeKind.OUTPUT_EXCEEDED
    assert outcome.evidence[0].where == "bytes written to stdout"
    assert outcome.evidence[0].observed > 1000  # type: ignore[operator]


def test_last_words_are_heard(workshop: Workshop, claim: Claim) -> None:
    """What a program wrote just before its end is all there."""
    script = "import os; os.write(1, b'x' * 60000); os.write(2, b'y' * 60000); os._exit(0)"
    [step] = run_attempt(claim(command=["python3", "-c", script]), workshop, Stop()).steps
    assert (step.stdout.bytes, step.stderr.bytes) == (60_000, 60_000)


def test_process_that_holds_the_pipes_delays_nothing(workshop: Workshop, claim: Claim) -> None:
    """A process that survives its step with the pipes open is waited for only shortly."""
    begun = time.monotonic()
    result = run_attempt(claim(command=["sh", "-c", "echo out; setsid sleep 8 & exit 0"]), workshop, Stop())
    assert time.monotonic() - begun < 4
    assert result.steps[0].stdout.text == "out\n"


def test_artifacts_are_kept_with_their_digests(workshop: Workshop, claim: Claim, store: Store) -> None:
    """Matching files are stored with size, mode and digest; what is no file is told, not followed."""
    script = "printf 'one' > a.txt; chmod 600 a.txt; mkdir d.txt; printf 'two' > d.txt/b"
    claimed = claim(command=["sh", "-c", script], outputs=["*.txt", "d.txt/*"])
    result = run_attempt(claimed, workshop, Stop())
    assert [(found.path, found.size, found.mode) for found in result.artifacts] == [
        ("a.txt", 3, "0600"),
        ("d.txt/b", 3, "0644"),
    ]
    assert result.artifacts[0].sha256 == hashlib.sha256(b"one").hexdigest()
    assert [(error.path, error.error) for error in result.artifact_errors] == [("d.txt", "not_regular_file")]
    store.finish(claimed, result)
    assert store.get_artifact(claimed.job.id, "d.txt/b") == b"two"


def test_artifact_whose_name_is_no_text_is_told(workshop: Workshop, claim: Claim) -> None:
    """A name that is not UTF-8 cannot be asked for: it is an error of the job's, escaped, not a fault of ours."""
    script = r"printf one > $(printf 'a\377'); printf two > b; printf three > ü"
    result = run_attempt(claim(command=["bash", "-c", script], outputs=["*"]), workshop, Stop())
    assert {found.path for found in result.artifacts} == {"b", "ü"}
    assert [(error.path, error.error) for error in result.artifact_errors] == [("a\\udcff", "name_not_text")]
    assert b"name_not_text" in result.model_dump_json().encode()


def test_artifacts_stop_at_the_policys_bytes(workshop: Workshop, claim: Claim, store: Store) -> None:
    """No more bytes are read than the policy lets be kept; the file that is too much is named."""
    small = load_policies()["default"].model_copy(update={"outputs_bytes": 10})
    PolicyVersions(store.redis).publish(small)
    script = "printf 123456 > a; printf 12345 > b; printf 1234 > c; truncate -s 1T d"
    claimed = claim(small, command=["sh", "-c", script], outputs=["?"])
    result = run_attempt(claimed, workshop, Stop())
    assert [found.path for found in result.artifacts] == ["a", "c"]
    assert [(error.path, error.error) for error in result.artifact_errors] == [
        ("b", "too_large"),
        ("d", "too_large"),
    ]


def test_artifacts_stop_at_the_tenants_budget(workshop: Workshop, claim: Claim, store: Store) -> None:
    """A job that was accepted with some room left does not keep more than that room."""
    script = "printf 123456 > a; printf 12345 > b; printf 1234 > c"
    claimed = claim(command=["sh", "-c", script], outputs=["?"])
    store.redis.hset(f"stockade:tenant:{claimed.job.tenant}", "artifact_bytes", 110)
    store.redis.hset(f"stockade:load:{claimed.job.tenant}", "artifact_bytes", 100)
    result = run_attempt(claimed, workshop, Stop())
    assert [found.path for found in result.artifacts] == ["a", "c"]
    assert [(error.path, error.error) for error in result.artifact_errors] == [("b", "over_budget")]


def test_broken_sandbox_is_our_failure(workshop: Workshop, claim: Claim, launcher: FakeLauncher) -> None:
    """What the launcher could not do is raised with its step and reason; it is never a verdict."""
    launcher.fail = {"op": "failed", "step": "mount", "errno": 28, "subject": "/work", "hint": "free some"}
    with pytest.raises(SandboxError, match="mount /work: ENOSPC"):
        run_attempt(claim(command=["true"]), workshop, Stop())


def test_launcher_that_dies_in_mid_step_is_our_failure(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher
) -> None:
    """The death of the launcher ends the attempt at once."""
    threading.Timer(0.5, launcher.close).start()
    begun = time.monotonic()
    with pytest.raises(SandboxError, match="launcher is gone"):
        run_attempt(claim(command=["sleep", "20"]), workshop, Stop())
    assert time.monotonic() - begun < 5


def test_launcher_that_is_restarted_is_waited_for(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, settings: object
) -> None:
    """A launcher that is away for a moment costs a delay, not the attempt."""
    launcher.close()
    again: list[FakeLauncher] = []
    threading.Timer(0.5, lambda: again.append(FakeLauncher(launcher.path))).start()
    assert run_attempt(claim(command=["true"]), workshop, Stop()).outcome.succeeded
    again[0].close()


def test_launcher_that_stays_away_is_our_failure(
    workshop: Workshop, claim: Claim, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while without a launcher the attempt fails, with the socket in the message."""
    launcher.close()
    monkeypatch.setattr(attempts, "LAUNCHER_PATIENCE", 0.2)
    with pytest.raises(SandboxError, match=r"connect .*launcher\.sock: ENOENT"):
        run_attempt(claim(command=["true"]), workshop, Stop())


def test_silent_launcher_is_our_failure(
    workshop: Workshop, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that does not keep the deadline is not believed for ever: the worker has one of its own."""
    monkeypatch.setattr("worker.supervise.LAUNCHER_GRACE", -19.5)
    with pytest.raises(SandboxError, match="did not report"):
        run_attempt(claim(command=["sleep", "5"]), workshop, Stop())


def test_cancelled_step_ends_the_job(workshop: Workshop, claim: Claim, launcher: FakeLauncher) -> None:
    """A cancellation kills the step that runs; the result has what ran before, and nothing runs after."""
    stop = Stop()
    steps = [{"argv": ["echo", "one"]}, {"argv": ["sleep", "20"]}, {"argv": ["true"]}]
    attempt = claim(steps=steps)

    def cancel() -> None:
        until(lambda: len(launcher.plans) == 2)
        stop.ask(Reason.CANCELLED)

    threading.Thread(target=cancel).start()
    result = run_attempt(attempt, workshop, stop)
    assert result.outcome.kind is OutcomeKind.CANCELLED
    assert [step.outcome.kind for step in result.steps] == [OutcomeKind.EXITED, OutcomeKind.CANCELLED]


def test_cancelled_before_the_first_step(workshop: Workshop, claim: Claim, launcher: FakeLauncher) -> None:
    """A job that is cancelled before its first step runs nothing and is cancelled all the same."""
    stop = Stop(Reason.CANCELLED)
    result = run_attempt(claim(command=["true"]), workshop, stop)
    assert result.outcome.kind is OutcomeKind.CANCELLED
    assert result.steps == ()
    assert launcher.plans == []


@pytest.mark.parametrize("reason", [Reason.LEASE_LOST, Reason.SHUTDOWN])
def test_attempt_that_we_stop_has_no_result(workshop: Workshop, claim: Claim, reason: Reason) -> None:
    """An attempt that lost its lease, or whose worker goes down, reports nothing."""
    stop = Stop()
    threading.Timer(0.3, stop.ask, [reason]).start()
    with pytest.raises(StoppedError):
        run_attempt(claim(command=["sleep", "20"]), workshop, stop)


def test_nothing_stays_open(workshop: Workshop, claim: Claim, launcher: FakeLauncher) -> None:
    """However attempts end, no descriptor of theirs is left."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    files = [{"path": "a", "text": "x"}]
    run_attempt(claim(command=["true"], files=files, outputs=["a"]), workshop, Stop())
    time.sleep(0.2)
    before = descriptors()
    for _ in range(5):
        run_attempt(claim(command=["true"], files=files, outputs=["a"]), workshop, Stop())
        run_attempt(claim(command=["/nope"]), workshop, Stop())
    launcher.fail = {"op": "failed", "step": "x", "errno": 0, "subject": "", "hint": ""}
    for _ in range(5):
        with pytest.raises(SandboxError):
            run_attempt(claim(command=["true"]), workshop, Stop())
    until(lambda: descriptors() <= before, seconds=3)


def test_standard_input_cannot_be_changed(workshop: Workshop, claim: Claim) -> None:
    """The descriptor that the program reads is a sealed file of its own, opened for reading."""
    script = (
        "import fcntl, os; flags = fcntl.fcntl(0, fcntl.F_GETFL); seals = fcntl.fcntl(0, 1034)\n"
        "assert flags & os.O_ACCMODE == os.O_RDONLY and seals == 0b1111, (flags, seals)"
    )
    result = run_attempt(claim(command=["python3", "-c", script]), workshop, Stop())
    assert result.outcome.succeeded, result.steps[0].stderr
