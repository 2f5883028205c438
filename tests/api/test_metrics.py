"""Metrics: everything about the installation, for the operator, and nothing about a tenant."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from structlog.testing import capture_logs

from api import metrics
from jobs.job import Tenant
from jobs.measures import MEASURES, PREFIX
from jobs.settings import Settings
from jobs.workers import Workers
from tests.dispatch import worker_status

AWAY = "unix:///nonexistent/redis.sock"


@pytest.fixture
def scraper(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the listener for metrics."""
    with metrics.serving(settings.model_copy(update={"metrics": "127.0.0.1:0"})) as port:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)
        yield client
        client.close()


def until(condition: Callable[[], float]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def parsed(text: str) -> dict[str, Metric]:
    """The metrics of a scrape, by name; the parser refuses what is not well-formed."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(client: httpx.Client, sample: str, **labels: str) -> float:
    """One number of a scrape; 0 when it is not there."""
    families = parsed(client.get("/metrics").text).values()
    found = [
        each.value
        for family in families
        for each in family.samples
        if each.name == PREFIX + sample and labels.items() <= each.labels.items()
    ]
    return sum(found)


def test_tenants_cannot_read_them(client: httpx.Client, stranger: httpx.Client) -> None:
    """The public listener knows no /metrics, with a key or without; the description does not name it."""
    assert client.get("/metrics").status_code == 404
    assert stranger.get("/metrics").status_code == 404
    assert "/metrics" not in stranger.get("/openapi.json").text


def test_the_listener_serves_nothing_else(scraper: httpx.Client) -> None:
    """No other address and no other method."""
    assert scraper.get("/").status_code == 404
    assert scraper.get("/v1/jobs/job_1").status_code == 404
    assert scraper.post("/metrics").status_code == 501


def test_a_scrape_shows_every_measure(scraper: httpx.Client) -> None:
    """Each one is there with its kind and its help, well-formed, also in an installation that did nothing yet."""
    answer = scraper.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = parsed(answer.text)
    shown = {PREFIX + name.removesuffix("_total"): measure for name, measure in MEASURES.items()}
    assert set(shown) == set(families)
    for name, measure in shown.items():
        assert (families[name].type, families[name].documentation) == (measure.kind, measure.help)


def test_openmetrics_is_spoken_too(scraper: httpx.Client) -> None:
    """A scraper that asks for it gets it."""
    answer = scraper.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_requests_are_counted_by_route(client: httpx.Client, scraper: httpx.Client) -> None:
    """Method, pattern and status; an address that does not exist, or an odd method, makes no series of its own."""

    def count(**labels: str) -> float:
        return value(scraper, "http_requests_total", **labels)

    known = {"method": "GET", "route": "/v1/jobs/{job_id}", "status": "404"}
    before, timed = count(**known), value(scraper, "http_request_seconds_count", route="/v1/jobs/{job_id}")
    client.get("/v1/jobs/job_1")
    client.get("/secret/address")
    client.request("PROPFIND", "/v1/policies")
    until(lambda: count(method="other"))  # a request is counted after its answer has been sent
    assert count(**known) == before + 1
    assert value(scraper, "http_request_seconds_count", route="/v1/jobs/{job_id}") == timed + 1
    assert count(route="none", status="404") >= 1
    text = scraper.get("/metrics").text
    assert "secret" not in text
    assert "PROPFIND" not in text


def test_submissions_are_counted_by_result_and_rule(client: httpx.Client, scraper: httpx.Client) -> None:
    """Admitted, or by the kind of the problem; one refusal counts once for each rule, however many fields."""

    def submitted(result: str) -> float:
        return value(scraper, "jobs_submitted_total", result=result)

    def refused(problem: str, rule: str) -> float:
        return value(scraper, "refusals_total", problem=problem, rule=rule)

    over = {"argv": ["a"], "limits": {"memory": "1TiB"}}
    before = submitted("admitted"), submitted("not-admitted"), submitted("invalid-request")
    rules = refused("not-admitted", "steps.limits.memory"), refused("invalid-request", "unknown")
    client.post("/v1/jobs", json={"command": ["true"]})
    client.post("/v1/jobs", json={"steps": [over, over]})
    client.post("/v1/jobs", json={"command": ["true"], "my-secret-field": 1})
    assert (submitted("admitted"), submitted("not-admitted"), submitted("invalid-request")) == tuple(
        each + 1 for each in before
    )
    assert refused("not-admitted", "steps.limits.memory") == rules[0] + 1
    assert refused("invalid-request", "unknown") == rules[1] + 1
    assert "my-secret-field" not in scraper.get("/metrics").text


def test_workers_and_pools_are_looked_up(redis_client: Redis, scraper: httpx.Client) -> None:
    """Slots of all workers together, those in use, launchers that do not answer; jobs of each pool."""
    workers = Workers(redis_client)
    workers.heartbeat(worker_status("w1").model_copy(update={"running": 3}))
    workers.heartbeat(worker_status("w2", "gone").model_copy(update={"slots": 8, "running": 1}))
    redis_client.sadd("stockade:pools", "default")
    redis_client.zadd("stockade:leases:default", {"job_1": 1})
    names = ("workers", "workers_without_launcher", "slots", "slots_running")
    assert [value(scraper, name) for name in names] == [2, 1, 12, 4]
    assert value(scraper, "jobs_running", pool="default") == 1


def test_no_tenant_and_no_key_is_in_them(
    client: httpx.Client, scraper: httpx.Client, tenant: Tenant, key: str
) -> None:
    """Neither name nor id of whoever used the service, nor of its jobs and keys."""
    job = client.post("/v1/jobs", json={"command": ["true"], "labels": {"course": "algorithms"}}).json()
    client.get(f"/v1/jobs/{job['id']}")
    client.get(f"/v1/jobs/{key}")
    client.post("/v1/jobs", json={"command": ["a"], "policy": key, "image": tenant.name})
    until(lambda: value(scraper, "http_requests_total", route="/v1/jobs", status="422"))
    families = parsed(scraper.get("/metrics").text).values()
    labels = [label for family in families for each in family.samples for label in each.labels.values()]
    for secret in (tenant.id, tenant.name, key, *key.split("_", 2)[1:], job["id"], "algorithms"):
        assert not [label for label in labels if secret in label]


def test_without_redis_a_scrape_says_so(settings: Settings) -> None:
    """Prometheus gets an answer, with redis_up 0, and no number that could be taken for one."""
    changed = settings.model_copy(update={"metrics": "127.0.0.1:0", "redis": AWAY})
    with metrics.serving(changed) as port:
        families = parsed(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=30).text)
    assert set(families) == {PREFIX + "build_info", PREFIX + "redis_up"}
    assert families[PREFIX + "redis_up"].samples[0].value == 0


def test_a_taken_address_does_not_stop_the_service(settings: Settings) -> None:
    """It is an error in the log; the API starts all the same."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken, capture_logs() as logs:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with metrics.serving(settings.model_copy(update={"metrics": address})) as port:
            assert port is None
    assert [(line["event"], line["listen"]) for line in logs] == [("metrics_not_served", address)]


def test_they_can_be_switched_off(settings: Settings) -> None:
    """`off` is no listener."""
    with metrics.serving(settings.model_copy(update={"metrics": "off"})) as port:
        assert port is None


def test_a_scraper_that_says_nothing_is_left(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open connection without a request ends by itself, and keeps nobody else waiting."""
    monkeypatch.setattr(metrics._Handler, "timeout", 0.2)
    with metrics.serving(settings.model_copy(update={"metrics": "127.0.0.1:0"})) as port:
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
            assert httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == 200
            assert silent.recv(1) == b""


def test_what_a_process_counted_is_added_when_it_ends(
    settings: Settings, serving: Any, redis_client: Redis, key: str
) -> None:
    """Stopping an API process loses no count."""
    served = serving(settings)
    with served.client(key) as client:
        client.get("/v1/policies")
    served.stop()
    assert float(redis_client.hget("stockade:metrics", "http_requests_total|GET|/v1/policies|200")) >= 1
