"""What the property tests of policies draw from: limits, bounds, policies and requests that collide often."""

import json
from typing import Any, NamedTuple

from hypothesis import strategies as st

from jobs.spec import JobSpec
from policies.bounds import Bounds
from policies.isolation import IsolationFloor, NetworkMode, SyscallProfile
from policies.limits import LimitsRequest
from policies.loader import load_policies
from policies.policy import Capability, ImageDigest, Policy
from policies.priority import Priority


class Machine(NamedTuple):
    """A worker's host."""

    cgroup: str | None
    kernel: str


patterns = st.lists(
    st.sampled_from(["host", "*", "py", "py:3.11", "py:*", "*:3.11", "p*1", "?y:*", "py@sha256:aa", "js*"]),
    min_size=1,
    max_size=3,
)
pools = st.lists(st.sampled_from(["default", "bigmem", "arm"]), min_size=1, max_size=3)
floors = st.builds(
    IsolationFloor,
    cgroup=st.sampled_from(["any", "v2"]),
    kernel=st.sampled_from(["5.12", "6.1", "6.18"]),
    image=st.sampled_from(["any", "oci"]),
)
limits = st.builds(
    LimitsRequest,
    cpus=st.none() | st.floats(0.01, 8),
    memory=st.none() | st.integers(4 << 20, 4 << 30),
    pids=st.none() | st.integers(1, 1024),
    wall_time=st.none() | st.floats(0.01, 1200),
    disk=st.none() | st.integers(1 << 20, 2 << 30),
)
bounds = st.builds(
    Bounds,
    policies=st.none() | st.sampled_from([("*",), ("default", "judge"), ("s*",)]),
    ceilings=st.none() | limits,
    images=st.none() | patterns.map(tuple),
    image_digest=st.none() | st.sampled_from(ImageDigest),
    syscalls=st.none() | st.sampled_from(SyscallProfile),
    network=st.none() | st.sampled_from(NetworkMode),
    capabilities=st.none() | st.lists(st.sampled_from(Capability), max_size=6).map(tuple),
    pools=st.none() | pools.map(tuple),
    priority_max=st.none() | st.sampled_from(Priority),
    max_queue_time=st.none() | st.floats(1, 200_000),
    isolation=st.none() | floors,
    steps_max=st.none() | st.integers(1, 64),
    files_max=st.none() | st.integers(0, 10),
    files_bytes=st.none() | st.integers(0, 1 << 20),
    outputs_max=st.none() | st.integers(0, 200),
    retention=st.none() | st.floats(1, 200_000),
)
scopes = st.lists(st.tuples(st.sampled_from(["platform", "organisation", "project"]), bounds), max_size=3)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A built-in policy with other images, pools, priority and floor."""
    base = draw(st.sampled_from(list(load_policies().values())))
    floor = draw(floors)
    images = draw(patterns)
    if floor.image == "oci":
        images = [*images, "py"]
    changed = {
        "images": images,
        "pools": draw(pools),
        "isolation": floor,
        "image_digest": draw(st.sampled_from(ImageDigest)),
        "syscalls": draw(st.sampled_from(SyscallProfile)),
        "priority_max": draw(st.sampled_from(Priority)),
        "environment": draw(st.dictionaries(st.sampled_from(["A", "B"]), st.sampled_from(["1", "2"]))),
    }
    return Policy.model_validate(base.model_dump() | changed)


@st.composite
def requests(draw: st.DrawFn) -> JobSpec:
    """A request that asks for this and that, and often for too much."""
    body: dict[str, Any] = {
        "image": draw(st.sampled_from(["host", "py", "py:3.11", "js", "py@sha256:aa"])),
        "steps": [
            {"argv": ["a"], "limits": asked.model_dump(exclude_none=True)}
            for asked in draw(st.lists(limits, min_size=1, max_size=3))
        ],
        "files": [{"path": f"f{number}", "text": "x" * 100} for number in range(draw(st.integers(0, 4)))],
    }
    for field, values in (
        ("pool", st.sampled_from(["default", "bigmem", "arm"])),
        ("priority", st.sampled_from([str(each) for each in Priority])),
        ("max_queue_time", st.floats(1, 200_000)),
    ):
        if draw(st.booleans()):
            body[field] = draw(values)
    return JobSpec.model_validate_json(json.dumps(body))
