"""Webhooks: have an address told of what happens to jobs, see what it was told, and tell it again.

Who says where messages go learns what is in them, so that takes the scope `read` beside `admin`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.auth import Admin, AdminReader, Identity, Reader
from api.body import parse
from api.documentation import json_body
from api.egress import URL_MAX, url_fault
from api.problems import (
    BODY_TIMEOUT,
    BODY_TOO_LARGE,
    CONFLICT,
    FORBIDDEN,
    INTERNAL,
    INVALID_REQUEST,
    NOT_FOUND,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA,
    ProblemError,
    documented,
    invalid,
    not_found,
)
from api.services import Services, services_of
from jobs import audit, deliveries, messages
from jobs.deliveries import Delivery, DeliveryState, Message
from jobs.events import EventType
from jobs.webhooks import WEBHOOKS_MAX, Webhook, WebhookState
from policies.model import Frozen
from policies.violation import violations

PAGE_MAX = 200
DESCRIPTION_MAX = 200

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BODY = documented(BODY_TIMEOUT, BODY_TOO_LARGE, UNSUPPORTED_MEDIA, INVALID_REQUEST)

WebhookId = Annotated[str, Path(description="The webhook's `id`.", examples=["wh_00112233445566778899aabb"])]
DeliveryId = Annotated[
    str, Path(description="The delivery's `id`.", examples=["msg_00112233445566778899aabb"])
]

Model = TypeVar("Model", bound=Frozen)

router = APIRouter(
    tags=["webhooks"],
    responses=documented(UNAUTHENTICATED, FORBIDDEN, INVALID_REQUEST, INTERNAL, UNAVAILABLE),
)


def _url(url: str, about: ValidationInfo) -> str:
    fault = url_fault(url, (about.context or {}).get("allowed", ()))
    if fault is not None:
        allowed = fault.removeprefix("must ")
        raise PydanticCustomError("url", "{message}", {"message": fault, "allowed": allowed})
    return url


def _each_once(events: tuple[EventType, ...]) -> tuple[EventType, ...]:
    return tuple(each for each in EventType if each in events)


Url = Annotated[str, Field(max_length=URL_MAX), AfterValidator(_url)]
Events = Annotated[tuple[EventType, ...], Field(min_length=1, max_length=20), AfterValidator(_each_once)]
Text = Annotated[str, StringConstraints(max_length=DESCRIPTION_MAX, pattern=r"^[^\x00-\x1f\x7f]*$")]


class WebhookRequest(Frozen):
    """A webhook to be made."""

    url: Url = Field(
        description="Where messages are sent: https or http, a host of the public internet.",
        examples=["https://hooks.example.com/stockade"],
    )
    events: Events = Field(
        default=(EventType.FINISHED,), description="What it is told of.", examples=[["job.finished"]]
    )
    description: Text = Field(default="", description="What it is for.")


class WebhookChange(Frozen):
    """What is to change of a webhook; what is absent stays."""

    url: Url | None = Field(default=None, description="Where messages are sent.")
    events: Events | None = Field(default=None, description="What it is told of.")
    description: Text | None = Field(default=None, description="What it is for.")
    state: Literal["active", "disabled"] | None = Field(
        default=None,
        description="`disabled` ends the sending, and what happens meanwhile is not told; `active` resumes, also"
        " one that was paused, with what was waiting.",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.fields():
            raise PydanticCustomError(
                "nothing", "names nothing to change", {"allowed": list(type(self).model_fields)}
            )
        return self

    def fields(self) -> dict[str, str]:
        """The fields to set, as they are stored."""
        given = self.model_dump(exclude_none=True)
        return {name: " ".join(value) if name == "events" else value for name, value in given.items()}


class NewWebhook(Frozen):
    """A webhook and its secret, which is not shown again."""

    webhook: Webhook = Field(description="The webhook.")
    secret: str = Field(
        description="What its messages are signed with, as libraries for Standard Webhooks take it. Keep it: it is not"
        " shown again."
    )


class WebhookList(Frozen):
    """The webhooks of a project."""

    webhooks: tuple[Webhook, ...] = Field(description="The webhooks, oldest first.")


class DeliveryList(Frozen):
    """Some of a webhook's deliveries."""

    deliveries: tuple[Delivery, ...] = Field(description="The deliveries, the latest first.")
    cursor: str | None = Field(
        description="Send it as `cursor` for those that follow; null when these are the last."
    )


def _content(answer: Frozen, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.model_dump_json(), status, headers, media_type="application/json")


@router.post(
    "/v1/webhooks",
    status_code=201,
    summary="Make a webhook",
    responses={
        201: {
            "description": "The webhook, with its secret",
            "content": json_body(NewWebhook),
            "headers": {"Location": {"description": "Address of the webhook", "schema": {"type": "string"}}},
        },
        **_BODY,
        **documented(CONFLICT),
    },
    openapi_extra={"requestBody": {"required": True, "content": json_body(WebhookRequest)}},
)
async def create_webhook(request: Request, caller: AdminReader) -> Response:
    """Has an address told of what happens to the project's jobs from now on.

    Messages are signed as Standard Webhooks has it, and sent again for two days until the answer is 2xx. The host's
    addresses are checked whenever something is sent, not here.
    """
    services = services_of(request)

    def make(asked: WebhookRequest) -> Response:
        made = services.webhooks.create(caller.id, asked.url, asked.events, asked.description)
        if made is None:
            raise ProblemError(CONFLICT, f"A project may have {WEBHOOKS_MAX} webhooks; delete one first.")
        _record(services, caller, "webhook.created", made[0].id, host=urlsplit(asked.url).hostname)
        answer = NewWebhook(webhook=made[0], secret=made[1])
        return _content(answer, 201, {"Location": f"/v1/webhooks/{made[0].id}"})

    return await _with_body(request, services, WebhookRequest, make)


@router.get(
    "/v1/webhooks",
    summary="List the webhooks",
    responses={200: {"description": "The webhooks", "content": json_body(WebhookList)}},
)
def list_webhooks(request: Request, caller: Reader) -> Response:
    """The project's webhooks, without their secrets."""
    return _content(WebhookList(webhooks=tuple(services_of(request).webhooks.of(caller.id))))


@router.get(
    "/v1/webhooks/{webhook_id}",
    summary="Get a webhook",
    responses={200: {"description": "The webhook", "content": json_body(Webhook)}, **documented(NOT_FOUND)},
)
def get_webhook(request: Request, caller: Reader, webhook_id: WebhookId) -> Response:
    """One webhook, without its secret."""
    return _content(find(services_of(request), webhook_id, caller.id))


@router.patch(
    "/v1/webhooks/{webhook_id}",
    summary="Change a webhook",
    responses={
        200: {"description": "The webhook as it now is", "content": json_body(Webhook)},
        **_BODY,
        **documented(NOT_FOUND),
    },
    openapi_extra={"requestBody": {"required": True, "content": json_body(WebhookChange)}},
)
async def change_webhook(request: Request, caller: AdminReader, webhook_id: WebhookId) -> Response:
    """Changes what is given, and nothing else."""
    services = services_of(request)

    def change(asked: WebhookChange) -> Response:
        known = _ID.fullmatch(webhook_id)
        changed = services.webhooks.change(webhook_id, caller.id, asked.fields()) if known else None
        if changed is None:
            raise _no_webhook()
        _record(services, caller, "webhook.changed", webhook_id, fields=sorted(asked.fields()))
        services.dispatcher.wake()
        return _content(changed)

    return await _with_body(request, services, WebhookChange, change)


@router.delete(
    "/v1/webhooks/{webhook_id}",
    summary="Delete a webhook",
    responses={
        200: {"description": "The webhook as it was", "content": json_body(Webhook)},
        **documented(NOT_FOUND),
    },
)
def delete_webhook(request: Request, caller: Admin, webhook_id: WebhookId) -> Response:
    """Removes a webhook, what was waiting to be sent to it, and its log."""
    services = services_of(request)
    webhook = find(services, webhook_id, caller.id)
    if not services.webhooks.delete(webhook_id, caller.id):
        raise _no_webhook()
    _record(services, caller, "webhook.deleted", webhook_id)
    return _content(webhook)


@router.post(
    "/v1/webhooks/{webhook_id}:rotate_secret",
    summary="Replace a webhook's secret",
    responses={
        200: {"description": "The webhook, with its new secret", "content": json_body(NewWebhook)},
        **documented(NOT_FOUND),
    },
)
def rotate_secret(request: Request, caller: Admin, webhook_id: WebhookId) -> Response:
    """Makes a new secret. For a day messages carry two signatures, one by the old secret."""
    services = services_of(request)
    secret = services.webhooks.rotate(webhook_id, caller.id) if _ID.fullmatch(webhook_id) else None
    if secret is None:
        raise _no_webhook()
    _record(services, caller, "webhook.secret_rotated", webhook_id)
    return _content(NewWebhook(webhook=find(services, webhook_id, caller.id), secret=secret))


@router.post(
    "/v1/webhooks/{webhook_id}:test",
    status_code=202,
    summary="Send a test",
    responses={
        202: {"description": "The delivery, which is on its way", "content": json_body(Delivery)},
        **documented(NOT_FOUND, CONFLICT),
    },
)
def test_webhook(request: Request, caller: AdminReader, webhook_id: WebhookId) -> Response:
    """Sends a message of the type `webhook.ping`, whatever the webhook is told of otherwise."""
    services = services_of(request)
    find(services, webhook_id, caller.id)
    delivery = deliveries.ping_id()
    body = messages.message(deliveries.PING, datetime.now(UTC), {"webhook": webhook_id})
    ping = Message(webhook_id, delivery, deliveries.PING, "", body)
    if not services.deliveries.create(ping):
        raise _not_active(find(services, webhook_id, caller.id))
    return _on_its_way(services, webhook_id, delivery)


@router.get(
    "/v1/webhooks/{webhook_id}/deliveries",
    summary="List a webhook's deliveries",
    responses={
        200: {"description": "Some deliveries, the latest first", "content": json_body(DeliveryList)},
        **documented(NOT_FOUND, INVALID_REQUEST),
    },
)
def list_deliveries(
    request: Request,
    caller: Reader,
    webhook_id: WebhookId,
    state: Annotated[DeliveryState | None, Query(description="Only those in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_MAX, description="How many at most.")] = 50,
    cursor: Annotated[
        str | None,
        Query(pattern=r"^[0-9]{1,15}$", description="Where to go on: `cursor` of the list before."),
    ] = None,
) -> Response:
    """What the webhook was told and is to be told, with every answer. The dead ones are the dead letters."""
    services = services_of(request)
    find(services, webhook_id, caller.id)
    before = None if cursor is None else int(cursor)
    page, following = services.deliveries.page(webhook_id, limit, state=state, before=before)
    return _content(
        DeliveryList(deliveries=tuple(page), cursor=None if following is None else str(following))
    )


@router.post(
    "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}:redeliver",
    status_code=202,
    summary="Deliver again",
    responses={
        202: {"description": "The delivery, which is on its way", "content": json_body(Delivery)},
        **documented(NOT_FOUND, CONFLICT),
    },
)
def redeliver(
    request: Request, caller: AdminReader, webhook_id: WebhookId, delivery_id: DeliveryId
) -> Response:
    """Sends a message again under its old id, whatever became of it, with all its tries before it."""
    services = services_of(request)
    webhook = find(services, webhook_id, caller.id)
    known = _ID.fullmatch(delivery_id)
    again = services.deliveries.redeliver(webhook_id, delivery_id, caller.id) if known else None
    if again is None:
        raise _no_delivery()
    if not again:
        raise _not_active(webhook)
    return _on_its_way(services, webhook_id, delivery_id)


def _record(services: Services, caller: Identity, action: str, webhook_id: str, **about: Any) -> None:
    actor = audit.key_actor(caller.key_id)
    audit.record(services.store.redis, caller.id, actor, action, webhook=webhook_id, **about)


def find(services: Services, webhook_id: str, tenant: str) -> Webhook:
    """The project's webhook.

    Raises:
        ProblemError: 404; the webhook of another project does not exist either.
    """
    webhook = services.webhooks.get(webhook_id, tenant) if _ID.fullmatch(webhook_id) else None
    if webhook is None:
        raise _no_webhook()
    return webhook


def _on_its_way(services: Services, webhook_id: str, delivery_id: str) -> Response:
    services.dispatcher.wake()
    delivery = services.deliveries.get(webhook_id, delivery_id)
    if delivery is None:  # the webhook was deleted meanwhile
        raise _no_delivery()
    return _content(delivery, 202)


async def _with_body(
    request: Request, services: Services, model: type[Model], act: Callable[[Model], Response]
) -> Response:
    """Do this with the body, which is to be a valid document of that model."""
    async with services.bodies.read(request) as body:
        asked = _read(body, model, services)
    return await to_thread.run_sync(act, asked)


def _read(body: bytes, model: type[Model], services: Services) -> Model:
    parse(body)
    try:
        return model.model_validate_json(body, context={"allowed": services.settings.webhook_networks})
    except ValidationError as error:
        raise invalid(violations(error, model)) from None


def _no_webhook() -> ProblemError:
    return not_found("There is no such webhook.")


def _no_delivery() -> ProblemError:
    return not_found("The webhook has no such delivery; they are kept for a week.")


def _not_active(webhook: Webhook) -> ProblemError:
    if webhook.state is WebhookState.ACTIVE:
        return ProblemError(CONFLICT, "Too many deliveries are waiting already.")
    return ProblemError(CONFLICT, f"The webhook is {webhook.state}: change its state to active first.")
