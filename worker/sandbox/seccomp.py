"""Seccomp profiles: OCI JSON in, classic BPF for seccomp(2) out.

A profile is an object of the OCI runtime specification (config-linux.md, "Seccomp"), read strictly: an
unknown key, action, comparison or system call name is an error, never skipped. Beyond the specification:

- ``comment`` may stand in a profile and in each of its rules;
- ``extends`` names another profile of the directory; the extending profile's rules come before that one's;
- the rules that name a system call are tried in their order and the first that matches decides; a rule
  without ``args`` always matches; where none matches, ``defaultAction`` decides. (libseccomp has no order.)

What a program guarantees whatever its profile says: a call of another architecture kills the process before
anything else is looked at, and a number that the kernel tables of `syscall_numbers` do not know (newer than
the newest, a hole, x32 with its bit 30) is answered with ENOSYS, as a kernel without that call would.

The program walks a balanced tree over ranges of numbers that are treated alike. Calls that are allowed
whatever their arguments cost nothing at run time: since Linux 5.11 the kernel finds them when the filter is
attached and no longer runs it for them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.sandbox.errors import SandboxError
from worker.sandbox.syscall_numbers import AARCH64, X86_64

# linux/seccomp.h: what a filter returns; SECCOMP_RET_ERRNO carries the number in its lower 16 bits.
RET_KILL_PROCESS: Final = 0x8000_0000
RET_ERRNO: Final = 0x0005_0000
RET_ALLOW: Final = 0x7FFF_0000

# linux/bpf_common.h: the instructions that the kernel can evaluate when it looks for always-allowed calls.
LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP: Final = 0x05  # BPF_JMP | BPF_JA
JUMP_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JUMP_GREATER_EQUAL: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
JUMP_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN: Final = 0x06  # BPF_RET | BPF_K

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]; little-endian.
_NR, _ARCH, _ARGS = 0, 4, 16
_U32, _U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
_LONGEST_JUMP = 255
_LONGEST_PROGRAM = 4096  # BPF_MAXINSNS


@dataclass(frozen=True, slots=True)
class Machine:
    """One architecture: its name in profiles, linux/audit.h's number for it, its system call numbers."""

    oci: str
    audit: int
    numbers: Mapping[str, int]


MACHINES: Final = {
    "x86_64": Machine("SCMP_ARCH_X86_64", 0xC000_003E, X86_64),
    "aarch64": Machine("SCMP_ARCH_AARCH64", 0xC000_00B7, AARCH64),
}


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled profile: ``bpf`` is an array of ``struct sock_filter``, ``sha256`` its digest in hex."""

    name: str
    bpf: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Argument:
    """One condition: (argument ``index`` & ``mask``) ``op`` ``value``, unsigned 64-bit."""

    index: int
    op: str
    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class Rule:
    """Where every condition holds, the filter returns ``verdict``."""

    verdict: int
    arguments: tuple[Argument, ...]


def load_profiles(directory: str | os.PathLike[str], machine: str | None = None) -> dict[str, Program]:
    """Compile every ``*.json`` of a directory; a profile's name is its file's without the suffix.

    Raises SandboxError (step ``seccomp``) with the file as subject when one cannot be used.
    """
    paths = {path.stem: path for path in sorted(Path(directory).glob("*.json"))}
    programs = {}
    for name, path in paths.items():
        try:
            bpf = compile_profile(_resolve(name, paths), machine)
        except (OSError, ValueError) as error:
            raise SandboxError("seccomp", subject=str(path), hint=str(error)) from error
        programs[name] = Program(name, bpf, hashlib.sha256(bpf).hexdigest())
    return programs


def compile_profile(profile: Mapping[str, Any], machine: str | None = None) -> bytes:
    """Compile one profile (``extends`` already resolved) for a machine as uname(2) names it.

    Raises ValueError naming the rule and what is wrong with it.
    """
    target = _machine(machine or os.uname().machine)
    rules = read_rules(profile, target.oci)
    unknown = Rule(RET_ERRNO | errno.ENOSYS, ())
    assembler = _Assembler()
    leaves: dict[tuple[Rule, ...], _Label] = {}
    starts: list[tuple[int, _Label]] = []
    known = {number: rules[name] for name, number in target.numbers.items()}
    for number in range(max(known) + 2):
        decision = known.get(number, (unknown,))
        if decision not in leaves:
            leaves[decision] = assembler.decide(decision)
        if not starts or starts[-1][1] != leaves[decision]:
            starts.append((number, leaves[decision]))
    assembler.search(starts)
    tree = assembler.load(_NR)
    assembler.branch(JUMP_EQUAL, target.audit, tree, assembler.verdict(RET_KILL_PROCESS))
    assembler.load(_ARCH)
    return assembler.program()


def read_rules(profile: Mapping[str, Any], architecture: str) -> dict[str, tuple[Rule, ...]]:
    """Each known system call's rules in the order in which they are tried; the last always matches."""
    _check_keys(
        "profile", profile, {"defaultAction", "syscalls"}, {"defaultErrnoRet", "architectures", "comment"}
    )
    architectures = profile.get("architectures", [architecture])
    _check_names("architectures", architectures, {machine.oci for machine in MACHINES.values()})
    if architecture not in architectures:
        raise ValueError(f"architectures: {architecture} is not among {', '.join(architectures)}")
    default = Rule(_verdict("defaultAction", profile["defaultAction"], profile.get("defaultErrnoRet")), ())
    found: dict[str, list[Rule]] = {name: [] for machine in MACHINES.values() for name in machine.numbers}
    for position, raw in enumerate(_list("syscalls", profile["syscalls"])):
        where = f"syscalls[{position}]"
        _check_keys(where, raw, {"names", "action"}, {"errnoRet", "args", "comment"})
        _check_names(where, raw["names"], found)
        args = _list(f"{where}.args", raw.get("args", []))
        arguments = tuple(_argument(f"{where}.args[{i}]", each) for i, each in enumerate(args))
        rule = Rule(_verdict(where, raw["action"], raw.get("errnoRet")), arguments)
        for name in raw["names"]:
            if all(earlier.arguments for earlier in found[name]):
                found[name].append(rule)
    return {name: _ended(rules, default) for name, rules in found.items()}


def _ended(rules: list[Rule], default: Rule) -> tuple[Rule, ...]:
    """The rules closed by one that always matches, without those that would decide the same as that one."""
    if not rules or rules[-1].arguments:
        rules = [*rules, default]
    while len(rules) > 1 and rules[-2].verdict == rules[-1].verdict:
        rules = [*rules[:-2], rules[-1]]
    return tuple(rules)


def _resolve(name: str, paths: Mapping[str, Path], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A profile's JSON with those that it extends merged in: its own rules first, its own defaults."""
    if not isinstance(name, str) or name not in paths:
        raise ValueError(f"extends: no profile {name!r} among {', '.join(paths)}")
    if name in seen:
        raise ValueError(f"extends: {' -> '.join([*seen, name])} is a circle")
    profile: dict[str, Any] = json.loads(paths[name].read_bytes())
    if not isinstance(profile, dict):
        raise ValueError("a profile is a JSON object")
    base = profile.pop("extends", None)
    if base is None:
        return profile
    inherited = _resolve(base, paths, (*seen, name))
    own = _list("syscalls", profile.get("syscalls", []))
    return {**inherited, **profile, "syscalls": own + _list("syscalls", inherited.get("syscalls", []))}


def _machine(name: str) -> Machine:
    if name not in MACHINES:
        raise ValueError(f"no system call table for {name!r}; there are {', '.join(MACHINES)}")
    return MACHINES[name]


def _check_keys(where: str, value: Any, needed: set[str], optional: set[str]) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected an object, got {value!r}")
    if missing := needed - value.keys():
        raise ValueError(f"{where}: {', '.join(sorted(missing))} missing")
    if unknown := value.keys() - needed - optional:
        raise ValueError(f"{where}: unknown {', '.join(sorted(unknown))}")


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, got {value!r}")
    return value


def _check_names(where: str, names: Any, known: Iterable[str]) -> None:
    if not all(isinstance(name, str) for name in _list(where, names)):
        raise ValueError(f"{where}: expected names, got {names!r}")
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{where}: unknown name {', '.join(unknown)}")


def _number(where: str, value: Any, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
        raise ValueError(f"{where}: expected an integer from 0 to {highest}, got {value!r}")
    return value


def _verdict(where: str, action: Any, errno_ret: Any) -> int:
    """What the filter returns for an action; ERRNO without a number means EPERM (the specification)."""
    if action == "SCMP_ACT_ERRNO":
        # The kernel reads 12 bits of it: MAX_ERRNO is 4095.
        return RET_ERRNO | _number(
            f"{where}: errnoRet", errno.EPERM if errno_ret is None else errno_ret, 4095
        )
    plain = {"SCMP_ACT_ALLOW": RET_ALLOW, "SCMP_ACT_KILL_PROCESS": RET_KILL_PROCESS}
    if not isinstance(action, str) or action not in plain:
        raise ValueError(f"{where}: unknown action {action!r}")
    if errno_ret is not None:
        raise ValueError(f"{where}: errnoRet is of no use with {action}")
    return plain[action]


def _argument(where: str, raw: Any) -> Argument:
    """``value`` is the mask and ``valueTwo`` the value where the operator is SCMP_CMP_MASKED_EQ."""
    _check_keys(where, raw, {"index", "value", "op"}, {"valueTwo"})
    index = _number(f"{where}: index", raw["index"], 5)
    value = _number(f"{where}: value", raw["value"], _U64)
    if raw["op"] == "SCMP_CMP_MASKED_EQ":
        wanted = _number(f"{where}: valueTwo", raw.get("valueTwo", 0), _U64)
        if wanted & ~value:
            raise ValueError(f"{where}: no argument masked with {value:#x} can equal {wanted:#x}")
        return Argument(index, "EQ", wanted, value)
    prefix, _, op = str(raw["op"]).rpartition("_")
    if prefix != "SCMP_CMP" or op not in ("EQ", "NE", "LT", "LE", "GT", "GE"):
        raise ValueError(f"{where}: unknown op {raw['op']!r}")
    if raw.get("valueTwo"):
        raise ValueError(f"{where}: valueTwo is of no use with {raw['op']}")
    return Argument(index, op, value, _U64)


@dataclass(frozen=True, slots=True)
class _Label:
    """A place in a program, counted from its end.

    ``place`` may be jumped to from anywhere. Whoever has already loaded ``word`` (its offset in struct
    seccomp_data) may jump to ``loaded`` instead, behind the load.
    """

    place: int
    word: int | None = None
    loaded: int = 0


class _Assembler:
    """Writes a program from its end to its start, so that every jump's target is already in place."""

    def __init__(self) -> None:
        self._reversed: list[tuple[int, int, int, int]] = []
        self._verdicts: dict[int, _Label] = {}

    def program(self) -> bytes:
        """The finished ``struct sock_filter`` array: u16 code, u8 jt, u8 jf, u32 k."""
        if len(self._reversed) > _LONGEST_PROGRAM:
            raise ValueError(f"the profile needs {len(self._reversed)} instructions, the kernel takes 4096")
        return b"".join(struct.pack("<HBBI", *each) for each in reversed(self._reversed))

    def verdict(self, value: int) -> _Label:
        """A return of ``value``; one for the whole program."""
        if value not in self._verdicts:
            self._verdicts[value] = self._emit(RETURN, 0, 0, value)
        return self._verdicts[value]

    def decide(self, rules: tuple[Rule, ...]) -> _Label:
        """Try the rules in order; the last has no conditions."""
        label = self.verdict(rules[-1].verdict)
        for rule in reversed(rules[:-1]):
            otherwise, label = label, self.verdict(rule.verdict)
            for argument in reversed(rule.arguments):
                label = self._compare(argument, label, otherwise)
        return label

    def search(self, starts: list[tuple[int, _Label]]) -> _Label:
        """With a number loaded, go to the label of the last start that is not above it."""
        if len(starts) == 1:
            return starts[0][1]
        middle = len(starts) // 2
        above, below = self.search(starts[middle:]), self.search(starts[:middle])
        return self.branch(JUMP_GREATER_EQUAL, starts[middle][0], above, below)

    def load(self, word: int) -> _Label:
        """Load a word of struct seccomp_data, then go on with the instruction written last."""
        behind = len(self._reversed) - 1
        return _Label(self._emit(LOAD, 0, 0, word).place, word, behind)

    def branch(self, code: int, k: int, yes: _Label, no: _Label, holding: int | None = None) -> _Label:
        """One conditional jump; ``holding`` names the word that is loaded and still whole, if any."""
        targets = [
            label.loaded if label.word == holding and holding is not None else label.place
            for label in (yes, no)
        ]
        for i in (0, 1):
            # Two instructions may still come between here and the branch: this detour and the other's.
            if len(self._reversed) - targets[i] > _LONGEST_JUMP - 1:
                targets[i] = self._jump(targets[i]).place
        jt, jf = (len(self._reversed) - target - 1 for target in targets)
        return self._emit(code, jt, jf, k)

    def _compare(self, argument: Argument, yes: _Label, no: _Label) -> _Label:
        """Go to ``yes`` where the condition holds, else to ``no``."""
        op = argument.op
        if op in ("NE", "LT", "LE"):
            op, yes, no = {"NE": "EQ", "LT": "GE", "LE": "GT"}[op], no, yes
        low = _ARGS + 8 * argument.index
        if op == "EQ":
            label = self._equal(low, argument.value & _U32, argument.mask & _U32, yes, no)
            return self._equal(low + 4, argument.value >> 32, argument.mask >> 32, label, no)
        code = JUMP_GREATER if op == "GT" else JUMP_GREATER_EQUAL
        self.branch(code, argument.value & _U32, yes, no, low)
        label = self.load(low)
        label = self.branch(JUMP_EQUAL, argument.value >> 32, label, no, low + 4)
        self.branch(JUMP_GREATER, argument.value >> 32, yes, label, low + 4)
        return self.load(low + 4)

    def _equal(self, word: int, value: int, mask: int, yes: _Label, no: _Label) -> _Label:
        """Compare one half of an argument; a half of which no bit counts is not looked at."""
        if mask == 0:
            return yes
        if mask == _U32:
            self.branch(JUMP_EQUAL, value, yes, no, word)
        elif value == 0:
            self.branch(JUMP_ANY_BIT, mask, no, yes, word)
        else:
            self.branch(JUMP_EQUAL, value, yes, no)
            self._emit(AND, 0, 0, mask)
        return self.load(word)

    def _jump(self, target: int) -> _Label:
        return self._emit(JUMP, 0, 0, len(self._reversed) - target - 1)

    def _emit(self, code: int, jt: int, jf: int, k: int) -> _Label:
        self._reversed.append((code, jt, jf, k))
        return _Label(len(self._reversed) - 1)
