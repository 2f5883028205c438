"""Loading policies: YAML files read once, checked whole, kept with their digests.

The policies of this package (`policies/builtin/`) are always there; an operator's directory may add to them,
and replace one by a file of its name. A file that is not exactly right is an error, and nothing is loaded.
"""

from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError

from policies.policy import Policy
from policies.violation import violations

BUILTIN = Path(__file__).parent / "builtin"
SYSCALLS = Path(__file__).parent / "syscalls"


class PolicyError(Exception):
    """A policy file is not as it must be; the message names the file and everything that is wrong in it."""


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=8)
def load_policies(directory: Path | None = None) -> Mapping[str, Policy]:
    """Return all policies by name: the built-in ones, and those of `directory`, which win.

    Read once a process; a changed file is seen by the next process.

    Raises:
        PolicyError: a file is not a valid policy, or `directory` cannot be read.
    """
    policies = {policy.name: policy for policy in _read_all(BUILTIN)}
    if directory is not None:
        policies |= {policy.name: policy for policy in _read_all(directory)}
    return MappingProxyType(dict(sorted(policies.items())))


def _read_all(directory: Path) -> Iterator[Policy]:
    try:
        names = sorted(path for path in directory.iterdir() if path.suffix == ".yaml")
    except OSError as error:
        raise PolicyError(f"{directory}: {error.strerror}") from error
    return (read_policy(path) for path in names)


def read_policy(path: Path) -> Policy:
    """Return the policy in the YAML file `path`.

    Raises:
        PolicyError: the file cannot be read, is not YAML, has an unknown, missing, doubled or wrong field,
            names no syscall profile there is, or is not named after its policy.
    """
    try:
        policy = Policy.model_validate(yaml.load(path.read_text("utf-8"), _Loader))  # noqa: S506 - a SafeLoader
    except ValidationError as error:
        wrong = "; ".join(f"{found.field or 'the file'}: {found.message}" for found in violations(error))
        raise PolicyError(f"{path}: {wrong}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PolicyError(f"{path}: {error}") from error
    if not (SYSCALLS / f"{policy.syscalls}.json").is_file():
        raise PolicyError(f"{path}: syscalls: there is no profile {policy.syscalls}")
    if policy.name != path.stem:
        raise PolicyError(f"{path}: the policy's name is {policy.name}; the file must be {policy.name}.yaml")
    return policy
