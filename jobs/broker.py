"""The broker as Celery sees it: Redis, with a door that lets in nothing but the message of `jobs.queue`.

A message carries two names, a job's id and the number of an attempt, and no authority: the store decides
whether that attempt may run. Whatever else lies in the list (another task, another content type, embedded
callbacks, a time to wait until, something that is not JSON at all) is dropped with a warning before Celery
looks at it, and what is let in is built anew from the names.
"""

import json
import logging
import re
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

TASK = "stockade.run_job"
BODY_MAX = 1024
"""Characters of a body; ours has about 50."""
TAG_MAX = 128
"""Characters of a delivery tag; ours has about 50."""

TRANSPORT = "stockade"
"""The name of this transport in a broker URL."""

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_log = logging.getLogger(__name__)


class ForgedMessageError(ValueError):
    """A message that the store's scripts did not write."""


def admit(raw: object, queue: str) -> dict[str, Any]:
    """The message as Celery shall see it, built anew from the job id and the attempt that `raw` names.

    Raises ForgedMessageError when `raw` is not a JSON message for `TASK` with exactly these two arguments.
    """
    try:
        headers, properties, body = raw["headers"], raw["properties"], raw["body"]  # type: ignore[index]
        genuine = (
            headers["task"] == TASK
            and raw["content-type"] == "application/json"  # type: ignore[index]
            and isinstance(body, str)
            and len(body) <= BODY_MAX
        )
        if not genuine:
            raise ForgedMessageError(f"not a JSON message for {TASK}")
        (job_id, attempt), options, embedded = json.loads(body)
        if options or any(embedded.values()):
            raise ForgedMessageError("it has keyword arguments or embeds other tasks")
        tag = properties["delivery_tag"]
        if not _JOB_ID.fullmatch(job_id) or type(attempt) is not int or not 0 < attempt < 1000:
            raise ForgedMessageError("it does not name a job and an attempt")
        if not isinstance(tag, str) or len(tag) > TAG_MAX:
            raise ForgedMessageError("its delivery tag is not ours")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ForgedMessageError(str(error)) from error
    return _message(job_id, attempt, tag, queue, headers.get("redelivered") is True)


def _message(job_id: str, attempt: int, tag: str, queue: str, redelivered: bool) -> dict[str, Any]:
    return {
        "body": json.dumps([[job_id, attempt], {}, {}]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": TASK, "id": f"{job_id}/{attempt}", "redelivered": redelivered},
        "properties": {
            "delivery_tag": tag,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
        },
    }


class Channel(kombu_redis.Channel):
    """Kombu's Redis channel; it survives an entry that is not JSON, and makes one client, not one a command.

    A client costs 0.1 ms to make. It is safe for threads: its pool lends each of them a connection.
    """

    _one_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._one_client is None or self._one_client.connection_pool is not self.pool:
            self._one_client = super()._create_client()  # type: ignore[no-untyped-call]
        return self._one_client

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (RecursionError, ValueError) as error:  # the entry is off the list already
            _log.warning("dropped a message that is not JSON: %.200r", str(error))
            return True


class Transport(kombu_redis.Transport):
    """Kombu's Redis transport, which delivers admitted messages only."""

    Channel = Channel

    def _deliver(self, message: object, queue: str) -> None:
        try:
            admitted = admit(message, queue)
        except ForgedMessageError as error:
            _log.warning("dropped a forged message: %.200r", str(error))
            return
        super()._deliver(admitted, queue)  # type: ignore[no-untyped-call]


TRANSPORT_ALIASES[TRANSPORT] = f"{__name__}:Transport"
