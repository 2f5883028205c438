"""Images: what the jobs of the caller's project may run in. Rights are asked of the policies, whatever is there."""

from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import Field

from api.auth import Reader
from api.documentation import json_body
from api.problems import FORBIDDEN, INTERNAL, INVALID_REQUEST, UNAUTHENTICATED, UNAVAILABLE, documented
from api.services import Services, services_of
from policies.image_names import HOST_IMAGE
from policies.model import Frozen

router = APIRouter(
    tags=["images"], responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE)
)


class ImageUse(Frozen):
    """Under which policy, and where, an image may be used."""

    policy: str = Field(description="A policy that lets it through.")
    pools: tuple[str, ...] = Field(description="Those of the policy's pools whose workers all have it.")


class UsableImage(Frozen):
    """An image that a job may name."""

    name: str = Field(description="The name, as a job may write it.")
    digest: str | None = Field(
        description="What it means now; a job may say `name@digest`. Null for `host`, which is the machine's own."
    )
    uses: tuple[ImageUse, ...] = Field(description="Where it may be used, by policy.")


class ImageList(Frozen):
    """Every image that the caller may use."""

    images: tuple[UsableImage, ...] = Field(description="The images by name.")


@router.get(
    "/v1/images",
    summary="List the images",
    responses={200: {"description": "All images that jobs may name", "content": json_body(ImageList)}},
)
async def list_images(request: Request, caller: Reader) -> Response:
    """Every image that the workers have and that a policy of the caller's project lets through.

    One that pools have with different digests is there once for each.
    """
    found = await to_thread.run_sync(usable, services_of(request), caller.id)
    return Response(found.model_dump_json(), media_type="application/json")


def usable(services: Services, project: str) -> ImageList:
    """The images of a project."""
    found: dict[tuple[str, str | None], dict[str, list[str]]] = {}
    for name, effective in services.policies.of(project).usable.items():
        policy = effective.policy
        for pool in policy.pools:
            there: list[tuple[str, str | None]] = [*services.hosts.images(pool).under(policy)]
            if services.settings.image_host and policy.allows_image(HOST_IMAGE):
                there.append((HOST_IMAGE, None))
            for image in there:
                found.setdefault(image, {}).setdefault(name, []).append(pool)
    return ImageList(
        images=tuple(
            UsableImage(
                name=image,
                digest=digest,
                uses=tuple(ImageUse(policy=name, pools=tuple(pools)) for name, pools in uses.items()),
            )
            for (image, digest), uses in sorted(
                found.items(), key=lambda each: (each[0][0], each[0][1] or "")
            )
        )
    )
