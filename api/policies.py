"""Policies: what jobs may ask for. They are read when the service starts and do not change while it runs."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field

from api.auth import Caller
from api.documentation import json_body
from api.problems import INTERNAL, NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE, documented, not_found
from api.services import services_of
from policies.model import Frozen
from policies.policy import Policy

router = APIRouter(tags=["policies"], responses=documented(UNAUTHENTICATED, INTERNAL, UNAVAILABLE))


class PublishedPolicy(Frozen):
    """A policy and the digest that names exactly this content of it."""

    digest: str = Field(description="SHA-256 of the policy; `admission.policy_digest` of a job names it.")
    policy: Policy = Field(description="The policy itself.")


class PolicyList(Frozen):
    """Every policy of this installation."""

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
    """Every policy with its defaults and ceilings."""
    policies = services_of(request).policies.values()
    answer = PolicyList(policies=tuple(published(policy) for policy in policies))
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
    policy = services_of(request).policies.get(name)
    if policy is None:
        raise not_found("There is no policy of this name; /v1/policies lists them.")
    return Response(published(policy).model_dump_json(), media_type="application/json")
