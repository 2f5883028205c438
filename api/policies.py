"""Policies: what jobs of the caller's project may ask for, as the scopes above the policies leave it."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Request, Response
from pydantic import Field

from api.auth import Caller
from api.documentation import json_body
from api.problems import (
    INTERNAL,
    INVALID_REQUEST,
    NOT_FOUND,
    UNAUTHENTICATED,
    UNAVAILABLE,
    documented,
    not_found,
)
from api.services import services_of
from policies.model import Frozen
from policies.policy import Policy

router = APIRouter(
    tags=["policies"], responses=documented(UNAUTHENTICATED, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


class PublishedPolicy(Frozen):
    """A policy, as it holds for the caller, and the digest that names exactly this content of it."""

    digest: str = Field(description="SHA-256 of the policy; `admission.policy_digest` of a job names it.")
    policy: Policy = Field(description="The policy itself.")


class PolicyList(Frozen):
    """Every policy that the caller may use."""

    policies: tuple[PublishedPolicy, ...] = Field(description="The policies by name.")


def published(policy: Policy) -> PublishedPolicy:
    """The policy as callers see it."""
    return PublishedPolicy(digest=policy.digest, policy=policy)


@router.get(
    "/v1/policies",
    summary="List the policies",
    responses={200: {"description": "All policies", "content": json_body(PolicyList)}},
)
async def list_policies(request: Request, caller: Caller) -> Response:
    """Every policy that the caller's jobs may name, as platform, organisation and project leave it."""
    usable = (await to_thread.run_sync(services_of(request).policies.of, caller.id)).usable
    answer = PolicyList(policies=tuple(published(each.policy) for each in usable.values()))
    return Response(answer.model_dump_json(), media_type="application/json")


@router.get(
    "/v1/policies/{name}",
    summary="Get a policy",
    responses={
        200: {"description": "The policy", "content": json_body(PublishedPolicy)},
        **documented(NOT_FOUND),
    },
)
async def get_policy(
    request: Request, caller: Caller, name: Annotated[str, Path(examples=["default"])]
) -> Response:
    """One policy: defaults and ceilings of its limits, and what images, files and steps it allows."""
    usable = (await to_thread.run_sync(services_of(request).policies.of, caller.id)).usable
    if name not in usable:
        raise not_found("There is no policy of this name; /v1/policies lists them.")
    return Response(published(usable[name].policy).model_dump_json(), media_type="application/json")
