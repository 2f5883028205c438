"""What the routes work with: one set for each application, made when it starts and closed when it ends."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import structlog
from anyio import CapacityLimiter
from fastapi import Request
from redis import Redis
from redis.exceptions import RedisError

from api.auth import Authenticator
from api.body import BodyReader
from api.delivery import Dispatcher
from api.egress import Egress
from api.hosts import Hosts
from api.live import LiveJobs
from api.metrics import flushing
from api.policies_in_force import PoliciesInForce
from api.refusals import Refusals
from api.shadow import Shadow
from api.waiting import FinishedJobs
from jobs import audit
from jobs.deliveries import Deliveries
from jobs.live import LiveOutput
from jobs.policy_source import PolicySource
from jobs.policy_versions import PolicyVersions
from jobs.settings import Settings
from jobs.store import Store, connect
from jobs.tenant_bounds import TenantBounds
from jobs.webhooks import Webhooks
from jobs.workers import Workers
from policies.loader import PolicySet
from policies.policy import Policy
from policies.units import MIB

log = structlog.get_logger(__name__)

REDIS_TIMEOUT = 5.0  # seconds that a request waits for a Redis that is silent; then it is 503
BESIDE_FILES = 4 * MIB  # bytes of a body that are not files: arguments, standard input, JSON itself


@dataclass
class Services:
    """Everything that outlives a request."""

    settings: Settings
    policies: PoliciesInForce
    hosts: Hosts
    shadow: Shadow
    store: Store
    workers: Workers
    authenticator: Authenticator
    bodies: BodyReader
    finished: FinishedJobs
    live: LiveJobs
    live_output: LiveOutput
    large_bodies: CapacityLimiter
    refusals: Refusals
    webhooks: Webhooks
    deliveries: Deliveries
    dispatcher: Dispatcher


def max_body(policies: Mapping[str, Policy]) -> int:
    """Bytes that a request body may have: the most files that any policy allows, as base64, and the rest."""
    return max(policy.files_bytes for policy in policies.values()) * 4 // 3 + BESIDE_FILES


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Services]:
    """The services of one application, for as long as it runs."""
    source = PolicySource(settings.policies)
    bodies = BodyReader(max_body(source.current.policies))
    redis = connect(settings, REDIS_TIMEOUT)
    workers = Workers(redis)
    finished, live = FinishedJobs(settings.redis_py), LiveJobs(settings.redis_py)
    deliveries = Deliveries(redis)
    dispatcher = Dispatcher(settings.redis_py, redis, deliveries, Egress(settings.webhook_networks))
    try:
        async with (
            finished.listening(),
            live.listening(),
            dispatcher.dispatching(),
            flushing(redis),
        ):
            with (
                source.watched(*_on_policies(bodies, redis)),
                Shadow(redis, settings.image_host).watching() as shadow,
            ):
                yield Services(
                    settings=settings,
                    policies=PoliciesInForce(source, TenantBounds(redis), PolicyVersions(redis)),
                    hosts=Hosts(workers.live),
                    shadow=shadow,
                    store=Store(redis),
                    workers=workers,
                    authenticator=Authenticator(redis),
                    bodies=bodies,
                    finished=finished,
                    live=live,
                    live_output=LiveOutput(redis),
                    large_bodies=CapacityLimiter(1),
                    refusals=Refusals(redis),
                    webhooks=Webhooks(redis),
                    deliveries=deliveries,
                    dispatcher=dispatcher,
                )
    finally:
        redis.close()


def _on_policies(
    bodies: BodyReader, redis: Redis
) -> tuple[Callable[[PolicySet], None], Callable[[str], None]]:
    """What is done when other policies come into force, and when their documents are not taken."""

    def record(action: str, **about: object) -> None:
        try:
            audit.record(redis, audit.PLATFORM, audit.SERVICE, action, **about)
        except RedisError as error:
            log.warning("policies_not_recorded", action=action, reason=str(error))

    def changed(found: PolicySet) -> None:
        bodies.take(max_body(found.policies))
        record("policy.reloaded", policies={name: each.digest for name, each in found.policies.items()})

    def rejected(trouble: str) -> None:
        record("policy.rejected", trouble=trouble)

    return changed, rejected


def services_of(request: Request) -> Services:
    """The services of the application that this request came to."""
    return cast(Services, request.app.state.services)
