"""Collecting artifacts: the files that a job was asked to leave, from its workspace into the store.

The launcher finds and opens them, in a confined child that follows no link; here are only descriptors, of
which no more is read than the policy lets be kept.
"""

import hashlib

from jobs.job import Attempt
from jobs.outcome import Artifact, ArtifactError
from jobs.store import Store
from policies.policy import Policy
from worker.sandbox.client import Session

Collected = tuple[tuple[Artifact, ...], tuple[ArtifactError, ...]]


def collect(session: Session, attempt: Attempt, policy: Policy, store: Store) -> Collected:
    """Keep the files that match the job's `outputs`; what could not be kept is told beside.

    Raises:
        SandboxError: the launcher failed.
        redis.RedisError: they could not be stored.
    """
    patterns = list(attempt.job.spec.outputs)
    if not patterns:
        return (), ()
    artifacts: list[Artifact] = []
    errors: list[ArtifactError] = []
    told: list[dict[str, str]] = []
    room = store.artifact_room(attempt.job.tenant)
    left = most = policy.outputs_bytes if room is None else min(policy.outputs_bytes, room)
    refused = _too_large if most == policy.outputs_bytes else _over_budget
    for file in session.collect(patterns, policy.outputs_max, policy.outputs_bytes, told):
        with open(file.fd, "rb") as content:
            if not _is_text(file.path):
                errors.append(_no_text(file.path))
                continue
            data = content.read(left + 1)
        if len(data) > left:
            errors.append(refused(file.path, most))
            continue
        left -= len(data)
        store.put_artifact(attempt, file.path, data)
        digest = hashlib.sha256(data).hexdigest()
        mode = f"{file.mode & 0o7777:04o}"
        artifacts.append(Artifact(path=file.path, size=len(data), sha256=digest, mode=mode))
    errors.extend(ArtifactError(**each) for each in told)
    return tuple(artifacts), tuple(errors)


def _is_text(path: str) -> bool:
    """Whether a name is UTF-8; the bytes of one that is not come as lone surrogates (PEP 383)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_text(path: str) -> ArtifactError:
    message = "Its name is not UTF-8, so that no address could name it."
    return ArtifactError(path=path, error="name_not_text", message=message)


def _too_large(path: str, most: int) -> ArtifactError:
    message = f"With it the files would have more than the {most} bytes that the policy lets be kept."
    return ArtifactError(path=path, error="too_large", message=message)


def _over_budget(path: str, most: int) -> ArtifactError:
    message = (
        f"With it the files would have more than the {most} bytes that are left of the budget artifact_bytes."
    )
    return ArtifactError(path=path, error="over_budget", message=message)
