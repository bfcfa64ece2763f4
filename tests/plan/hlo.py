"""Where a value in a compiled program comes from."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dinov2_jax.plan.hlo import Computation, Instruction

# Computation -> name -> instruction, in the program's order.
Program = Mapping[str, Computation]


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
    return int(parameter.arguments)


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
