"""Fixtures of the tests about images and registries."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.packages import need
from tests.registries.hostile import Hostile
from tests.registries.oci import Layout, random_layers
from tests.registries.running import PROGRAMS, Running, TokenService, htpasswd
from worker.images.remote.credentials import Credential
from worker.images.remote.pull import Sources
from worker.images.remote.reference import parse_reference
from worker.images.remote.registries import Registries
from worker.images.remote.transport import Patience

HURRIED = Patience(connect=10, silence=10, total=30, slowest=1 << 20, tries=3, pause=0.01)
"""For registries of tests, which are near."""

Ask = Callable[..., Sources]


@pytest.fixture
def sources() -> Ask:
    """Makes the sources of an image: by default without credentials and without anything said by the operator."""

    def make(
        image: str, said: object = None, patience: Patience = HURRIED, **credentials: Credential
    ) -> Sources:
        reference = parse_reference(image)
        known = {reference.registry: credentials["credential"]} if credentials else {}
        endpoints = Registries.model_validate(said or {}).endpoints(reference, known)
        return Sources(endpoints=endpoints, patience=patience)

    return make


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry that lets everyone in."""
    need(PROGRAMS)
    with Running(tmp_path_factory.mktemp("registry")).started() as running:
        yield running


@pytest.fixture(scope="session")
def basic_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry with basic authentication."""
    need(PROGRAMS)
    directory = tmp_path_factory.mktemp("basic")
    with Running(directory, auth=htpasswd(directory)).started() as running:
        yield running


@pytest.fixture(scope="session")
def token_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenService]:
    """A token service."""
    need(PROGRAMS)
    service = TokenService(tmp_path_factory.mktemp("tokens"))
    yield service
    service.stop()


@pytest.fixture(scope="session")
def token_registry(
    token_service: TokenService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A registry that trusts that token service."""
    with Running(tmp_path_factory.mktemp("token-registry"), auth=token_service.auth).started() as running:
        yield running


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    """An empty directory to pull into."""
    directory = tmp_path / "landing"
    directory.mkdir()
    return directory


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    """A registry whose answers the test writes."""
    server = Hostile()
    yield server
    server.stop()


@pytest.fixture
def other() -> Iterator[Hostile]:
    """Another host, where a registry might lead us."""
    server = Hostile()
    yield server
    server.stop()


@pytest.fixture
def image(hostile: Hostile) -> str:
    """An image of one layer of 300 kB, served as a good registry does until a test changes an answer."""
    layout = Layout()
    return hostile.serve(layout, layout.image(random_layers(1, 300_000), "none"))
