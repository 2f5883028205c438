"""`python -m api`: serve the API where `STOCKADE_LISTEN` says, until SIGTERM or SIGINT."""

import gc
import logging
import sys

import structlog
import uvicorn
from fastapi import FastAPI
from redis.exceptions import RedisError

from api import metrics
from api.app import create_app
from api.connection import Connection
from api.services import REDIS_TIMEOUT
from jobs.eviction import EvictionError, require_no_eviction
from jobs.settings import Settings, SettingsError
from jobs.store import connect

GRACE = 5  # seconds that requests may take to end after the signal
IDLE = 75  # seconds that a connection may stay open without a request

log = structlog.get_logger("api")


class Server(uvicorn.Server):
    """Uvicorn, with one thing more: when it is told to stop, long polls answer and streams end at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: object = None) -> None:
        """End the waiting, then stop as Uvicorn does."""
        self._app.state.services.finished.close()
        self._app.state.services.live.close()
        await super().shutdown(sockets)  # type: ignore[arg-type]


def main() -> int:
    """Serve; the exit status is 2 when the settings are wrong, or Redis would drop jobs."""
    configure_logging()
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        log.error("bad_settings", reason=str(error))
        return 2
    if (unsafe := _unsafe(settings)) is not None:
        log.error("unsafe_redis", reason=unsafe)
        return 2
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="on",
        access_log=False,  # it would write addresses as they come; see api.access
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=GRACE,
    )
    log.info("serving", listen=settings.listen, metrics=settings.metrics, redis=settings.redis_shown)
    gc.freeze()  # what is here now stays: the collector need not look at it again
    with metrics.serving(settings):
        Server(config, app).run()
    return 0


def _unsafe(settings: Settings) -> str | None:
    """Why this Redis must not be used. One that is not there yet is not refused: `/readyz` looks again."""
    with connect(settings, REDIS_TIMEOUT) as redis:
        try:
            require_no_eviction(redis)
        except EvictionError as error:
            return str(error)
        except RedisError as error:
            log.warning("redis_away", error=type(error).__name__)
    return None


def configure_logging() -> None:
    """One JSON object a line on standard error, for our own log and the libraries' warnings."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
