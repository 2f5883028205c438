"""The HTTP application: routes, problem details, documentation, and the life of what they share."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Response
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

from api import (
    artifacts,
    audit,
    batches,
    documentation,
    events,
    explain,
    health,
    images,
    job_list,
    jobs,
    keys,
    outputs,
    policies,
    problems,
    quota,
    usage,
    webhooks,
)
from api.access import AccessLog
from api.health import Health, Readiness
from api.images import ImageList
from api.keys import KeyList, KeyRequest, NewKey
from api.policies import PolicyList, PublishedPolicy
from api.services import running
from api.webhooks import DeliveryList, NewWebhook, WebhookChange, WebhookList, WebhookRequest
from jobs.audit import Page
from jobs.batch import Batch, BatchAnswer
from jobs.deliveries import Delivery
from jobs.job_event import EVENTS
from jobs.job_list import JobList
from jobs.job_view import ArtifactList, JobView
from jobs.keys import Key
from jobs.problem import Problem
from jobs.quota import Quota
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.usage import UsageReport
from jobs.webhooks import Webhook
from policies.explain import Explanation

MODELS: Sequence[tuple[type[BaseModel], JsonSchemaMode]] = (
    (JobSpec, "validation"),
    (JobView, "serialization"),
    (JobList, "serialization"),
    (Batch, "validation"),
    (BatchAnswer, "serialization"),
    *((event, "serialization") for event in EVENTS.values()),
    (ArtifactList, "serialization"),
    (PolicyList, "serialization"),
    (PublishedPolicy, "serialization"),
    (ImageList, "serialization"),
    (Explanation, "serialization"),
    (KeyRequest, "validation"),
    (Key, "serialization"),
    (NewKey, "serialization"),
    (KeyList, "serialization"),
    (Quota, "serialization"),
    (UsageReport, "serialization"),
    (Page, "serialization"),
    (WebhookRequest, "validation"),
    (WebhookChange, "validation"),
    (NewWebhook, "serialization"),
    (Webhook, "serialization"),
    (WebhookList, "serialization"),
    (Delivery, "serialization"),
    (DeliveryList, "serialization"),
    (Health, "serialization"),
    (Readiness, "serialization"),
    (Problem, "serialization"),
)
"""Every model that goes in or comes out: the schemas of the OpenAPI description."""

ROUTERS = tuple(
    part.router
    for part in (
        *(jobs, job_list, batches, explain, events, outputs, artifacts, policies, images),
        *(keys, webhooks, quota, usage, audit, health),
    )
)
"""The routes of every part."""

DESCRIPTION = """\
Send a program; a policy says what it may use; it runs in a fresh sandbox; you get its output, its files,
what it used and, when it was stopped, which limit stopped it.

Every request but those for health needs an API key as `Authorization: Bearer KEY`. Every error is a problem
detail (RFC 9457) that lists each field at fault with what it got and what is allowed. Sizes are bytes or text
such as `64MiB`; times are seconds or text such as `500ms`.
"""


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application of one installation. Redis need not be there yet."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="Stockade",
        version=version("stockade"),
        summary="Runs untrusted programs under a policy.",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,  # it would redirect to whatever host the request names
        default_response_class=Response,  # routes describe their answers; FastAPI is not to add JSON
        lifespan=lifespan,
    )
    app.add_middleware(AccessLog)
    problems.install(app, [route for router in ROUTERS for route in router.routes])
    for router in ROUTERS:
        app.include_router(router)
    documentation.install(app, MODELS)
    return app
