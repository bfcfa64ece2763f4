"""One benchmark case: our side against every peer, parity first, then the turns; one record."""

import dataclasses
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dinov2_jax.bench.harness import (
    Arrays,
    BenchError,
    Measured,
    MissingPeer,
    Worker,
    calibrate,
    ratios,
    take_turns,
)

Parity = Callable[[Arrays, Arrays], dict[str, float]]
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A side to be started.

    Attributes:
      name: as --peers and the table have it.
      target: "module:function", see harness.py.
      settings: arguments of the function.
      check_settings: settings of a second pair of processes for the comparison, if it needs
        others (no randomness, fp32); None: the timed processes are compared.
    """

    name: str
    target: str
    settings: Mapping[str, Any]
    check_settings: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Rules:
    """How long a case is measured: turns a side, seconds a turn, and the CPU cores of both."""

    rounds: int
    turn_s: float
    cores: tuple[int, ...]


def say(text: str) -> None:
    """Prints progress on standard error; standard output has only the table."""
    print(text, file=sys.stderr, flush=True)


def run_case(
    title: str,
    ours: Contender,
    peers: Sequence[Contender],
    parity: Parity,
    rules: Rules,
    *,
    items: int,
    unit: str,
) -> Record:
    """Measures `ours` against each of `peers`.

    Args:
      title: name of the case, such as "ViT-S/14 224 px B=8 float32".
      parity: raises BenchError if two sets of results differ.
      items, unit: what one repetition processes, such as 8 and "images".

    Returns:
      A record for JSON: {"case", "items", "unit", "pairs": [...]}, one pair a peer. A peer that is
      not installed, fails, or gives other results has "skipped" or "error" instead of times. If
      none was measured and our side has parts, "alone" is our side's record.
    """
    record: Record = {"case": title, "items": items, "unit": unit, "pairs": []}
    apart = ours.check_settings is not None
    expected = _results(ours, rules) if apart else {}
    say(f"{title}: setting up and compiling {ours.name}")
    with Worker(ours.name, ours.target, ours.settings, rules.cores) as mine:
        measured = mine.setup()
        expected = expected or mine.ask("check")
        calibrated, compared = False, False
        for peer in peers:
            pair: Record = {"peer": peer.name}
            record["pairs"].append(pair)
            try:
                if apart:
                    pair["parity"] = parity(expected, _results(peer, rules))
                say(f"{title}: setting up and compiling {peer.name}")
                with Worker(peer.name, peer.target, peer.settings, rules.cores) as theirs:
                    other = theirs.setup()
                    if not apart:
                        pair["parity"] = parity(expected, theirs.ask("check"))
                    if not calibrated:
                        calibrate(mine, measured, rules.turn_s)
                        calibrated = True
                    calibrate(theirs, other, rules.turn_s)
                    pair |= _measure((mine, measured), (theirs, other), rules, title)
                    compared = True
            except MissingPeer as error:
                pair["skipped"] = str(error)
                say(f"{title}: skipped: {error}")
            except BenchError as error:
                pair["error"] = str(error)
                say(f"{title}: error: {error}")
        if measured.parts_s and not compared:
            if not calibrated:
                calibrate(mine, measured, rules.turn_s)
            record["alone"] = _measure_alone(mine, measured, rules, title)
    return record


def _results(side: Contender, rules: Rules) -> Arrays:
    """The results of a side with its settings for the comparison, in a process of its own."""
    say(f"checking {side.name}")
    with Worker(side.name, side.target, side.check_settings or {}, rules.cores) as worker:
        worker.ask("setup")
        return worker.ask("check")


def _measure(
    ours: tuple[Worker, Measured], theirs: tuple[Worker, Measured], rules: Rules, title: str
) -> Record:
    """The turns of one pair, as a record."""
    load_before = _load()
    ours_s, peer_s = take_turns(
        (ours, theirs), rules.rounds, progress=lambda text: say(f"{title}: {text}")
    )
    return {
        "ratio": ratios(ours_s, peer_s),
        "load_average": [load_before, _load()],
        "ours": _side_record(ours[1], ours_s),
        "theirs": _side_record(theirs[1], peer_s),
    }


def _measure_alone(worker: Worker, measured: Measured, rules: Rules, title: str) -> Record:
    """Turns of our side without a peer."""
    turns = take_turns(
        [(worker, measured)], rules.rounds, progress=lambda text: say(f"{title}: {text}")
    )
    return _side_record(measured, turns[0])


def _side_record(measured: Measured, turns_s: Sequence[float]) -> Record:
    """A side of a pair: times of one repetition, the memory of this pair's turns.

    A part also has the ratio of its time to that of the whole in the same turn.
    """
    record = dataclasses.asdict(measured)
    cpu_s = record.pop("cpu_s")[-len(turns_s) :]
    recent = {name: part[-len(turns_s) :] for name, part in record.pop("parts_s").items()}
    parts = {
        name: {
            "turns_s": part_s,
            "median_s": statistics.median(part_s),
            "ratio": ratios(turns_s, part_s),
        }
        for name, part_s in recent.items()
    }
    return (
        record
        | ({"parts": parts} if parts else {})
        | {
            "turns_s": list(turns_s),
            "median_s": statistics.median(turns_s),
            "least_s": min(turns_s),
            "cpu_s": statistics.median(cpu_s),
        }
    )


def _load() -> float | None:
    """Load average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
