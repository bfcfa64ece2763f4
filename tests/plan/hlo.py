"""The HLO text of a compiled program: its computations, and where a value in it comes from."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """One array of an HLO type: f32[8,128] is Part("f32", (8, 128))."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = 8 if self.dtype == "pred" else int((re.search(r"\d+", self.dtype) or [0])[0])
        return math.prod(self.shape) * bits // 8


class Instruction(NamedTuple):
    """One line. `rest`: operands and attributes; `root`: what its computation returns."""

    name: str
    type: str
    opcode: str
    rest: str
    root: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays that it returns, of a tuple in their order."""
        found = _ARRAY.findall(self.type)
        return tuple(Part(d, tuple(int(n) for n in s.split(",") if n)) for d, s in found)

    @property
    def operands(self) -> list[str]:
        """The names of what it is given."""
        inside = self.rest[: _end_of_type("(" + self.rest, 0) - 2]
        return re.findall(r"%([\w.\-]+)", inside)

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        branches = _BRANCHES.search(self.rest)
        listed = [name.strip(" %") for name in branches[1].split(",")] if branches else []
        return _CALLED.findall(self.rest) + listed


# Computation -> name -> instruction, in the program's order.
Program = Mapping[str, Mapping[str, Instruction]]


class Place(NamedTuple):
    """A computation, and the call that led there: the caller's names for its parameters."""

    computation: str
    arguments: Sequence[str] = ()
    caller: "Place | None" = None

    def inside(self, instruction: Instruction, computation: str) -> "Place":
        """The place of a computation that `instruction`, which stands here, calls."""
        # A branch is given one of a conditional's operands; which of them is not looked up.
        known = instruction.opcode != "conditional"
        return Place(computation, instruction.operands if known else (), self)


# ------------------------------------------------------------------------------- reading
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ASSIGNMENT = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


def read_program(hlo: str) -> tuple[Program, str]:
    """All computations, and the name of the one that is run. hlo: `compiled.as_text()`."""
    found: dict[str, dict[str, Instruction]] = {}
    entry, current = "", ""
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[2]
            found[current] = {}
            entry = current if header[1] else entry
        elif current and (assigned := _ASSIGNMENT.match(line)):
            type_end = _end_of_type(line, assigned.end())
            opcode = _OPCODE.match(line, type_end)
            if opcode:
                text = line[assigned.end() : type_end], opcode[1], line[opcode.end() :]
                found[current][assigned[2]] = Instruction(assigned[2], *text, bool(assigned[1]))
    return found, entry


def _end_of_type(line: str, start: int) -> int:
    """A tuple's type ends with its own bracket: TPU layouts such as {1,0:T(8,128)} have others."""
    if line[start : start + 1] != "(":
        return line.find(" ", start)
    depth = 0
    for position in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[position], 0)
        if depth == 0:
            return position + 1
    return len(line)


# ------------------------------------------------------------------------------- tracing
_SAME_VALUE = ("bitcast", "convert", "copy", "copy-done", "copy-start", "reshape", "transpose")


def origin(value: str, place: Place, program: Program) -> tuple[Instruction, Place] | None:
    """The instruction that computes a value, through copies, tuples, fusions and calls.

    A value that a loop carries is traced to what the loop started with. None where the trace ends.
    """
    wanted: list[int] = []  # which element, of tuples inside tuples
    while instruction := program[place.computation].get(value):
        names = instruction.operands
        if instruction.opcode == "parameter" and _number(instruction) < len(place.arguments):
            assert place.caller is not None
            value, place = place.arguments[_number(instruction)], place.caller
        elif instruction.opcode in ("fusion", "call") and instruction.called:
            place = place.inside(instruction, instruction.called[0])
            value = next((i.name for i in program[place.computation].values() if i.root), "")
        elif instruction.opcode == "get-tuple-element":
            wanted.append(int(re.findall(r"index=(\d+)", instruction.rest)[-1]))
            value = names[0]
        elif instruction.opcode == "tuple" and wanted:
            value = names[wanted.pop()]
        elif instruction.opcode in _SAME_VALUE:
            value = names[0]
        else:
            return instruction, place
    return None


def _number(parameter: Instruction) -> int:
    return int(parameter.rest.split(")")[0])


def is_own_share(value: str, place: Place, program: Program) -> bool:
    """Whether a value is written into an array at a place that depends on the device.

    An all-reduce of such arrays, zero elsewhere, is a gather.
    """
    found = origin(value, place, program)
    if found is None or found[0].opcode != "dynamic-update-slice":
        return False
    instruction, place = found
    seen: set[tuple[str, str]] = set()
    return any(_by_device(name, place, program, seen) for name in instruction.operands[2:])


def _by_device(value: str, place: Place, program: Program, seen: set[tuple[str, str]]) -> bool:
    found = origin(value, place, program)
    if found is None or not found[0].type.startswith(("s32", "u32", "s64", "u64", "pred")):
        return False
    instruction, place = found
    if instruction.opcode in ("partition-id", "replica-id"):
        return True
    if (place.computation, instruction.name) in seen:
        return False
    seen.add((place.computation, instruction.name))
    return any(_by_device(name, place, program, seen) for name in instruction.operands)
