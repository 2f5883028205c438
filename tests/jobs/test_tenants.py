"""Tenants are a tree of organisations and projects; every change of it is whole."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from jobs import keys, tenants
from jobs.budgets import Budgets
from jobs.job import Tenant


@pytest.fixture
def project(redis: Redis) -> Tenant:
    """The project acme/default."""
    return tenants.create_tenant(redis, "acme")


def names(redis: Redis) -> list[str]:
    """The names of all tenants."""
    return [tenant.name for tenant in tenants.list_tenants(redis)]


def test_organisation_begins_with_a_project(redis: Redis, project: Tenant) -> None:
    """One call makes both; the organisation's name means its project where a project is wanted."""
    organisation = tenants.find_tenant(redis, "acme")
    assert organisation is not None
    assert (project.name, project.parent, organisation.parent) == ("acme/default", organisation.id, None)
    assert tenants.find_project(redis, "acme") == project
    assert tenants.find_project(redis, "acme/default") == project
    assert tenants.get_tenant(redis, project.id) == project
    assert tenants.find_tenant(redis, "nobody") is None
    assert tenants.get_tenant(redis, "tenant_0") is None


def test_projects_stand_below_their_organisation(redis: Redis, project: Tenant) -> None:
    """Further projects belong to an organisation that is there; all are listed by name, the tree's top first."""
    tenants.create_tenant(redis, "acme-2")
    grader = tenants.create_tenant(redis, "acme/grader")
    assert grader.parent == project.parent
    assert names(redis) == ["acme", "acme/default", "acme/grader", "acme-2", "acme-2/default"]
    with pytest.raises(tenants.TenantError, match="stockade tenant create nobody"):
        tenants.create_tenant(redis, "nobody/grader")


@pytest.mark.parametrize("name", ["acme", "acme/default"])
def test_name_stands_once(redis: Redis, project: Tenant, name: str) -> None:
    """Two tenants of one name cannot be made; the attempt changes nothing."""
    before = {key: redis.dump(key) for key in redis.scan_iter()}
    with pytest.raises(tenants.TenantError, match="already"):
        tenants.create_tenant(redis, name)
    assert {key: redis.dump(key) for key in redis.scan_iter()} == before


def test_racing_creations_make_one(redis: Redis) -> None:
    """Of many that make one name at once exactly one succeeds, and nothing is left of the others."""

    def create(_: int) -> bool:
        try:
            tenants.create_tenant(redis, "acme")
        except tenants.TenantError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(40))) == 1
    assert len(list(redis.scan_iter("stockade:tenant:*"))) == 2


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "é", "a\n", "-a", "x" * 65, "a/", "/a", "a/b/c", "a/ b", "a//b", "a/../b"],
)
def test_odd_names_are_refused(redis: Redis, name: str) -> None:
    """A name that would not print well is no name."""
    with pytest.raises(tenants.TenantError, match="no name"):
        tenants.create_tenant(redis, name)
    assert list(redis.scan_iter()) == []


def test_weight_budgets_and_bounds_are_kept(redis: Redis, project: Tenant) -> None:
    """What is set is found again, on either level; the rest stays; none takes a budget away."""
    organisation = tenants.find_tenant(redis, "acme")
    assert organisation is not None
    for tenant in (project, organisation):
        tenants.set_tenant(
            redis,
            tenant,
            weight=2.5,
            budgets={"concurrent_jobs": 4, "cpu_seconds_per_hour": 1e6, "artifact_bytes": "10GiB"},  # type: ignore[dict-item]
            bounds='{"pools": ["default"]}',
        )
        changed = tenants.set_tenant(redis, tenant, budgets={"concurrent_jobs": None, "queued_jobs": 0})
        found = tenants.get_tenant(redis, tenant.id)
        assert found is not None
        assert (found.weight, found.bounds) == (2.5, '{"pools":["default"]}')
        assert found.budgets == Budgets(cpu_seconds_per_hour=1e6, artifact_bytes=10 << 30, queued_jobs=0)
        assert changed.budgets.concurrent_jobs is None


def test_budgets_are_plain_numbers_for_lua(redis: Redis, project: Tenant) -> None:
    """The scripts that charge and release read each budget and the weight with tonumber."""
    tenants.set_tenant(redis, project, weight=0.5, budgets={"artifact_bytes": 5, "cpu_seconds_per_day": 1e17})
    read = """local numbers = {}
        for n, field in ipairs(ARGV) do numbers[n] = tostring(tonumber(redis.call('HGET', KEYS[1], field))) end
        return numbers"""
    fields = ("weight", "artifact_bytes", "cpu_seconds_per_day")
    assert redis.eval(read, 1, f"stockade:tenant:{project.id}", *fields) == [b"0.5", b"5", b"1e+17"]


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 0},
        {"weight": -1},
        {"weight": float("nan")},
        {"weight": 1e9},
        {"budgets": {"concurrent_jobs": -1}},
        {"budgets": {"concurrent_jobs": 1.5}},
        {"budgets": {"concurrent_jobs": True}},
        {"budgets": {"submits_per_minute": 0}},
        {"budgets": {"cpu_seconds_per_day": float("inf")}},
        {"budgets": {"artifact_bytes": "much"}},
        {"budgets": {"weight": 3}},
        {"budgets": {"parent": None, "id": 3}},
        {"bounds": "[]"},
        {"bounds": '{"memory": 1}'},
        {"bounds": '{"retention": -1}'},
        {"bounds": "{"},
        {"bounds": '"x"'},
    ],
)
def test_what_cannot_be_meant_is_refused(redis: Redis, project: Tenant, change: dict[str, object]) -> None:
    """A refused change leaves the tenant as it was."""
    with pytest.raises(tenants.TenantError):
        tenants.set_tenant(redis, project, **change)  # type: ignore[arg-type]
    assert tenants.get_tenant(redis, project.id) == project


def test_a_tenant_that_is_gone_is_not_revived(redis: Redis, project: Tenant) -> None:
    """A change that comes after the removal writes nothing."""
    tenants.remove_tenant(redis, project)
    with pytest.raises(tenants.TenantError, match="any more"):
        tenants.set_tenant(redis, project, weight=2)
    with pytest.raises(tenants.TenantError, match="any more"):
        tenants.remove_tenant(redis, project)
    assert list(redis.scan_iter("stockade:tenant:*")) == [f"stockade:tenant:{project.parent}".encode()]


def test_removal_takes_everything_or_nothing(redis: Redis, project: Tenant) -> None:
    """An organisation goes with its projects and keys when that is said, and then nothing of them is left."""
    organisation = tenants.find_tenant(redis, "acme")
    assert organisation is not None
    grader = tenants.create_tenant(redis, "acme/grader")
    key = keys.create_key(redis, grader)
    before = {name: redis.dump(name) for name in redis.scan_iter()}
    with pytest.raises(tenants.TenantError, match="acme/grader has API keys"):
        tenants.remove_tenant(redis, grader)
    with pytest.raises(tenants.TenantError, match="the project acme/grader"):
        tenants.remove_tenant(redis, organisation)
    assert {name: redis.dump(name) for name in redis.scan_iter()} == before
    tenants.remove_tenant(redis, organisation, force=True)
    assert keys.authenticate(redis, key) is None
    assert list(redis.scan_iter()) == []


@pytest.mark.parametrize("state", ["queued", "running"])
def test_tenant_with_unfinished_jobs_stays(redis: Redis, project: Tenant, state: str) -> None:
    """Not even force removes a tenant, or its organisation, while a job of it waits or runs."""
    organisation = tenants.find_tenant(redis, "acme")
    assert organisation is not None
    redis.hset(f"stockade:load:{project.id}", state, 1)
    for tenant in (project, organisation):
        with pytest.raises(tenants.TenantError, match="acme/default has jobs"):
            tenants.remove_tenant(redis, tenant, force=True)
    assert names(redis) == ["acme", "acme/default"]
    assert getattr(tenants.loads(redis, [project])[0], state) == 1
