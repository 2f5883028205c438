"""Tenant bounds: those of a project and its organisation, highest first."""

import pytest
from pydantic import ValidationError
from redis import Redis

from jobs.tenant_bounds import TenantBounds


@pytest.fixture
def project(redis: Redis) -> str:
    redis.hset("stockade:tenant:t1", mapping={"name": "acme", "parent": "", "bounds": '{"images":["py:*"]}'})
    redis.hset("stockade:tenant:t2", mapping={"name": "acme/a", "parent": "t1", "bounds": '{"retention":60}'})
    return "t2"


def test_the_organisation_is_above_the_project(redis: Redis, project: str) -> None:
    """Both bound, under the names that people know them by."""
    [(above, images), (below, retention)] = TenantBounds(redis).scopes(project)
    assert (above, images.images) == ("organisation acme", ("py:*",))
    assert (below, retention.retention) == ("project acme/a", 60)


def test_what_bounds_nothing_is_no_scope(redis: Redis) -> None:
    """A tenant without bounds, or that is not there, has none."""
    redis.hset("stockade:tenant:t3", mapping={"name": "x/y", "parent": "t4", "bounds": "{}"})
    assert TenantBounds(redis).scopes("t3") == ()
    assert TenantBounds(redis).scopes("tenant_of_nobody") == ()


def test_a_change_holds_within_moments(redis: Redis, project: str) -> None:
    """Bounds are believed for a few seconds and then read again."""
    short, long = TenantBounds(redis, believed=0.0), TenantBounds(redis)
    before = long.scopes(project)
    redis.hset("stockade:tenant:t2", "bounds", '{"retention":30}')
    assert short.scopes(project)[1][1].retention == 30
    assert long.scopes(project) is before


@pytest.mark.parametrize("bounds", ['{"retentoin":60}', "[", '{"retention":-1}'])
def test_bounds_that_cannot_be_read_are_an_error(redis: Redis, project: str, bounds: str) -> None:
    """What is no bounds is never the same as no bounds."""
    redis.hset("stockade:tenant:t2", "bounds", bounds)
    with pytest.raises(ValidationError):
        TenantBounds(redis).scopes(project)
