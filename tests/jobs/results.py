"""Results of steps, made up."""

from jobs.outcome import IdRange, Isolation, Outcome, OutcomeKind, Output, Seccomp, StepResult, Usage


def step_result(**usage: float) -> StepResult:
    """A step that exited with 0 and used this; of all else nothing."""
    nothing = {name: 0 if field.annotation is int else 0.0 for name, field in Usage.model_fields.items()}
    return StepResult(
        name="step-1",
        outcome=Outcome(kind=OutcomeKind.EXITED, exit_code=0, message="It exited with status 0."),
        usage=Usage.model_validate(nothing | usage),
        stdout=Output.of(b""),
        stderr=Output.of(b""),
        isolation=Isolation(
            cgroup="v2",
            namespaces=("mnt", "pid"),
            user_namespace=IdRange(base=65536, size=65536),
            seccomp=Seccomp(profile="default", sha256="0" * 64),
            capabilities=(),
            no_new_privs=True,
            image="host",
            kernel="6.1.0",
        ),
    )
