"""How tests of a hostile registry go: change one answer of a good one, try to pull, look at what came of it."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.registries.hostile import Answer, Asked, Handler, Hostile, body_of
from worker.images.remote.faults import RegistryError
from worker.images.remote.pull import Pulled, Sources, pull
from worker.images.remote.reference import parse_reference
from worker.images.remote.sink import LayoutSink

MANIFEST = "/v2/x/manifests/latest"

Change = Callable[[Handler, Asked, bytes], None]
"""An answer, given the true body."""


def layer_of(hostile: Hostile) -> str:
    """The path of the layer."""
    manifest = json.loads(body_of(hostile.routes[MANIFEST]))
    return f"/v2/x/blobs/{manifest['layers'][0]['digest']}"


def changed(hostile: Hostile, path: str, change: Change) -> None:
    """Have `change` answer, given the true body."""
    body = body_of(hostile.routes[path])
    hostile.routes[path] = lambda handler, asked: change(handler, asked, body)


def attempt(image: str, sources: Sources, landing: Path) -> Pulled:
    """Pull it."""
    return pull(parse_reference(image), LayoutSink(landing), lambda _: None, sources)


def refusal(image: str, sources: Sources, landing: Path) -> RegistryError:
    """The error that pulling it gives; nothing has landed."""
    started = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        attempt(image, sources, landing)
    assert not [path for path in landing.rglob("*") if path.is_file()]
    assert time.monotonic() - started < 60
    return caught.value


def redirect(location: str) -> Answer:
    return lambda handler, asked: handler.answer(status=307, Location=location)


def challenge(hostile: Hostile, path: str, header: str) -> None:
    """Have a path ask for authorization, and be content with any."""
    good = hostile.routes[path]

    def answer(handler: Handler, asked: Asked) -> None:
        if "authorization" in asked.headers:
            good(handler, asked)
        else:
            handler.answer(status=401, WWW_Authenticate=header)

    hostile.routes[path] = answer
