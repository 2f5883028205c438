"""The queues between the store and the workers: Celery over Redis, one task, JSON, late acknowledgement, no results.

There is one Celery queue for each pool of workers. The store's scripts publish (`lua/lib/release.lua`): what is
released and its message are one step, so no message is missing because its sender died. Delivery is at least once
and in the order of publication; that an attempt runs once is the store's doing (`Store.claim`). A message that gets
lost on its way into a worker is published again by the reaper.
"""

from celery import Celery
from kombu.entity import Queue

from jobs import broker
from jobs.settings import Settings

PREFIX = "stockade:celery:"
"""Before each of the broker's own keys, so that a Redis user can be confined to `stockade:*`."""
VISIBILITY_TIMEOUT = 6 * 3600
"""Seconds until the broker redelivers what a vanished worker had fetched; longer than any job may last."""


def broker_url(settings: Settings) -> str:
    """The address of Redis as Celery takes it, with the transport of `jobs.broker`."""
    scheme, _, rest = settings.redis_celery.partition("://")
    socket = "+socket" if scheme == "redis+socket" else ""
    return f"{broker.TRANSPORT}{socket}://{rest}"


def celery_app(settings: Settings) -> Celery:
    """The Celery application of a worker of `settings.pools`. It knows no task; the worker adds its one."""
    app = Celery("stockade", set_as_current=False, fixups=[])
    app.conf.update(
        broker_url=broker_url(settings),
        broker_use_ssl={"ssl_cert_reqs": "required"} if settings.redis.startswith("rediss://") else None,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_transport_options={
            "global_keyprefix": PREFIX,
            "priority_steps": [0],
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "connect_retries_timeout": 1,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        accept_content=["json"],
        result_accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_queues=[
            Queue(pool, routing_key=pool)  # type: ignore[no-untyped-call]
            for pool in settings.pools
        ],
        task_default_queue=settings.pools[0],
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        event_queue_ttl=1,
    )
    return app
