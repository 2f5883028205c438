"""The queue between API and workers: Celery over Redis, one task, JSON, late acknowledgement, no results.

Delivery is at least once and in the order of publication; that an attempt runs once is the store's doing
(`Store.claim`). A message that never arrives is published again by the reaper, so neither a lost message
nor a failed `Queue.publish` loses a job.
"""

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs import broker
from jobs.settings import Settings

NAME = "default"
PREFIX = "stockade:celery:"
"""Before each of the broker's own keys, so that a Redis user can be confined to `stockade:*`."""
LIST = PREFIX + NAME
"""The Redis list that holds the messages."""
VISIBILITY_TIMEOUT = 6 * 3600
"""Seconds until the broker redelivers what a vanished worker had fetched; longer than any job may last."""


def broker_url(settings: Settings) -> str:
    """The address of Redis as Celery takes it, with the transport of `jobs.broker`."""
    scheme, _, rest = settings.redis_celery.partition("://")
    socket = "+socket" if scheme == "redis+socket" else ""
    return f"{broker.TRANSPORT}{socket}://{rest}"


def celery_app(settings: Settings) -> Celery:
    """The Celery application that API and workers share. It knows no task; the worker adds its one."""
    app = Celery("stockade", set_as_current=False, fixups=[])
    app.conf.update(
        broker_url=broker_url(settings),
        broker_use_ssl={"ssl_cert_reqs": "required"} if settings.redis.startswith("rediss://") else None,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_pool_limit=64,
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
        task_default_queue=NAME,
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        task_publish_retry=False,
        task_send_sent_event=False,
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


class Queue:
    """The publishing side of the queue, for one process. Safe for threads."""

    def __init__(self, settings: Settings) -> None:
        self._app = celery_app(settings)

    def publish(self, job_id: str, attempt: int) -> None:
        """Send the message that lets a worker claim `attempt` of the job.

        Raises kombu.exceptions.OperationalError when Redis is not there; the reaper then publishes it later.
        """
        publish(self._app, job_id, attempt)

    def close(self) -> None:
        """Close the connections to Redis."""
        self._app.close()


def publish(app: Celery, job_id: str, attempt: int) -> None:
    """Send the message for one attempt over a given Celery application (see `Queue.publish`).

    The message is that of Celery's protocol 2 without what is optional; `Celery.send_task` takes twice the time
    to fill that in.
    """
    headers = {"lang": "py", "task": broker.TASK, "id": f"{job_id}/{attempt}"}
    try:
        with app.producer_pool.acquire(block=True) as producer:
            producer.publish(
                [[job_id, attempt], {}, {}], exchange="", routing_key=NAME, serializer="json", headers=headers
            )
    except RedisError as error:
        raise OperationalError(str(error)) from error
