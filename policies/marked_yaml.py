"""Marked YAML: one document of YAML's safe subset, with the line of every value in it.

A document is small, flat and says one thing: no aliases (with which a few lines become gigabytes), no
merge keys, no tags of its own, no key twice, bounded bytes, nodes and depth. What breaks one of these rules is
a `PolicyError` with the line of it.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from policies.finding import Finding, PolicyError
from policies.violation import field_path, shown

BYTES_MAX = 256 * 1024
NODES_MAX = 20_000
DEPTH_MAX = 16

_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")
)

Location = tuple[str | int, ...]


@dataclass(frozen=True)
class Marked:
    """What a document says, and where."""

    file: str
    data: Any
    lines: dict[str, int]
    """The line, from 1, of every value's path, such as "ceilings.memory"."""

    def line(self, path: str) -> int:
        """Return the line of `path`, or of what it would stand in."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 1)

    def finding(self, path: str, message: str) -> Finding:
        """Return a finding about what stands, or would stand, at `path`."""
        return Finding(file=self.file, line=self.line(path), path=path, message=message)


def read(path: Path) -> Marked:
    """Return the one document in the file `path`.

    Raises:
        PolicyError: it cannot be read, can be written by everybody, is no YAML, or breaks a rule of the house.
    """
    file = str(path)
    try:
        # A pipe is refused, not waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise _wrong(file, 1, "is not a regular file")
            content = opened.read(BYTES_MAX + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise _wrong(file, 1, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise _wrong(file, line, "is not text in UTF-8") from error
    if mode & stat.S_IWOTH:
        raise _wrong(file, 1, f"can be written by everybody; make it safe with: chmod o-w {file}")
    if len(content) > BYTES_MAX:
        raise _wrong(file, 1, f"has more than {BYTES_MAX} bytes")
    return parse(text, file)


def parse(text: str, file: str) -> Marked:
    """Return what `text` says; `file` is its name in errors, which are those of `read`."""
    try:
        _bound(text, file)
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Marked(file, None, {"": 1})
        lines: dict[str, int] = {}
        if findings := list(_walk(node, (), file, lines)):
            raise PolicyError(findings)
        return Marked(file, loader.construct_document(node), lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise _wrong(file, mark.line + 1 if mark else 1, str(shown(problem))) from error
    except ValueError as error:  # an integer of thousands of digits
        raise _wrong(file, 1, f"holds a value that cannot be read: {error}") from error


def _bound(text: str, file: str) -> None:
    """Refuse what would be large, deep or shared when it is made, before anything is made."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise _wrong(file, line, f"*{event.anchor} is an alias; write the value out, or use extends")
        nodes += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if nodes > NODES_MAX:
            raise _wrong(file, line, f"has more than {NODES_MAX} values")
        if depth > DEPTH_MAX:
            raise _wrong(file, line, f"is nested deeper than {DEPTH_MAX}")


def _walk(node: yaml.Node, at: Location, file: str, lines: dict[str, int]) -> Iterator[Finding]:
    """Note the line of `node` and of all below it; yield what must not stand there."""
    path, line = field_path(at), node.start_mark.line + 1
    lines.setdefault(path, line)
    if node.tag not in _TAGS:
        kind = node.tag.rpartition(":")[2]
        message = f"a value of the kind {kind} cannot stand here; put text into quotation marks"
        yield Finding(file=file, line=line, path=path, message=message)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*at, index), file, lines)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                yield Finding(file=file, line=line, path=path, message="a key must be plain text")
                continue
            below = field_path((*at, key.value))
            if key.value in seen:
                message = f"stands twice; first in line {seen[key.value]}"
                yield Finding(file=file, line=line, path=below, message=message)
            seen.setdefault(key.value, line)
            lines.setdefault(below, line)
            yield from _walk(value, (*at, key.value), file, lines)


def _wrong(file: str, line: int, message: str) -> PolicyError:
    return PolicyError([Finding(file=file, line=line, path="", message=message)])
