"""The policy reference, made from the models: `python -m policies.reference > docs/policy-reference.md`."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from policies.bounds import Bounds
from policies.document import PolicyDocument
from policies.isolation import IsolationFloor
from policies.limits import LAUNCHER_MAX, Limits
from policies.loader import load_policies
from policies.policy import Capability, Policy
from policies.units import format_duration, format_size

_HEAD = """\
# Policy reference

Made from the models by `python -m policies.reference`; do not edit. [Policies](policies.md) explains them, with
worked examples.

A policy says what a job may ask for (`ceilings`, `images`, counts) and what it gets unasked
(`defaults`). It is one YAML file, named after the policy. The built-in ones are in `policies/builtin/`;
the files in the directory that `STOCKADE_POLICIES` names are added to them, and replace those of the
same name. A policy may leave out what it takes over from the one that it `extends`; one that extends none has all
fields. An unknown field is an error, and nothing starts with a policy that is not right.

Sizes are bytes, or text such as `64MiB`, `1.5GiB`, `500kB`. Times are seconds, or text such as `500ms`,
`10s`, `2m`, `24h`. A policy is known by its name and by the digest of its content, which every job
carries: two policies of one digest allow exactly the same.

For editors: [policy.schema.json](policy.schema.json) and [bounds.schema.json](bounds.schema.json).
"""

_ISOLATION = """\
## Isolation floor

The fields of `isolation`. What is left out asks for nothing. A job whose policy asks for more than any live worker
of its pool can give is refused when it is sent; a worker whose own host is below the floor does not run it.
"""

_BOUNDS = """\
## Bounds

What a scope above the policies lets through: the platform in `platform.yaml` beside the policies, an organisation
and a project in their tenant's bounds. All fields may be left out. Bounds only narrow: of a policy that says
more, what they let through is left; of one that says less, nothing changes. Where they leave no image or no
pool of a policy, it cannot be used there.
"""

_LIMITS = """\
## Limits

The fields of `defaults` and `ceilings`, of `limits` in a request, and of `usage` in a result. Each holds
for one step of a job. A request that asks for more than a ceiling is refused, with everything in it that
is over one. *Range* is what any policy can allow.
"""

_CAPABILITIES = """\
## Capabilities

What `capabilities` may list; all of them hold in the job's own user namespace only, which owns none of
its other namespaces:
"""


def reference() -> str:
    """Return the whole page."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield _HEAD
    yield "## Fields\n"
    yield from _table(
        ["field", "meaning", "kernel"],
        [
            [f"`{name}`", _description(name, field), _kernel(Policy.model_fields.get(name, field))]
            for name, field in PolicyDocument.model_fields.items()
        ],
    )
    yield "\n" + _LIMITS
    yield from _table(
        ["limit", "unit", "meaning", "kernel", "range"],
        [
            [f"`{name}`", _unit(field), field.description, _kernel(field), _range(name, field)]
            for name, field in Limits.model_fields.items()
        ],
    )
    yield "\n" + _CAPABILITIES
    yield ", ".join(f"`{capability}`" for capability in Capability) + "."
    yield "\n" + _ISOLATION
    yield from _table(
        ["field", "meaning", "kernel"],
        [
            [f"`{name}`", field.description, _kernel(field)]
            for name, field in IsolationFloor.model_fields.items()
        ],
    )
    yield "\n" + _BOUNDS
    yield from _table(
        ["field", "what it bounds"],
        [[f"`{name}`", field.description] for name, field in Bounds.model_fields.items()],
    )
    yield "\n## The built-in policies\n"
    yield from _builtin(list(load_policies().values()))


def _description(name: str, document: FieldInfo) -> str | None:
    """Return what a field means: as the document has it, else as the policy has it."""
    return document.description or Policy.model_fields[name].description


def _builtin(policies: list[Policy]) -> Iterator[str]:
    names = [f"`{policy.name}`" for policy in policies]
    yield "Default, and ceiling, of every limit:\n"
    yield from _table(
        ["limit", *names],
        [
            [f"`{name}`", *(_default_and_ceiling(name, field, policy) for policy in policies)]
            for name, field in Limits.model_fields.items()
        ],
    )
    yield "\nAnd the rest:\n"
    yield from _table(
        ["field", *names],
        [
            [f"`{name}`", *(_value(field, getattr(policy, name)) for policy in policies)]
            for name, field in Policy.model_fields.items()
            if name not in ("name", "defaults", "ceilings")
        ],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str | None]]) -> Iterator[str]:
    yield _row(head)
    yield "|---" * len(head) + "|"
    yield from map(_row, rows)


def _row(cells: Sequence[str | None]) -> str:
    return f"| {' | '.join(cell or '' for cell in cells)} |"


def _default_and_ceiling(name: str, field: FieldInfo, policy: Policy) -> str:
    return f"{_value(field, getattr(policy.defaults, name))}, {_value(field, getattr(policy.ceilings, name))}"


def _extra(field: FieldInfo, key: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(key, "")) if isinstance(extra, dict) else ""


def _kernel(field: FieldInfo) -> str:
    knob = _extra(field, "x-kernel")
    return f"`{knob}`" if knob else ""


def _unit(field: FieldInfo) -> str:
    return _extra(field, "x-unit")


def _range(name: str, field: FieldInfo) -> str:
    least = next(bound.ge for bound in field.metadata if hasattr(bound, "ge"))
    return f"{_value(field, least)} to {_value(field, getattr(LAUNCHER_MAX, name))}"


def shown_value(path: str, value: Any) -> str:
    """Write the value at `path` of a policy, such as "ceilings.memory", with its unit."""
    name = path.rpartition(".")[2]
    field = Limits.model_fields.get(name) or Policy.model_fields.get(name)
    if field is None or value is None:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _value(field, value)


def _value(field: FieldInfo, value: Any) -> str:
    """Write a field's value with its unit."""
    if isinstance(value, IsolationFloor):
        value = value.model_dump()
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items()) or "none"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    unit = _unit(field)
    if unit == "bytes":
        return format_size(value)
    if unit == "seconds":
        return format_duration(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(reference())
