"""The routes of webhooks: made, seen, changed and deleted by their project alone; the secret is shown once."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

from api.webhooks import PAGE_MAX
from jobs import keys, tenants
from jobs.deliveries import Deliveries, Message
from jobs.job import Tenant
from jobs.keys import Scope
from jobs.settings import Settings
from jobs.webhooks import WEBHOOKS_MAX, Webhooks

URL = "https://hooks.example.com/stockade"


@pytest.fixture
def hook(client: httpx.Client) -> dict[str, Any]:
    """A webhook that was just made, with its secret."""
    answer = client.post("/v1/webhooks", json={"url": URL})
    assert answer.status_code == 201
    made: dict[str, Any] = answer.json()
    return made


def address(hook: dict[str, Any], rest: str = "") -> str:
    """The address of a webhook, and what follows."""
    return f"/v1/webhooks/{hook['webhook']['id']}{rest}"


def test_a_webhook_is_made_and_seen(client: httpx.Client, hook: dict[str, Any]) -> None:
    """It is told of the ends of jobs unless something else is asked for."""
    assert client.get(address(hook)).json() == hook["webhook"]
    assert client.get("/v1/webhooks").json() == {"webhooks": [hook["webhook"]]}
    about = hook["webhook"]
    assert (about["url"], about["events"], about["state"], about["reason"]) == (
        URL,
        ["job.finished"],
        "active",
        None,
    )
    given = {"url": URL, "events": ["job.deleted", "job.queued", "job.deleted"], "description": "mine"}
    answer = client.post("/v1/webhooks", json=given)
    assert answer.headers["location"] == f"/v1/webhooks/{answer.json()['webhook']['id']}"
    assert answer.json()["webhook"]["events"] == ["job.queued", "job.deleted"]


def test_the_secret_is_shown_once(
    client: httpx.Client, hook: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither later answers nor the log have it; a rotation shows the new one, once."""
    secret = hook["secret"]
    assert secret.startswith("whsec_")
    new = client.post(address(hook, ":rotate_secret")).json()["secret"]
    assert new.startswith("whsec_") and new != secret
    client.post(address(hook, ":test"))
    shown = "".join(
        client.get(each).text for each in ("/v1/webhooks", address(hook), address(hook, "/deliveries"))
    )
    shown += client.patch(address(hook), json={"description": "x"}).text
    shown += "".join(capsys.readouterr())
    for each in (secret, new):
        assert each.removeprefix("whsec_") not in shown


def test_a_webhook_is_changed(client: httpx.Client, hook: dict[str, Any]) -> None:
    """What is given changes and the rest stays; it can be disabled and resumed."""
    changed = client.patch(address(hook), json={"events": ["job.running"], "state": "disabled"}).json()
    assert changed == hook["webhook"] | {"events": ["job.running"], "state": "disabled"}
    assert client.post(address(hook, ":test")).json()["detail"].startswith("The webhook is disabled")
    changed = client.patch(address(hook), json={"url": URL + "/2", "state": "active"}).json()
    assert (changed["url"], changed["events"], changed["state"]) == (URL + "/2", ["job.running"], "active")
    assert client.post(address(hook, ":test")).status_code == 202


def test_a_deleted_webhook_is_gone_with_its_log(
    client: httpx.Client, hook: dict[str, Any], redis_client: redis.Redis
) -> None:
    """No key that held anything of it is left."""
    client.post(address(hook, ":test"))
    assert client.delete(address(hook)).json()["id"] == hook["webhook"]["id"]
    assert client.delete(address(hook)).status_code == 404
    assert client.get(address(hook)).status_code == 404
    assert client.get("/v1/webhooks").json() == {"webhooks": []}
    left = {key.decode() for key in redis_client.keys("stockade:*")}
    assert not {key for key in left if "webhook" in key or "delivery" in key} - {"stockade:webhook_sequence"}


def test_changes_need_the_scope_admin(
    served: Any, hook: dict[str, Any], redis_client: redis.Redis, tenant: Tenant
) -> None:
    """A key that may only read sees webhooks and deliveries, and changes, tests and redelivers nothing."""
    with served.client(keys.create_key(redis_client, tenant, scopes=[Scope.READ])) as reader:
        for each in ("/v1/webhooks", address(hook), address(hook, "/deliveries")):
            assert reader.get(each).status_code == 200
        refused = [
            reader.post("/v1/webhooks"),
            reader.patch(address(hook)),
            reader.delete(address(hook)),
            reader.post(address(hook, ":rotate_secret")),
            reader.post(address(hook, ":test")),
            reader.post(address(hook, "/deliveries/msg_1:redeliver")),
        ]
    assert {each.status_code for each in refused} == {403}
    with served.client(keys.create_key(redis_client, tenant, scopes=[Scope.ADMIN])) as admin:
        assert admin.get("/v1/webhooks").status_code == 403


def test_who_may_not_read_has_nothing_told_to_an_address_of_its_own(
    served: Any, client: httpx.Client, hook: dict[str, Any], redis_client: redis.Redis, tenant: Tenant
) -> None:
    """A key with `admin` alone makes, aims, tests and redelivers nothing, and is told which scope it lacks."""
    delivery = client.post(address(hook, ":test")).json()["id"]
    with served.client(keys.create_key(redis_client, tenant, scopes=[Scope.ADMIN])) as admin:
        refused = [
            admin.post("/v1/webhooks", json={"url": URL}),
            admin.patch(address(hook), json={"url": URL + "/mine"}),
            admin.post(address(hook, ":test")),
            admin.post(address(hook, f"/deliveries/{delivery}:redeliver")),
        ]
        assert {each.status_code for each in refused} == {403}
        assert {each.json()["detail"] for each in refused} == {"This API key lacks the scope `read`."}
        assert client.get("/v1/webhooks").json()["webhooks"][0]["url"] == URL
        assert admin.delete(address(hook)).status_code == 200


def test_another_project_sees_nothing(
    served: Any, client: httpx.Client, hook: dict[str, Any], redis_client: redis.Redis
) -> None:
    """Every route answers it as if there were no such webhook, in the same words, and changes nothing."""
    delivery = client.post(address(hook, ":test")).json()["id"]
    requests: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("PATCH", "", {"state": "disabled"}),
        ("DELETE", "", None),
        ("POST", ":rotate_secret", None),
        ("POST", ":test", None),
        ("GET", "/deliveries", None),
        ("POST", f"/deliveries/{delivery}:redeliver", None),
    ]
    theirs_key = keys.create_key(redis_client, tenants.create_tenant(redis_client, "second"), scopes=Scope)
    with served.client(theirs_key) as other:
        assert other.get("/v1/webhooks").json() == {"webhooks": []}
        for method, rest, body in requests:
            theirs = other.request(method, address(hook, rest), json=body)
            nothing = other.request(method, f"/v1/webhooks/wh_{'0' * 24}{rest}", json=body)
            strange = other.request(method, f"/v1/webhooks/wh%00{rest}", json=body)
            assert theirs.status_code == nothing.status_code == strange.status_code == 404
            assert theirs.json() == nothing.json() == strange.json()
    assert client.get(address(hook)).json()["state"] == "active"


def test_a_delivery_of_another_webhook_is_not_found(client: httpx.Client, hook: dict[str, Any]) -> None:
    """A delivery is found below its own webhook alone."""
    other = client.post("/v1/webhooks", json={"url": URL}).json()
    delivery = client.post(address(other, ":test")).json()["id"]
    assert client.post(address(hook, f"/deliveries/{delivery}:redeliver")).status_code == 404
    assert client.post(address(other, f"/deliveries/{delivery}:redeliver")).status_code == 202


def test_a_project_has_so_many_webhooks_and_no_more(client: httpx.Client) -> None:
    """One more is a conflict, until one is deleted."""
    made = [client.post("/v1/webhooks", json={"url": URL}) for _ in range(WEBHOOKS_MAX)]
    assert {each.status_code for each in made} == {201}
    refused = client.post("/v1/webhooks", json={"url": URL})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:stockade:problem:conflict")
    client.delete(address(made[0].json()))
    assert client.post("/v1/webhooks", json={"url": URL}).status_code == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "http://127.0.0.1/"}, "url"),
        ({"url": "http://[::ffff:169.254.169.254]/"}, "url"),
        ({"url": "http://2130706433/"}, "url"),
        ({"url": "https://user:hunter2@h.example/"}, "url"),
        ({"url": "ftp://h.example/"}, "url"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "events": ["job.exploded"]}, "events[0]"),
        ({"url": URL, "description": "a\nb"}, "description"),
        ({"url": URL, "description": "x" * 201}, "description"),
        ({"url": URL, "secret": "whsec_mine"}, "secret"),
    ],
)
def test_a_wrong_webhook_is_refused_by_field(client: httpx.Client, body: dict[str, Any], field: str) -> None:
    """The answer names the field and says what is allowed; nothing is made."""
    answer = client.post("/v1/webhooks", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert error["allowed"]
    assert client.get("/v1/webhooks").json() == {"webhooks": []}


@pytest.mark.parametrize("body", [{}, {"url": "http://10.0.0.1/"}, {"state": "paused"}, {"secret": "x"}])
def test_a_wrong_change_is_refused(client: httpx.Client, hook: dict[str, Any], body: dict[str, Any]) -> None:
    """Nothing of it is done."""
    assert client.patch(address(hook), json=body).status_code == 422
    assert client.get(address(hook)).json() == hook["webhook"]


def test_deliveries_are_paged_and_filtered(
    client: httpx.Client, hook: dict[str, Any], redis_client: redis.Redis, tenant: Tenant
) -> None:
    """The latest first, each once over all pages, in one state when that is asked for."""
    Webhooks(redis_client).change(
        hook["webhook"]["id"], tenant.id, {"url": "http://8.8.8.8:1/"}
    )  # fails at once
    store = Deliveries(redis_client)
    webhook = hook["webhook"]["id"]
    for number in range(7):
        store.create(Message(webhook, f"msg_{number}", "job.finished", f"job_{number}", b"{}"))
    seen, cursor = [], None
    while True:
        query = {"limit": 3} | ({"cursor": cursor} if cursor else {})
        page = client.get(address(hook, "/deliveries"), params=query).json()
        assert len(page["deliveries"]) <= 3
        seen += [each["job"] for each in page["deliveries"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert seen == [f"job_{number}" for number in reversed(range(7))]
    listed = client.get(address(hook, "/deliveries"), params={"state": "pending"}).json()["deliveries"]
    assert len(listed) == 7
    assert client.get(address(hook, "/deliveries"), params={"state": "dead"}).json()["deliveries"] == []


@pytest.mark.parametrize("query", ["limit=0", f"limit={PAGE_MAX + 1}", "state=lost", "cursor=x", "cursor=-1"])
def test_a_wrong_query_is_refused(client: httpx.Client, hook: dict[str, Any], query: str) -> None:
    """With the parameter's name."""
    answer = client.get(address(hook, f"/deliveries?{query}"))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == query.partition("=")[0]


def test_where_the_operator_allows_it_an_internal_address_is_taken(
    serving: Callable[[Settings], Any], redis_url: str, key: str
) -> None:
    """STOCKADE_WEBHOOK_ALLOW names networks: they are taken, and others still refused."""
    served = serving(Settings(redis=redis_url, webhook_allow="10.1.0.0/16"))
    with served.client(key) as client:
        assert client.post("/v1/webhooks", json={"url": "http://10.1.2.3:8080/"}).status_code == 201
        assert client.post("/v1/webhooks", json={"url": "http://10.2.2.3:8080/"}).status_code == 422
