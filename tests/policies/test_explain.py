"""Explain: says what admission does, with where each value comes from."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import JobSpec
from policies.admission import AdmissionError, admit
from policies.bounds import Bounds
from policies.document import Resolved
from policies.explain import explain, value_sources
from policies.loader import load
from policies.policy import Policy
from policies.scopes import Rule, ScopeError, Scopes, effective, fold
from tests.policies.strategies import Machine, policies, requests, scopes

machines = st.lists(
    st.builds(
        Machine, cgroup=st.sampled_from(["v1", "v2", None]), kernel=st.sampled_from(["6.1", "6.18", ""])
    ),
    max_size=2,
)


@given(requests(), policies(), scopes, st.booleans(), machines)
def test_explain_agrees_with_admission(
    request: JobSpec, policy: Policy, scopes: Scopes, host_image: bool, hosts: list[Machine]
) -> None:
    """Admitted exactly when admission admits; then with its very values, else with its very violations."""
    found = explain(request, Resolved(policy, {}, ()), scopes, host_image=host_image, hosts=hosts)
    try:
        narrow = effective(policy, scopes)
        admission = admit(request, narrow, host_image=host_image, hosts=hosts)
    except (ScopeError, AdmissionError) as error:
        assert not found.admitted
        assert found.violations == error.violations != ()
        return
    assert found.admitted
    assert found.violations == ()
    assert found.policy_digest == admission.policy_digest == narrow.digest
    values = {each.field: each.value for each in found.values}
    assert (values["pool"], values["priority"]) == (admission.pool, admission.priority)
    assert (values["max_queue_time"], values["retention"]) == (admission.max_queue_time, admission.retention)
    assert (values["syscalls"], values["images"]) == (narrow.syscalls, list(narrow.images))
    for explained, step in zip(found.steps, admission.steps, strict=True):
        assert explained.name == step.name
        assert {each.field: each.value for each in explained.limits} == step.limits.model_dump()
        assert {each.field: each.ceiling for each in explained.limits} == narrow.ceilings.model_dump()


@given(requests(), policies(), scopes)
def test_what_is_admitted_keeps_to_every_bound(request: JobSpec, policy: Policy, scopes: Scopes) -> None:
    """Nothing that is admitted under scopes is refused under the policy alone, or under fewer of the scopes."""
    try:
        admit(request, effective(policy, scopes))
    except (ScopeError, AdmissionError):
        return
    for end in range(len(scopes)):
        fewer = admit(request, effective(policy, scopes[:end]))
        assert fewer.pool in policy.pools


def test_every_value_says_who_set_it(tmp_path: Path) -> None:
    """The request, the policy, the policy that it extends, or the scope that narrowed it."""
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: default\ndefaults: {pids: 8}\nretention: 2h\n")
    resolved = load(tmp_path).resolved["mine"]
    above: Scopes = [
        ("platform", Bounds()),
        ("project acme/a", Bounds.model_validate({"ceilings": {"memory": "128MiB"}, "retention": "1h"})),
    ]
    request = JobSpec.model_validate(
        {"command": {"argv": ["a"], "limits": {"cpus": 2}}, "max_queue_time": 60}
    )
    found = explain(request, resolved, above)
    by = {each.field: (each.scope, each.rule) for each in (*found.values, *found.steps[0].limits)}
    assert by["cpus"] == by["max_queue_time"] == by["image"] == ("request", Rule.REQUEST)
    assert by["pids"] == ("policy mine", Rule.SET)
    assert by["wall_time"] == by["syscalls"] == by["pool"] == ("policy default", Rule.INHERITED)
    assert by["memory"] == by["retention"] == ("project acme/a", Rule.CLAMPED)
    ceilings = {each.field: (each.ceiling, each.ceiling_scope) for each in found.steps[0].limits}
    assert ceilings["memory"] == (128 << 20, "project acme/a")
    assert found.scopes == ("platform", "project acme/a")


def test_every_field_of_a_policy_has_a_source() -> None:
    """No value of an effective policy is left out, limits and isolation one by one."""
    resolved = load().resolved["default"]
    paths = {each.field for each in value_sources(fold(resolved.policy, []), resolved)}
    nested = {
        f"{field}.{name}"
        for field in ("defaults", "ceilings", "isolation")
        for name in getattr(resolved.policy, field).model_dump()
    }
    labels = {"name", "description", "version", "defaults", "ceilings", "isolation"}
    assert paths == nested | (set(Policy.model_fields) - labels)


def test_a_floor_that_no_host_of_the_pool_has_is_a_violation() -> None:
    """One host that stands on the floor is enough; with none known it is left to the worker."""
    base = load().resolved["default"]
    floor = {"cgroup": "v2", "kernel": "6.1", "image": "any"}
    policy = Policy.model_validate(base.policy.model_dump() | {"isolation": floor})
    resolved = Resolved(policy, base.origins, base.chain)
    request = JobSpec.model_validate({"command": ["a"]})
    low, high = Machine("v1", "5.15"), Machine("v2", "6.1.0")
    assert explain(request, resolved, [], hosts=[low, high]).admitted
    assert explain(request, resolved, []).admitted
    found = explain(request, resolved, [], hosts=[low, Machine("v1", "6.5")])
    assert [(each.field, each.got, each.allowed) for each in found.violations] == [
        ("isolation.cgroup", "v1", "v2")
    ]
