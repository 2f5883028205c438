"""What a compiled profile decides, checked without a kernel: programs are run by a BPF interpreter here."""

import errno
import itertools
import json
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.sandbox import seccomp
from worker.sandbox.errors import SandboxError
from worker.sandbox.syscall_numbers import AARCH64, X86_64

PROFILES = Path(__file__).parents[2] / "policies" / "syscalls"
NAMES = ("default", "strict", "debug")
MACHINES = ("x86_64", "aarch64")
BIT_32, BIT_63 = 1 << 32, 1 << 63
U64 = BIT_63 * 2 - 1
X32 = 0x4000_0000
I386 = 0x4000_0003
Json = dict[str, Any]


class Ran(NamedTuple):
    """What a program returned, and which words of struct seccomp_data it looked at."""

    verdict: int
    words: frozenset[int]


def run(bpf: bytes, audit: int, number: int, arguments: tuple[int, ...] = ()) -> Ran:
    """Interpret classic BPF as the kernel does (Documentation/networking/filter.rst)."""
    data = struct.pack("<IIQ6Q", number & 0xFFFF_FFFF, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("<HBBI", bpf))
    place, a, words = 0, 0, set()
    while True:
        op, jt, jf, k = code[place]
        place += 1
        if op == 0x20:
            (a,) = struct.unpack_from("<I", data, k)
            words.add(k)
        elif op == 0x54:
            a &= k
        elif op == 0x05:
            place += k
        elif op == 0x06:
            return Ran(k, frozenset(words))
        else:
            met = {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: a & k != 0}[op]
            place += jt if met else jf


def raw_profile(name: str) -> Json:
    """A shipped profile as it stands in its file, with what it extends behind it."""
    profile: Json = json.loads((PROFILES / f"{name}.json").read_bytes())
    if base := profile.pop("extends", None):
        inherited = raw_profile(base)
        profile = inherited | profile | {"syscalls": profile["syscalls"] + inherited["syscalls"]}
    return profile


def holds(condition: Json, arguments: tuple[int, ...]) -> bool:
    given, value = arguments[condition["index"]], condition["value"]
    return {
        "SCMP_CMP_EQ": given == value,
        "SCMP_CMP_NE": given != value,
        "SCMP_CMP_LT": given < value,
        "SCMP_CMP_LE": given <= value,
        "SCMP_CMP_GT": given > value,
        "SCMP_CMP_GE": given >= value,
        "SCMP_CMP_MASKED_EQ": given & value == condition.get("valueTwo", 0),
    }[condition["op"]]


def meaning(profile: Json, name: str | None, arguments: tuple[int, ...]) -> int:
    """What a profile says of one call, read off its JSON rule by rule."""
    if name is None:
        return seccomp.RET_ERRNO | errno.ENOSYS
    action, number = profile["defaultAction"], profile.get("defaultErrnoRet")
    for rule in profile["syscalls"]:
        if name in rule["names"] and all(holds(each, arguments) for each in rule.get("args", [])):
            action, number = rule["action"], rule.get("errnoRet")
            break
    if action == "SCMP_ACT_ERRNO":
        return seccomp.RET_ERRNO | (errno.EPERM if number is None else number)
    return {"SCMP_ACT_ALLOW": seccomp.RET_ALLOW, "SCMP_ACT_KILL_PROCESS": seccomp.RET_KILL_PROCESS}[action]


def telling_arguments(profile: Json, name: str | None) -> Iterator[tuple[int, ...]]:
    """Argument vectors around every bound that the rules for a call mention, all combinations."""
    candidates: list[set[int]] = [{0} for _ in range(6)]
    for rule in profile["syscalls"]:
        for each in rule.get("args", []) if name in rule["names"] else []:
            values = {each["value"], each.get("valueTwo", 0)}
            near = {value + step for value in values for step in (-1, 0, 1)} | {U64}
            mask = each["value"] if "valueTwo" in each else 1
            flips = (BIT_32, BIT_63, mask & -mask, ~mask & mask + 1)
            near |= {value ^ flip for value in values for flip in flips}
            candidates[each["index"]] |= {value & U64 for value in near}
    return itertools.product(*candidates)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", NAMES)
def test_a_shipped_program_decides_what_its_profile_says(profile: str, machine: str) -> None:
    """For every number of the table, beyond it and around every bound of the arguments."""
    raw, target = raw_profile(profile), seccomp.MACHINES[machine]
    bpf = seccomp.load_profiles(PROFILES, machine)[profile].bpf
    names = {number: name for name, number in target.numbers.items()}
    beyond = (999, X32 - 1, X32, X32 | 39, BIT_32 // 2, BIT_32 - 1)
    for number in (*range(max(names) + 40), *beyond):
        for arguments in telling_arguments(raw, names.get(number)):
            assert run(bpf, target.audit, number, arguments).verdict == meaning(
                raw, names.get(number), arguments
            ), (names.get(number, number), [hex(each) for each in arguments])


@pytest.mark.parametrize("profile", NAMES)
def test_a_foreign_architecture_kills_before_anything_else(profile: str) -> None:
    """i386 entry on x86_64, and any other AUDIT_ARCH, whatever the number."""
    bpf = seccomp.load_profiles(PROFILES, "x86_64")[profile].bpf
    for foreign in (I386, seccomp.MACHINES["aarch64"].audit, 0, 0xFFFF_FFFF):
        for number in (0, 20, 39, 999, X32):
            assert run(bpf, foreign, number) == (seccomp.RET_KILL_PROCESS, {4})


@pytest.mark.parametrize("profile", NAMES)
def test_frequent_calls_never_look_at_arguments(profile: str) -> None:
    """So that the kernel (5.11 and later) answers them from its bitmap and runs no filter."""
    bpf, audit = seccomp.load_profiles(PROFILES, "x86_64")[profile].bpf, seccomp.MACHINES["x86_64"].audit
    frequent = "read write openat close fstat newfstatat lseek munmap brk futex poll epoll_wait getpid execve"
    for name in frequent.split():
        assert run(bpf, audit, X86_64[name]) == (seccomp.RET_ALLOW, {0, 4}), name


def test_programs_stay_small() -> None:
    """Every sandbox pays for checking and translating its filter: at most 256 instructions."""
    for machine in MACHINES:
        for program in seccomp.load_profiles(PROFILES, machine).values():
            assert len(program.bpf) <= 256 * 8, (machine, program.name)


@pytest.mark.parametrize("profile", NAMES)
def test_every_rule_gives_its_reason_and_can_apply(profile: str) -> None:
    """No rule without a comment; none behind a rule of the same file that always matches."""
    settled: set[str] = set()
    for rule in json.loads((PROFILES / f"{profile}.json").read_bytes())["syscalls"]:
        assert rule["comment"], rule
        assert len(set(rule["names"])) == len(rule["names"]), rule
        assert not settled & set(rule["names"]), rule
        settled |= set() if rule.get("args") else set(rule["names"])


def test_strict_only_takes_away() -> None:
    """What strict lets through, default lets through as well."""
    strict, default = raw_profile("strict"), raw_profile("default")
    for name in X86_64:
        for arguments in telling_arguments(default, name):
            if meaning(strict, name, arguments) == seccomp.RET_ALLOW:
                assert meaning(default, name, arguments) == seccomp.RET_ALLOW, (name, arguments)


OPERATORS = [f"SCMP_CMP_{op}" for op in ("EQ", "NE", "LT", "LE", "GT", "GE", *["MASKED_EQ"] * 6)]
CALLS = ["read", "socket", "listns"]
# Few values in few places, so that rules meet each other and their bounds.
EDGES = st.sampled_from([0, 0xFFFF_FFFF, BIT_32, BIT_63, U64 - 1, U64])
SMALL = st.tuples(st.integers(0, 7), st.sampled_from([0, 32])).map(lambda pair: pair[0] << pair[1])
WORDS = EDGES | SMALL | st.tuples(SMALL, SMALL).map(sum)
ACTIONS = st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_ERRNO"])


@st.composite
def conditions(draw: st.DrawFn) -> Json:
    """One comparison of one argument; a masked one can be met."""
    made: Json = {
        "index": draw(st.integers(0, 1)),
        "op": draw(st.sampled_from(OPERATORS)),
        "value": draw(WORDS),
    }
    if made["op"] == "SCMP_CMP_MASKED_EQ":
        made["valueTwo"] = draw(WORDS) & made["value"]
    return made


@st.composite
def rules(draw: st.DrawFn) -> Json:
    made: Json = {"names": draw(st.lists(st.sampled_from(CALLS), min_size=1)), "action": draw(ACTIONS)}
    if made["action"] == "SCMP_ACT_ERRNO":
        made["errnoRet"] = draw(st.integers(0, 4095))
    return made | {"args": draw(st.lists(conditions(), max_size=3))}


@settings(deadline=None)
@given(st.lists(rules(), max_size=12), st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=20))
def test_any_profile_compiles_to_what_it_says(made: list[Json], tried: list[tuple[int, int]]) -> None:
    """Random rules, compared with their plain reading."""
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": made}
    bpf = seccomp.compile_profile(profile, "x86_64")
    for name, pair in itertools.product(CALLS, tried):
        arguments = (*pair, 0, 0, 0, 0)
        ran = run(bpf, seccomp.MACHINES["x86_64"].audit, X86_64[name], arguments)
        assert ran.verdict == meaning(profile, name, arguments)


def test_a_program_longer_than_a_jump_reaches_everything() -> None:
    """Conditional jumps span 255 instructions; with 385 verdicts and 40 bounds more are needed."""
    bounds = [
        {
            "names": ["ioctl"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1000 + i,
            "args": [{"index": i % 6, "op": "SCMP_CMP_GT", "value": BIT_32 * i + 7}],
        }
        for i in range(40, 0, -1)
    ]
    each = [
        {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 + i}
        for i, name in enumerate(X86_64)
        if name != "ioctl"
    ]
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": bounds + each}
    bpf = seccomp.compile_profile(profile, "x86_64")
    assert len(bpf) > 900 * 8
    for name, number in [*X86_64.items(), (None, max(X86_64.values()) + 1)]:
        for arguments in ((0,) * 6, (9, 0, 0, 0, 0, BIT_32 * 30), (U64,) * 6):
            assert run(bpf, seccomp.MACHINES["x86_64"].audit, number, arguments).verdict == meaning(
                profile, name, arguments
            )


def test_a_program_over_the_kernels_length_is_refused() -> None:
    """4096 instructions, BPF_MAXINSNS."""
    conditions = [{"index": 0, "op": "SCMP_CMP_EQ", "value": 7 * n, "valueTwo": 0} for n in range(2000)]
    many = [{"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [each]} for each in conditions]
    with pytest.raises(ValueError, match="the kernel takes 4096"):
        seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": many}, "x86_64")


def rule(**changes: Any) -> Json:
    return {"names": ["read"], "action": "SCMP_ACT_ALLOW"} | changes


def condition(**changes: Any) -> Json:
    return rule(args=[{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"} | changes])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"syscalls": [rule(names=["read", "raed"])]}, r"syscalls\[0\]: unknown name raed"),
        ({"syscalls": [rule(), rule(names="read")]}, r"syscalls\[1\]: expected a list, got 'read'"),
        ({"syscalls": [rule(names=[3])]}, r"syscalls\[0\]: expected names, got \[3\]"),
        ({"syscalls": {"read": True}}, "syscalls: expected a list"),
        ({"syscalls": [rule(args=None)]}, r"syscalls\[0\].args: expected a list, got None"),
        ({"syscalls": [rule(action=[])]}, r"unknown action \[\]"),
        ({"syscalls": [condition(op=[])]}, r"unknown op \[\]"),
        ({"syscalls": [rule(action="SCMP_ACT_NOTIFY")]}, "unknown action 'SCMP_ACT_NOTIFY'"),
        ({"syscalls": [rule(errnoRet=1)]}, "errnoRet is of no use with SCMP_ACT_ALLOW"),
        (
            {"syscalls": [rule(action="SCMP_ACT_ERRNO", errnoRet=4096)]},
            "errnoRet: expected an integer from 0 to",
        ),
        ({"syscalls": [rule(action="SCMP_ACT_ERRNO", errnoRet=True)]}, "got True"),
        ({"syscalls": [rule(includes={})]}, "unknown includes"),
        ({"syscalls": [{"names": ["read"]}]}, "action missing"),
        ({"syscalls": ["read"]}, "expected an object, got 'read'"),
        ({"syscalls": [condition(op="SCMP_CMP_LIKE")]}, r"args\[0\]: unknown op 'SCMP_CMP_LIKE'"),
        ({"syscalls": [condition(index=6)]}, "index: expected an integer from 0 to 5, got 6"),
        ({"syscalls": [condition(value=-1)]}, "value: expected an integer"),
        ({"syscalls": [condition(value=U64 + 1)]}, "value: expected an integer"),
        ({"syscalls": [condition(valueTwo=1)]}, "valueTwo is of no use with SCMP_CMP_EQ"),
        ({"syscalls": [condition(op="SCMP_CMP_MASKED_EQ", valueTwo=2)]}, "no argument masked with 0x1"),
        ({"defaultAction": "ALLOW"}, "defaultAction: unknown action 'ALLOW'"),
        ({"flags": []}, "profile: unknown flags"),
        ({"architectures": ["SCMP_ARCH_AARCH64"]}, "SCMP_ARCH_X86_64 is not among"),
        ({"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]}, "unknown name SCMP_ARCH_X86"),
    ],
)
def test_a_profile_with_a_mistake_is_refused_by_name(changed: Json, message: str) -> None:
    """Nothing in a profile is skipped for not being understood."""
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule()]} | changed
    with pytest.raises(ValueError, match=message):
        seccomp.compile_profile(profile, "x86_64")


def test_a_machine_without_a_table_is_refused() -> None:
    """Rather than filtering by another machine's numbers."""
    with pytest.raises(ValueError, match="no system call table for 'riscv64'"):
        seccomp.compile_profile(raw_profile("default"), "riscv64")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{", "Expecting property name"),
        ("[]", "a profile is a JSON object"),
        ('{"extends": "other"}', "no profile 'other'"),
        ('{"extends": "own"}', "own -> own is a circle"),
        ('{"extends": ["own"]}', "no profile ['own'] among own"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, text: str, hint: str) -> None:
    """SandboxError at start, with the file and what is wrong."""
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(SandboxError) as caught:
        seccomp.load_profiles(tmp_path, "x86_64")
    assert (caught.value.step, caught.value.subject) == ("seccomp", str(tmp_path / "own.json"))
    assert hint in caught.value.hint


def kernel_headers(source: str) -> dict[str, int]:
    """The __NR_ constants that the C preprocessor sees."""
    text = subprocess.run(
        ["cc", "-E", "-dM", "-"], input=source, capture_output=True, text=True, check=True
    ).stdout
    raw = dict(re.findall(r"#define __NR_?(\w+)\s+(\w+)", text))
    found = {name: raw.get(value.removeprefix("__NR"), value) for name, value in raw.items()}
    return {
        name: int(value)
        for name, value in found.items()
        if not name.startswith(("3264_", "syscalls", "arch_specific"))
    }


def test_the_tables_agree_with_the_kernel_headers_here() -> None:
    """Every number that this machine's headers know, for both architectures, is in the tables."""
    if not Path("/usr/include/asm-generic/unistd.h").exists():
        pytest.skip("needs the package linux-libc-dev")
    # What arch/arm64/include/uapi/asm/unistd.h asks of the generic table.
    wanted = ("RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "SYS_CLONE3", "MEMFD_SECRET")
    generic = (
        "".join(f"#define __ARCH_WANT_{each}\n" for each in wanted) + "#include <asm-generic/unistd.h>\n"
    )
    assert kernel_headers(generic).items() <= AARCH64.items()
    machine_headers = kernel_headers("#include <asm/unistd.h>\n")
    if os.uname().machine == "x86_64":
        assert machine_headers.items() <= X86_64.items()


def test_the_tables_agree_with_each_other() -> None:
    """No number twice in one; from 424 on the same number in both."""
    for table in (X86_64, AARCH64):
        assert len(set(table.values())) == len(table)
    late = [{n: v for n, v in table.items() if v >= 424} for table in (X86_64, AARCH64)]
    assert late[0] == late[1]
