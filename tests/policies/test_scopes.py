"""Scopes: a lower one only narrows, and every value tells which of them narrowed it."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.bounds import Bounds
from policies.images import matches
from policies.limits import LimitsRequest
from policies.loader import load_policies
from policies.policy import Policy
from policies.scopes import Rule, ScopeError, Scopes, Source, effective, fold
from tests.policies.strategies import Machine, bounds, policies, scopes

DEFAULT = load_policies()["default"]
STRICT = load_policies()["strict"]


def bound(**values: Any) -> Bounds:
    """Bounds of these fields."""
    return Bounds.model_validate(values)


def folded(policy: Policy, scopes: Scopes) -> Policy | None:
    """What scopes leave of a policy; None when they leave nothing."""
    try:
        return effective(policy, scopes)
    except ScopeError:
        return None


def test_without_bounds_a_policy_stays_as_it_is() -> None:
    """No scope, or scopes that bound nothing, change neither content nor digest."""
    for policy in load_policies().values():
        assert effective(policy, []) is policy
        assert effective(policy, [("platform", Bounds()), ("project x", Bounds())]).digest == policy.digest


def test_the_lowest_bound_holds_and_is_named() -> None:
    """Of several ceilings the lowest is in force; the default goes down with it, and both say by whom."""
    found = fold(
        DEFAULT,
        [
            ("platform", bound(ceilings={"memory": "1GiB"}, retention="1h")),
            ("organisation acme", bound(ceilings={"memory": "128MiB", "pids": 1000})),
            ("project acme/a", bound(ceilings={"memory": "512MiB"})),
        ],
    )
    assert found.policy.ceilings.memory == found.policy.defaults.memory == 128 << 20
    assert (found.policy.ceilings.pids, found.policy.retention) == (512, 3600)
    by = Source("organisation acme", Rule.CLAMPED)
    assert found.clamped == {
        "ceilings.memory": by,
        "defaults.memory": by,
        "retention": Source("platform", Rule.CLAMPED),
    }


def test_every_kind_of_value_is_narrowed() -> None:
    """Profiles, capabilities, images, pools, priority, floor and counts: the narrower of both is in force."""
    wide = Policy.model_validate(
        DEFAULT.model_dump() | {"images": ["host", "py:*"], "pools": ["a", "b"], "syscalls": "debug"}
    )
    found = effective(
        wide,
        [
            (
                "platform",
                bound(
                    images=["py:3.*", "js"],
                    pools=["b", "c"],
                    syscalls="default",
                    network="none",
                    capabilities=["KILL", "SYS_PTRACE"],
                    priority_max="low",
                    max_queue_time="1h",
                    isolation={"cgroup": "v2"},
                    **dict.fromkeys(("steps_max", "files_max", "outputs_max"), 2),
                    **dict.fromkeys(("files_bytes", "outputs_bytes"), "1kB"),
                ),
            )
        ],
    )
    assert (found.images, found.pools, found.syscalls) == (("py:3.*",), ("b",), "default")
    assert (found.capabilities, found.priority_max, found.max_queue_time) == (("KILL",), "low", 3600)
    assert found.isolation.model_dump() == {"cgroup": "v2", "kernel": "5.12", "image": "any"}
    assert (found.steps_max, found.files_max, found.outputs_max) == (2, 2, 2)
    assert (found.files_bytes, found.outputs_bytes) == (1000, 1000)


def test_every_bound_bounds() -> None:
    """No field of the bounds is without effect: each is used, so that none can be forgotten."""
    narrow: dict[str, Any] = {
        "policies": ["other"],
        "ceilings": {"pids": 1},
        "images": ["other"],
        "image_digest": "required",
        "syscalls": "strict",
        "capabilities": [],
        "pools": ["other"],
        "priority_max": "low",
        "max_queue_time": 1,
        "isolation": {"cgroup": "v2"},
        "steps_max": 1,
        "files_max": 0,
        "files_bytes": 0,
        "outputs_max": 0,
        "outputs_bytes": 0,
        "retention": 1,
    }
    assert set(narrow) | {"network"} == set(Bounds.model_fields)  # there is one network mode only
    for field, value in narrow.items():
        assert folded(DEFAULT, [("platform", bound(**{field: value}))]) != DEFAULT, field


def test_what_leaves_nothing_is_an_error_with_everything_at_once() -> None:
    """Images, pools or the policy itself ruled out: each is told with the scope that did it."""
    with pytest.raises(ScopeError) as caught:
        effective(
            DEFAULT,
            [
                ("platform", bound(images=["py"], pools=["big"])),
                ("organisation acme", bound(policies=["strict"])),
            ],
        )
    assert [(found.scope, found.field) for found in caught.value.found] == [
        ("platform", "images"),
        ("platform", "pools"),
        ("organisation acme", "policies"),
    ]
    with pytest.raises(ScopeError, match="isolation floor"):
        effective(DEFAULT, [("platform", bound(isolation={"image": "oci"}))])


def at_most(narrow: Policy, wide: Policy) -> bool:
    """Whether the first policy allows nothing that the second does not."""
    named = ["host", "py", "py:3.11", "js", "jsx", "py@sha256:aa", "py:1", "p1", "xy:3.11"]
    hosts = [
        Machine(cgroup=cgroup, kernel=kernel)
        for cgroup in ("v1", "v2")
        for kernel in ("5.15", "6.5", "6.18.3")
    ]
    counts = ("steps_max", "files_max", "files_bytes", "outputs_max", "outputs_bytes", "retention")
    return (
        all(value <= getattr(wide.ceilings, name) for name, value in narrow.ceilings)
        and all(value <= getattr(wide.defaults, name) for name, value in narrow.defaults)
        and all(value <= getattr(narrow.ceilings, name) for name, value in narrow.defaults)
        and all(wide.allows_image(image) for image in named if narrow.allows_image(image))
        and set(narrow.capabilities) <= set(wide.capabilities)
        and set(narrow.pools) <= set(wide.pools)
        and narrow.syscalls.rank <= wide.syscalls.rank
        and narrow.priority_max.rank >= wide.priority_max.rank
        and all(getattr(narrow, name) <= getattr(wide, name) for name in (*counts, "max_queue_time"))
        and all(any(narrow.isolation.shortfalls(h)) for h in hosts if any(wide.isolation.shortfalls(h)))
        and (narrow.user, narrow.environment, narrow.name) == (wide.user, wide.environment, wide.name)
    )


@given(policies(), scopes)
def test_folding_never_widens(policy: Policy, scopes: Scopes) -> None:
    """Whatever the scopes: the effective policy allows nothing that the policy does not, and is valid."""
    found = folded(policy, scopes)
    if found is not None:
        assert at_most(found, policy)
        assert Policy.model_validate_json(found.model_dump_json()) == found


@given(policies(), scopes, bounds)
def test_a_further_scope_only_narrows(policy: Policy, scopes: Scopes, further: Bounds) -> None:
    """A scope more allows at most what was allowed without it."""
    before, after = folded(policy, scopes), folded(policy, [*scopes, ("project", further)])
    if after is not None:
        assert before is not None
        assert at_most(after, before)


@given(policies(), scopes, st.randoms())
def test_neither_order_nor_repetition_matters(policy: Policy, scopes: Scopes, chance: random.Random) -> None:
    """Scopes in any order, or twice, leave the same: content and digest."""
    found = folded(policy, scopes)
    shuffled = chance.sample(list(scopes), len(scopes))
    for others in (shuffled, [*scopes, *shuffled]):
        again = folded(policy, others)
        assert (again is None) == (found is None)
        assert again is None or found is None or again.digest == found.digest


@given(policies(), scopes)
def test_an_effective_policy_is_within_each_of_its_scopes(policy: Policy, scopes: Scopes) -> None:
    """What came out of folding is within the bounds that went in; a policy that is over one is not."""
    found = folded(policy, scopes)
    for scope, each in scopes:
        if found is not None:
            assert fold(found, [(scope, each)]).clamped == {}
    over = fold(DEFAULT, [("platform", Bounds(ceilings=LimitsRequest(pids=8)))])
    assert sorted(over.clamped) == ["ceilings.pids", "defaults.pids"]


@given(policies(), scopes)
def test_what_was_narrowed_is_told_with_its_scope(policy: Policy, scopes: Scopes) -> None:
    """Each value that differs from the policy's own names a scope that bounds it; the others name none."""
    try:
        found = fold(policy, scopes)
    except ScopeError:
        return
    for limits in ("defaults", "ceilings"):
        for name, value in getattr(found.policy, limits):
            source = found.clamped.get(f"{limits}.{name}")
            assert (source is not None) == (value != getattr(getattr(policy, limits), name))
            if source is not None:
                mine = [b.ceilings for scope, b in scopes if scope == source.scope and b.ceilings is not None]
                assert value in [getattr(each, name) for each in mine]
    assert all(
        matches("*", source.scope) and source.rule is Rule.CLAMPED for source in found.clamped.values()
    )
