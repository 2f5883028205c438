"""Health: whether this process lives (`/healthz`), and whether the service can run jobs (`/readyz`).

Both answer without a key, for load balancers, and therefore tell no names and addresses.
"""

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from redis.exceptions import RedisError

from api.documentation import json_body
from api.problems import INTERNAL, documented
from api.services import Services, services_of
from jobs.eviction import SAFE, eviction_policy
from jobs.workers import WorkerStatus
from policies.model import Frozen

router = APIRouter(tags=["health"])


class Health(Frozen):
    """This process lives."""

    status: Literal["ok"] = Field(default="ok", description="Always `ok`.")


class Component(Frozen):
    """One part of the service."""

    ready: bool = Field(description="Whether it does its work.")
    message: str = Field(description="The same as a sentence: what there is, or what is wrong.")


class Readiness(Frozen):
    """Whether jobs that are sent now will run, part by part."""

    ready: bool = Field(description="Whether all of the parts are ready.")
    redis: Component = Field(description="Redis or Valkey, which keeps the jobs and the queue.")
    worker: Component = Field(description="At least one worker that takes jobs.")
    launcher: Component = Field(description="At least one worker's launcher, which makes the sandboxes.")
    policies: Component = Field(
        description="The policy documents. With broken ones the policies from before stay in force, and the"
        " service stays ready."
    )


@router.get(
    "/healthz",
    summary="Is this process alive",
    responses={200: {"description": "It is", "content": json_body(Health)}},
)
async def healthz() -> Response:
    """Answers as long as this process does, whatever else is down."""
    return Response(Health().model_dump_json(), media_type="application/json")


@router.get(
    "/readyz",
    summary="Can jobs run",
    responses={
        200: {"description": "They can", "content": json_body(Readiness)},
        503: {"description": "They cannot; the parts say why", "content": json_body(Readiness)},
        **documented(INTERNAL),
    },
)
def readyz(request: Request) -> Response:
    """Looks at Redis, and through it at the workers and their launchers."""
    readiness = look(services_of(request))
    return Response(
        readiness.model_dump_json(), 200 if readiness.ready else 503, media_type="application/json"
    )


def look(services: Services) -> Readiness:
    """The state of every part, as it is seen from here."""
    policies = _policies(services)
    try:
        workers = services.workers.live()
        policy = eviction_policy(services.store.redis)
    except RedisError as error:
        redis = Component(
            ready=False, message=f"Redis cannot be reached or refuses ({type(error).__name__})."
        )
        unknown = Component(ready=False, message="Unknown without Redis.")
        return Readiness(ready=False, redis=redis, worker=unknown, launcher=unknown, policies=policies)
    redis = _redis(policy)
    worker, launcher = _worker(workers), _launcher(workers)
    return Readiness(
        ready=redis.ready and worker.ready and launcher.ready,
        redis=redis,
        worker=worker,
        launcher=launcher,
        policies=policies,
    )


def _policies(services: Services) -> Component:
    """Whether the documents are in force as they now stand. The log of the API has what is wrong with them."""
    source = services.policies.source
    if source.trouble is not None:
        message = (
            "The policy documents are broken; those from before stay in force. The log says what is wrong."
        )
        return Component(ready=False, message=message)
    drafts = len(source.current.draft_findings)
    broken = f" {drafts} thing(s) are wrong with drafts; the log says what." if drafts else ""
    return Component(ready=True, message=f"{len(source.current.policies)} policies are in force.{broken}")


def _redis(policy: str | None) -> Component:
    if policy not in (SAFE, None):
        return Component(ready=False, message=f"Redis drops jobs when its memory is full ({policy}).")
    return Component(ready=True, message="Redis answers.")


def _worker(workers: list[WorkerStatus]) -> Component:
    if not workers:
        return Component(ready=False, message="No worker has been heard of lately.")
    slots = sum(worker.slots for worker in workers)
    return Component(ready=True, message=f"{len(workers)} worker(s) with {slots} slots.")


def _launcher(workers: list[WorkerStatus]) -> Component:
    able = sum(worker.launcher is None for worker in workers)
    if not able:
        return Component(ready=False, message="No worker reaches its launcher.")
    return Component(ready=True, message=f"{able} of {len(workers)} workers reach their launcher.")
