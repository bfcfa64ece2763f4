"""The messages between devices of a compiled program, read from its HLO text.

A collective inside a loop counts as often as the loop runs; XLA writes the trip counts of
`lax.scan` into the program.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Part(NamedTuple):
    """One array of an HLO type: f32[8,128] is Part("f32", (8, 128))."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        bits = 8 if self.dtype == "pred" else int((re.search(r"\d+", self.dtype) or [0])[0])
        return math.prod(self.shape) * bits // 8


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.

    Attributes:
      kind: of KINDS.
      parts: the whole arrays: what an all-gather returns, what the others are given.
      times: how often it runs in a step.
      op_name: where it comes from, as JAX names it.
    """

    kind: str
    parts: tuple[Part, ...]
    times: int
    op_name: str

    @property
    def wire_bytes(self) -> int:
        """What each device sends in a step, by a ring of many devices."""
        passes = 2 if self.kind == "all-reduce" else 1  # reduce-scatter and all-gather
        return self.times * passes * sum(part.bytes for part in self.parts)


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str  # operands and attributes


def read_collectives(hlo: str) -> list[Collective]:
    """All collectives that a step runs. hlo: `compiled.as_text()`."""
    computations, entry = _computations(hlo)
    return list(_walk(entry, 1, computations))


# ------------------------------------------------------------------------------- reading
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ASSIGNMENT = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


def _computations(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    found: dict[str, list[_Instruction]] = {}
    entry, current = "", ""
    for line in hlo.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[2]
            found[current] = []
            entry = current if header[1] else entry
        elif current and (assigned := _ASSIGNMENT.match(line)):
            type_end = _end_of_type(line, assigned.end())
            opcode = _OPCODE.match(line, type_end)
            if opcode:
                text = line[assigned.end() : type_end], opcode[1], line[opcode.end() :]
                found[current].append(_Instruction(assigned[1], *text))
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


def _walk(
    name: str, times: int, computations: dict[str, list[_Instruction]]
) -> Iterator[Collective]:
    instructions = computations.get(name, [])
    types = {instruction.name: instruction.type for instruction in instructions}
    for instruction in instructions:
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            yield _collective(kind, instruction, times, types)
            continue
        runs = times
        if instruction.opcode == "while":
            runs *= _trip_count(instruction, computations)
        for called in _called(instruction):
            inner = computations.get(called, [])
            if _is_reduce_scatter(inner):
                yield from _as_reduce_scatter(called, runs, computations)
            else:
                yield from _walk(called, runs, computations)


def _called(instruction: _Instruction) -> list[str]:
    branches = _BRANCHES.search(instruction.rest)
    listed = [name.strip(" %") for name in branches[1].split(",")] if branches else []
    return _CALLED.findall(instruction.rest) + listed


def _trip_count(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """What XLA found, or the bound in `i < bound`; 1 if neither is there."""
    known = _TRIP_COUNT.search(loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    body = computations.get(condition[1], []) if condition else []
    bounds = [i.rest for i in body if i.opcode == "constant" and i.type.startswith(("s32", "u32"))]
    less = any("direction=LT" in i.rest for i in body)
    return int(bounds[0].split(")")[0]) if less and len(bounds) == 1 else 1


def _parts(text: str) -> tuple[Part, ...]:
    found = _ARRAY.findall(text)
    return tuple(Part(d, tuple(int(n) for n in s.split(",") if n)) for d, s in found)


def _collective(
    kind: str, instruction: _Instruction, times: int, types: dict[str, str]
) -> Collective:
    parts = _parts(instruction.type)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # An asynchronous start returns (what it was given, the result, ...).
        operands = _operands(instruction)
        parts = parts[len(operands) : 2 * len(operands)]
    if kind == "reduce-scatter":
        given = [part for name in _operands(instruction) for part in _parts(types.get(name, ""))]
        parts = tuple(given) or parts
    origin = re.search(r'op_name="([^"]*)"', instruction.rest)
    return Collective(kind, parts, times, origin[1] if origin else "")


def _operands(instruction: _Instruction) -> list[str]:
    inside = instruction.rest[: _end_of_type("(" + instruction.rest, 0) - 2]
    return re.findall(r"%([\w.\-]+)", inside)


def _is_reduce_scatter(body: list[_Instruction]) -> bool:
    """A TPU's reduce-scatter is a fusion of an all-reduce and the slice of its own share."""
    opcodes = {instruction.opcode for instruction in body}
    return {"all-reduce", "dynamic-slice"} <= opcodes


def _as_reduce_scatter(
    name: str, times: int, computations: dict[str, list[_Instruction]]
) -> Iterator[Collective]:
    for found in _walk(name, times, computations):
        kind = "reduce-scatter" if found.kind == "all-reduce" else found.kind
        yield dataclasses.replace(found, kind=kind)


# ------------------------------------------------------------------------------- meaning
# A reduce-scatter's share is padded to whole tiles: a dimension may have grown by less than this.
_TILE = 128


def purpose(collective: Collective, weights: Collection[tuple[int, ...]]) -> str:
    """One of "weights", "gradients", "statistics" and "activations", judged by shapes alone.

    Scalars and vectors (losses, norms, centres, sums over prototypes, gradients of biases) are
    statistics, but for reductions longer than any vector of the model: a GPU's compiler packs
    gradients into one. What has not the size of a weight either is an activation; one that happens
    to have as many elements as a weight is not told from it.

    Args:
      weights: shapes of the weights, whole, in shares and block by block, `squeeze`d.
    """
    reduces = collective.kind in ("all-reduce", "reduce-scatter")
    shapes = [squeeze(part.shape) for part in collective.parts]
    matrices = [shape for shape in shapes if len(shape) > 1]
    if not matrices:
        longest = max((weight[0] for weight in weights if len(weight) == 1), default=0)
        packed = reduces and any(shape[0] > longest for shape in shapes if shape)
        return "gradients" if packed else "statistics"
    padded = collective.kind == "reduce-scatter"
    if not all(_is_weight(shape, weights, padded) for shape in matrices):
        return "activations"
    return "gradients" if reduces else "weights"


def _is_weight(shape: tuple[int, ...], weights: Collection[tuple[int, ...]], padded: bool) -> bool:
    if any(math.prod(shape) == math.prod(weight) for weight in weights):
        return True
    grown = (w for w in weights if padded and len(w) == len(shape))
    return any(all(0 <= s - n < _TILE for s, n in zip(shape, w, strict=True)) for w in grown)


def squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions above 1, in ascending order: XLA transposes and adds axes as it likes."""
    return tuple(sorted(n for n in shape if n > 1))
