"""Policies over HTTP."""

import httpx
import pytest

from policies.loader import load_policies


def test_all_policies_are_listed(client: httpx.Client) -> None:
    """The built-in ones, each with the digest that jobs name."""
    listed = client.get("/v1/policies").json()["policies"]
    digests = {policy.name: policy.digest for policy in load_policies().values()}
    assert {each["policy"]["name"]: each["digest"] for each in listed} == digests


def test_one_policy_is_as_in_the_list(client: httpx.Client) -> None:
    """By its name, the same."""
    for each in client.get("/v1/policies").json()["policies"]:
        assert client.get(f"/v1/policies/{each['policy']['name']}").json() == each


@pytest.mark.parametrize("name", ["nothing", "Default", "..", "default%00"])
def test_an_unknown_policy_is_404(client: httpx.Client, name: str) -> None:
    """Names are compared exactly."""
    assert client.get(f"/v1/policies/{name}").status_code == 404
