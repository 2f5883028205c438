"""Shadow: what the draft of a policy would have done to the jobs that really came, counted and listed.

`stockade:shadow:NAME` (string) has the digest of the draft that is being watched. Beside it, for each digest,
`stockade:shadow:NAME:DIGEST` (hash): `since`, the counts `evaluated`, `refused`, `newly_refused`, `newly_admitted`,
and `rule:RULE` for each rule that would have refused; and `stockade:shadow:NAME:DIGEST:refused` (list): the newest
refusals as JSON. A changed draft starts from nothing.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import AwareDatetime, Field
from redis import Redis

from jobs.rules import rule_of
from policies.model import Frozen
from policies.violation import Violation

LISTED_MAX = 1000
"""Would-be refusals that are listed; older ones are only counted."""
VIOLATIONS_MAX = 20
"""Violations of one refusal that are listed."""
KEPT = 30 * 24 * 3600
"""Seconds that what was counted is kept after the last submission."""

_SHADOW = "stockade:shadow:"
_RULE = b"rule:"


class Refusal(Frozen):
    """One submission that the draft would have refused."""

    job: str | None = Field(description="The job; null where the policy in force refused it too.")
    tenant: str = Field(description="The identifier of the project.")
    at: AwareDatetime = Field(description="When it came.")
    violations: tuple[Violation, ...] = Field(description="What the draft does not allow.")


class Report(Frozen):
    """What a draft would have done so far."""

    digest: str = Field(description="The digest of the draft, no scope applied.")
    since: AwareDatetime = Field(description="When its first submission came.")
    evaluated: int = Field(description="Submissions that were looked at.")
    refused: int = Field(description="How many of them the draft would have refused.")
    newly_refused: int = Field(description="How many of these the policy in force admitted.")
    newly_admitted: int = Field(description="How many the draft would have admitted and the policy refused.")
    rules: dict[str, int] = Field(description="Would-be refusals by rule; one may break several.")
    refusals: tuple[Refusal, ...] = Field(description="The newest of them first.")


def record(
    redis: Redis, name: str, digest: str, tenant: str, job: str | None, violations: Sequence[Violation]
) -> None:
    """Count what the draft of `digest` says to one submission; `job` is None when it was refused anyhow."""
    now = time.time()
    counts, listed = f"{_SHADOW}{name}:{digest}", f"{_SHADOW}{name}:{digest}:refused"
    with redis.pipeline(transaction=False) as pipe:
        pipe.set(_SHADOW + name, digest, ex=KEPT)
        pipe.hsetnx(counts, "since", str(int(now * 1000)))
        pipe.hincrby(counts, "evaluated", 1)
        if violations:
            pipe.hincrby(counts, "refused", 1)
            if job is not None:
                pipe.hincrby(counts, "newly_refused", 1)
            for rule in sorted({rule_of(each.field) for each in violations}):
                pipe.hincrby(counts, _RULE.decode() + rule, 1)
            told = Refusal(
                job=job,
                tenant=tenant,
                at=datetime.fromtimestamp(now, UTC),
                violations=tuple(violations[:VIOLATIONS_MAX]),
            )
            pipe.lpush(listed, told.model_dump_json())
            pipe.ltrim(listed, 0, LISTED_MAX - 1)
            pipe.expire(listed, KEPT)
        elif job is None:
            pipe.hincrby(counts, "newly_admitted", 1)
        pipe.expire(counts, KEPT)
        pipe.execute()


def report(redis: Redis, name: str, last: int = 20) -> Report | None:
    """Return what the draft of this policy would have done, with its `last` refusals; None when nothing came."""
    digest: Any = redis.get(_SHADOW + name)
    if digest is None:
        return None
    key = f"{_SHADOW}{name}:{digest.decode()}"
    counts: Any = redis.hgetall(key)
    if not counts:
        return None
    listed: Any = redis.lrange(f"{key}:refused", 0, last - 1) if last > 0 else []
    rules = {
        field.removeprefix(_RULE).decode(): int(count)
        for field, count in counts.items()
        if field.startswith(_RULE)
    }
    return Report(
        digest=digest.decode(),
        since=datetime.fromtimestamp(int(counts[b"since"]) / 1000, UTC),
        evaluated=int(counts.get(b"evaluated", 0)),
        refused=int(counts.get(b"refused", 0)),
        newly_refused=int(counts.get(b"newly_refused", 0)),
        newly_admitted=int(counts.get(b"newly_admitted", 0)),
        rules=dict(sorted(rules.items(), key=lambda each: (-each[1], each[0]))),
        refusals=tuple(Refusal.model_validate_json(each) for each in listed),
    )
