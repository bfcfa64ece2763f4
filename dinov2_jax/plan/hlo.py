"""Bytes that the kernels of a compiled program move, read from its text.

A kernel is an instruction that the device runs: a fusion, a call of a library, a copy, a sort.
Instructions inside a fusion stay in registers, and bitcasts, tuples and parameters move nothing. A
kernel reads its operands and writes its result. Four cases read or write less:

- A fusion that only slices or gathers from an operand reads what it slices or gathers.
- An update in place (dynamic-update-slice, scatter) moves the update alone.
- The work space of a library (s8[], u8[]) is neither read nor written.
- Arrays in a memory of their own, such as a TPU's VMEM, are not in the chip's main memory; only the
  copies to and from there count.

A loop counts as often as it runs, and a conditional as its branch with the most bytes. Each kernel
reads from memory even if the one before left its result in the L2 cache, and what a TPU's tiles pad
is left out: this is a model of traffic, not a measurement.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ASSIGNMENT = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_SPACE = re.compile(r"S\([1-9]\d*\)")  # of a layout: not the main memory
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")

# They move nothing: names for parts of memory, and the second halves of asynchronous pairs.
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "opt-barrier",
    "partition-id", "replica-id", "domain", "add-dependency", "iota",
}  # fmt: skip
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast")  # of a TPU: names for parts of memory
_WORK_SPACE = ("s8", "u8")
_SLICES = ("slice", "dynamic-slice", "gather")
_STARTS = ("copy-start", "slice-start", "collective-permute-start")


class Part(NamedTuple):
    """One array of a type: f32[8,128] is Part("f32", (8, 128))."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        if self.dtype == "token":
            return 0
        bits = 8 if self.dtype == "pred" else int((re.search(r"\d+", self.dtype) or ["0"])[0])
        return math.prod(self.shape) * bits // 8


class Instruction(NamedTuple):
    """One line of a program. `root`: what its computation returns."""

    name: str
    type: str
    opcode: str
    arguments: str  # the text in its brackets
    rest: str  # attributes
    root: bool = False

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays that it returns, of a tuple in their order."""
        found = _ARRAY.findall(self.type)
        return tuple(Part(d, tuple(int(n) for n in s.split(",") if n)) for d, s, _ in found)

    @property
    def in_memory(self) -> tuple[bool, ...]:
        """Whether each part is in the chip's main memory."""
        return tuple(not _SPACE.search(layout) for _, _, layout in _ARRAY.findall(self.type))

    @property
    def memory_bytes(self) -> int:
        """Size of what the result has in main memory."""
        pairs = zip(self.parts, self.in_memory, strict=True)
        return sum(part.bytes for part, inside in pairs if inside)

    @property
    def operands(self) -> list[str]:
        """Names of what it is given."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def bytes(self) -> int:
        """Size of the result; a tuple counts whole."""
        return sum(part.bytes for part in self.parts)

    @property
    def target(self) -> str:
        """The library function of a custom call, else ""."""
        found = _TARGET.search(self.rest)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """The scope in which JAX traced it, such as jit(f)/jvp(Model)/norm/add."""
        found = _OP_NAME.search(self.rest)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        branches = _BRANCHES.search(self.rest)
        listed = [name.strip(" %") for name in branches[1].split(",")] if branches else []
        return _CALLED.findall(self.rest) + listed


Computation = Mapping[str, Instruction]


class Program(NamedTuple):
    """Computations by name, the one that is run, and the source of each stack frame."""

    computations: Mapping[str, Computation]
    entry: str
    sources: Mapping[int, tuple[str, str]]  # frame -> (file, function)

    def source(self, instruction: Instruction) -> tuple[str, str]:
        """File and function that traced an instruction; ("", "") if unknown."""
        found = _FRAME.search(instruction.rest)
        return self.sources.get(int(found[1]), ("", "")) if found else ("", "")


class Kernel(NamedTuple):
    """An instruction that the device runs, how often, and the bytes of each run."""

    instruction: Instruction
    times: int
    read: int
    written: int

    @property
    def bytes(self) -> int:
        return self.times * (self.read + self.written)


def read_program(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    found: dict[str, dict[str, Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = header[2]
            found[current] = {}
            entry = current if header[1] else entry
        elif current and (instruction := _read_line(line)):
            found[current][instruction.name] = instruction
    return Program(found, entry, _read_sources(text))


def _read_line(line: str) -> Instruction | None:
    assigned = _ASSIGNMENT.match(line)
    if not assigned:
        return None
    start = assigned.end()
    type_end = _closing(line, start) if line[start] == "(" else line.find(" ", start)
    opcode = _OPCODE.match(line, type_end)
    if not opcode:
        return None
    end = _closing(line, opcode.end() - 1)
    arguments, kind = line[opcode.end() : end - 1], line[start:type_end]
    return Instruction(assigned[2], kind, opcode[1], arguments, line[end:], bool(assigned[1]))


def _closing(line: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[position], 0)
        if depth == 0:
            return position + 1
    return len(line)


def _read_sources(text: str) -> dict[int, tuple[str, str]]:
    """Frame -> (file, function) from the tables at the top of the text."""
    tables: dict[str, dict[int, str]] = {}
    current: dict[int, str] = {}
    for line in text.splitlines():
        if _HEADER.match(line):
            break
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            current = tables[line] = {}
        elif found := re.match(r'(\d+) "?(.*?)"?$', line):
            current[int(found[1])] = found[2]
    locations = tables.get("FileLocations", {})
    sources = {}
    for frame, row in tables.get("StackFrames", {}).items():
        place = locations.get(_number(row, "file_location_id"), "")
        file = tables["FileNames"].get(_number(place, "file_name_id"), "")
        sources[frame] = file, tables["FunctionNames"].get(_number(place, "function_name_id"), "")
    return sources


def _number(text: str, name: str) -> int:
    found = re.search(rf"{name}=(\d+)", text)
    return int(found[1]) if found else -1


def kernels(program: Program, computation: str = "", times: int = 1) -> Iterator[Kernel]:
    """All kernels that a run of the program starts, those of loops once with their trips."""
    instructions = program.computations[computation or program.entry]
    for instruction in instructions.values():
        opcode = instruction.opcode
        if opcode == "while":
            (body,) = instruction.called
            yield from kernels(program, body, times * _trips(program, instruction))
        elif opcode in ("call", "conditional", "async-start"):
            branches = [list(kernels(program, name, times)) for name in instruction.called]
            yield from max(branches, key=lambda found: sum(k.bytes for k in found), default=[])
        elif not _moves_nothing(instruction):
            yield _kernel(program, instructions, instruction, times)


def _trips(program: Program, loop: Instruction) -> int:
    """Turns of a loop: what XLA wrote down, or else the constant that a counter stays below."""
    known, condition = _TRIPS.search(loop.rest), _CONDITION.search(loop.rest)
    if known:
        return int(known[1])
    inside = program.computations.get(condition[1], {}) if condition else {}
    root = next((i for i in inside.values() if i.root), None)
    if root is None or root.opcode != "compare" or "direction=LT" not in root.rest:
        return 1
    limit = inside.get(root.operands[-1])
    return int(limit.arguments) if limit and limit.opcode == "constant" else 1


def _moves_nothing(instruction: Instruction) -> bool:
    opcode = instruction.opcode
    return opcode in _FREE or opcode.endswith("-done") or instruction.target in _FREE_TARGETS


def _kernel(program: Program, around: Computation, instruction: Instruction, times: int) -> Kernel:
    sizes = [around[name].memory_bytes for name in instruction.operands]
    if instruction.opcode == "fusion":
        return Kernel(instruction, times, *_fusion_bytes(program, instruction, sizes))
    written = instruction.memory_bytes
    if instruction.opcode == "custom-call":
        pairs = zip(instruction.parts, instruction.in_memory, strict=True)
        written = sum(x.bytes for x, here in pairs if here and x.dtype not in _WORK_SPACE)
    elif instruction.opcode in _STARTS:
        # It returns the original and the copy, in one order or the other, and flags.
        moved = min(part.bytes for part in instruction.parts[:2])
        ends = moved * sum(instruction.in_memory[:2])
        read = moved if sizes[0] else 0
        return Kernel(instruction, times, read, ends - read)
    elif instruction.opcode in _SLICES:
        moved = instruction.bytes if sizes[0] else 0
        return Kernel(instruction, times, moved, written)
    elif instruction.opcode == "dynamic-update-slice":
        return Kernel(instruction, times, sizes[1], sizes[1])
    return Kernel(instruction, times, sum(sizes), written)


def _fusion_bytes(program: Program, fusion: Instruction, sizes: list[int]) -> tuple[int, int]:
    """Bytes that a fusion reads and writes; sizes: of its operands."""
    inside = program.computations[fusion.called[0]]
    written = 0
    for position, result in enumerate(_results(inside)):
        if all(fusion.in_memory[position : position + 1]):
            written += _written(inside, result)
    read = sum(part * sizes[n] for n, part in _shares_read(program, inside).items())
    return round(read), written


def _results(inside: Computation) -> list[Instruction]:
    root = next(i for i in inside.values() if i.root)
    return [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _shares_read(program: Program, inside: Computation) -> dict[int, float]:
    """The share of each parameter that a fusion needs to compute its results."""
    share = dict.fromkeys(inside, 0.0)
    share.update((result.name, 1.0) for result in _results(inside))
    for instruction in reversed(inside.values()):
        inner: dict[int, float] = {}
        if instruction.opcode == "fusion":  # a TPU's fusions have fusions inside
            inner = _shares_read(program, program.computations[instruction.called[0]])
        for position, name in enumerate(instruction.operands):
            if name in share:
                part = inner.get(position, _part_read(inside, instruction, position))
                share[name] = min(1.0, share[name] + part * share[instruction.name])
    return {int(i.arguments): share[i.name] for i in inside.values() if i.opcode == "parameter"}


def _written(inside: Computation, result: Instruction) -> int:
    """Bytes that a result of a fusion writes: an update in place writes just the update."""
    while result.opcode == "bitcast" and result.operands[0] in inside:
        result = inside[result.operands[0]]
    if result.opcode == "parameter":
        return 0
    updates = {"dynamic-update-slice": 1, "scatter": 2}
    if result.opcode in updates:
        return inside[result.operands[updates[result.opcode]]].bytes
    return result.bytes


def _part_read(inside: Computation, instruction: Instruction, position: int) -> float:
    """The share of an operand that an instruction needs to compute its whole result."""
    size = inside[instruction.operands[position]].bytes
    if position == 0 and instruction.opcode in _SLICES:
        elements = instruction.bytes
    elif position == 0 and instruction.opcode == "dynamic-update-slice":
        elements = 0
    elif position == 0 and instruction.opcode == "scatter":  # it adds to what is there
        elements = inside[instruction.operands[2]].bytes
    else:
        return 1.0
    return min(1.0, elements / size) if size else 0.0
