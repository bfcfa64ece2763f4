"""The messages between devices of a compiled program, read from its HLO text.

A collective inside a loop counts as often as the loop runs; XLA writes the trip counts of
`lax.scan` into the program.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dinov2_jax.plan.hlo import Instruction, Part, read_program
from tests.plan.hlo import Place, Program, is_own_share, origin

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction.

    Attributes:
      kind: one of KINDS.
      parts: the whole arrays: the result of an all-gather, the inputs of the others.
      times: how often it runs in a step.
      op_name: its origin, as JAX names it.
      gathers: an all-reduce in which each device gives its own share and zeros for the rest.
      groups: the devices that exchange with each other, by their place in the mesh; for
        collective-permute, pairs of sender and receiver. Empty: all of them.
    """

    kind: str
    parts: tuple[Part, ...]
    times: int
    op_name: str
    gathers: bool = False
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def wire_bytes(self) -> int:
        """What each device sends in a step, by a ring of many devices."""
        passes = 2 if self.kind == "all-reduce" else 1  # reduce-scatter and all-gather
        return self.times * passes * sum(part.bytes for part in self.parts)

    def seconds(self, machines: Sequence[int], link: float, network: float = math.inf) -> float:
        """Time on the wire in a step at full rate.

        A machine's members of a group share its network; each uses a ring of its own.

        Args:
          machines: the machine of each device, in the order of the mesh.
          link, network: bytes/s in one direction inside a machine, and of each device's share of
            the network between machines.
        """
        rate = link
        for group in self.groups or (range(len(machines)),):
            members = Counter(machines[device] for device in group)
            if len(members) > 1:
                rate = min(rate, min(members.values()) * network)
        return self.wire_bytes / rate


def read_collectives(hlo: str) -> list[Collective]:
    """All collectives that a step runs. hlo: `compiled.as_text()`."""
    program = read_program(hlo)
    return list(_walk(Place(program.entry), 1, _each_once(program.computations)))


# ------------------------------------------------------------------------------- reading
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def _each_once(program: Program) -> Program:
    """Without the parts of a message that a TPU passes on from fusion to fusion.

    It starts in one with the custom call AsyncCollectiveStart; those after it, among the products
    that it travels beside, and the one in which it ends repeat the instruction with its channel.
    """
    starts = {
        (name, started)
        for name, body in program.items()
        for i in body.values()
        if '"AsyncCollectiveStart"' in i.rest
        for started in i.operands
    }
    channels = {_channel(program[name].get(started)) for name, started in starts} - {None}

    def body_without(name: str) -> Mapping[str, Instruction]:
        body = program[name].items()
        return {k: i for k, i in body if _channel(i) not in channels or (name, k) in starts}

    return {name: body_without(name) for name in program} if channels else program


def _channel(instruction: Instruction | None) -> str | None:
    """The channel of a collective, None for others."""
    if instruction is None or instruction.opcode.removesuffix("-start") not in KINDS:
        return None
    found = _CHANNEL.search(instruction.rest)
    return found[1] if found else None


def _walk(place: Place, times: int, program: Program) -> Iterator[Collective]:
    for instruction in program.get(place.computation, {}).values():
        kind = instruction.opcode.removesuffix("-start")
        if kind in KINDS:
            yield from _collectives(kind, instruction, times, place, program)
            continue
        runs = times
        if instruction.opcode == "while":
            runs *= _trip_count(instruction, program)
        for called in instruction.called:
            found = _walk(place.inside(instruction, called), runs, program)
            yield from _as_reduce_scatter(found) if _scatters(program.get(called, {})) else found


def _trip_count(loop: Instruction, program: Program) -> int:
    """What XLA found, or the bound in `i < bound` by what a turn adds to i; 1 if neither is there.

    A TPU's rings of 16 shares pass two of them on in each direction in a turn: i grows by 2.
    """
    known = _TRIP_COUNT.search(loop.rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    inside = program.get(condition[1], {}) if condition else {}
    bounds = [n for n in map(_constant, inside.values()) if n is not None]
    compare = next((i for i in inside.values() if "direction=LT" in i.rest), None)
    if compare is None or len(bounds) != 1:
        return 1
    return math.ceil(bounds[0] / _increment(loop, inside.get(compare.operands[0]), program))


def _increment(loop: Instruction, counter: Instruction | None, program: Program) -> int:
    """What the loop's body adds to its counter, an element of what it carries; 1 if not found."""
    body = re.search(r"body=%?([\w.\-]+)", loop.rest)
    element = re.search(r"index=(\d+)", counter.rest) if counter else None
    results = [i for i in program.get(body[1], {}).values() if i.root] if body else []
    if not element or not results or results[0].opcode != "tuple":
        return 1
    assert body is not None
    found = origin(results[0].operands[int(element[1])], Place(body[1]), program)
    if found is None or found[0].opcode != "add":
        return 1
    terms = [origin(name, found[1], program) for name in found[0].operands]
    steps = [_constant(term[0]) for term in terms if term is not None]
    return next((step for step in steps if step), 1)


def _constant(instruction: Instruction) -> int | None:
    whole = instruction.type.startswith(("s32", "u32"))
    return int(instruction.arguments) if instruction.opcode == "constant" and whole else None


def _collectives(
    kind: str, instruction: Instruction, times: int, place: Place, program: Program
) -> Iterator[Collective]:
    """One instruction; an all-reduce of gradients and of own shares together is told as two."""
    parts, operands = instruction.parts, instruction.operands
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # An asynchronous start returns (what it was given, the result, ...).
        parts = parts[len(operands) : 2 * len(operands)]
    if kind == "reduce-scatter":
        types = program[place.computation]
        given = [part for name in operands if name in types for part in types[name].parts]
        parts = tuple(given) or parts
    origin = re.search(r'op_name="([^"]*)"', instruction.rest)
    gathered = [False] * len(parts)
    if kind == "all-reduce" and len(operands) == len(parts):
        gathered = [is_own_share(name, place, program) for name in operands]
    for gathers in (True, False):
        own = tuple(part for part, g in zip(parts, gathered, strict=True) if g == gathers)
        if own:
            name, groups = origin[1] if origin else "", _groups(instruction.rest)
            yield Collective(kind, own, times, name, gathers, groups)


_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_IOTA = re.compile(rf"replica_groups=\[(\d+),(\d+)\]<={_ORDER}")
_MESH = re.compile(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_ORDER}\))? \{{([^}}]*)\}}")


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    """Three ways to write them; () where there is none, or a fourth.

    {{0,1},{2,3}}. [2,2]<=[4]: 0 to 3 in two rows of two; T transposes before they are cut.
    mesh['a'=2,'b'=2] {'b'}: along 'b'; with device_ids=([2,2]T(1,0)) of devices in that order.
    """
    if found := _LISTED.search(rest):
        return tuple(_numbers(group) for group in re.findall(r"\{([\d,]*)\}", found[1]))
    if found := _IOTA.search(rest):
        rows = _ordered(found[3], found[4]).reshape(int(found[1]), int(found[2]))
        return tuple(map(tuple, rows.tolist()))
    if found := _MESH.search(rest):
        axes = {name: int(n) for name, n in re.findall(r"'([^']*)'=(\d+)", found[1])}
        devices = _ordered(found[2] or str(math.prod(axes.values())), found[3])
        along = [list(axes).index(name) for name in re.findall(r"'([^']*)'", found[4])]
        last = np.moveaxis(devices.reshape(*axes.values()), along, range(-len(along), 0))
        rows = last.reshape(-1, math.prod(last.shape[len(axes) - len(along) :]))
        return tuple(map(tuple, rows.tolist()))
    return ()


def _ordered(dims: str, transposed: str | None) -> np.ndarray:
    """0, 1, 2 ... as an array of `dims`, transposed."""
    shape = _numbers(dims)
    order = _numbers(transposed) if transposed else range(len(shape))
    return np.arange(math.prod(shape)).reshape(shape).transpose(tuple(order))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _scatters(body: Mapping[str, Instruction]) -> bool:
    """A TPU's reduce-scatter is a fusion of an all-reduce and the slice of its own share."""
    opcodes = {instruction.opcode for instruction in body.values()}
    return {"all-reduce", "dynamic-slice"} <= opcodes


def _as_reduce_scatter(found: Iterator[Collective]) -> Iterator[Collective]:
    for collective in found:
        reduces = collective.kind == "all-reduce" and not collective.gathers
        kind = "reduce-scatter" if reduces else collective.kind
        yield dataclasses.replace(collective, kind=kind)
