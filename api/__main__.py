"""`python -m api`: serve the API where `STOCKADE_LISTEN` says, until SIGTERM or SIGINT."""

import gc
import logging
import sys

import structlog
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.connection import Connection
from jobs.settings import Settings, SettingsError

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
    """Serve; the exit status is 2 when the settings are wrong."""
    configure_logging()
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        log.error("bad_settings", reason=str(error))
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
    log.info("serving", listen=settings.listen, redis=settings.redis_shown)
    gc.freeze()  # what is here now stays: the collector need not look at it again
    Server(config, app).run()
    return 0


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
