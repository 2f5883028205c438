"""The broker as Celery sees it: Redis, with a door that lets in nothing but the message of `jobs.queue`.

A message carries two names, a job's id and the number of an attempt, and no authority: the store decides
whether that attempt may run. Whatever else lies in the list (another task, another content type, embedded
callbacks, a time to wait until, something that is not JSON at all) is dropped with a warning before Celery
looks at it, and what is let in is built anew from the names.
"""

import base64
import binascii
import json
import logging
import re
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

TASK = "stockade.run_job"
BODY_MAX = 4096
"""Bytes of base64; ours has about 200."""

TRANSPORT = "stockade"
"""The name of this transport in a broker URL."""

_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_log = logging.getLogger(__name__)


class ForgedMessageError(ValueError):
    """A message that `jobs.queue` did not write."""


def admit(raw: object) -> dict[str, Any]:
    """The message as Celery shall see it, built anew from the job id and the attempt that `raw` names.

    Raises ForgedMessageError when `raw` is not a JSON message for `TASK` with exactly these two arguments.
    """
    try:
        headers, properties = raw["headers"], raw["properties"]  # type: ignore[index]
        genuine = (
            headers["task"] == TASK
            and raw["content-type"] == "application/json"  # type: ignore[index]
            and properties["body_encoding"] == "base64"
            and len(raw["body"]) <= BODY_MAX  # type: ignore[index]
        )
        if not genuine:
            raise ForgedMessageError(f"not a JSON message for {TASK}")
        (job_id, attempt), options, embedded = json.loads(base64.b64decode(raw["body"], validate=True))  # type: ignore[index]
        if options or any(embedded.values()):
            raise ForgedMessageError("it has keyword arguments or embeds other tasks")
        tag = properties["delivery_tag"]
        if not _JOB_ID.fullmatch(job_id) or type(attempt) is not int or not 0 < attempt < 1000:
            raise ForgedMessageError("it does not name a job and an attempt")
        if not isinstance(tag, str) or len(tag) > 64:
            raise ForgedMessageError("its delivery tag is not ours")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError, binascii.Error) as error:
        raise ForgedMessageError(str(error)) from error
    return _message(job_id, attempt, tag, headers.get("redelivered") is True)


def _message(job_id: str, attempt: int, tag: str, redelivered: bool) -> dict[str, Any]:
    body = json.dumps([[job_id, attempt], {}, {}]).encode()
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": TASK, "id": f"{job_id}/{attempt}", "redelivered": redelivered},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": tag,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "default"},
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
            admitted = admit(message)
        except ForgedMessageError as error:
            _log.warning("dropped a forged message: %.200r", str(error))
            return
        super()._deliver(admitted, queue)  # type: ignore[no-untyped-call]


TRANSPORT_ALIASES[TRANSPORT] = f"{__name__}:Transport"
