"""What all benchmarks share: flags, then cases of our side against peers, then a table."""

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinov2_jax.bench import report
from dinov2_jax.bench.duel import Contender, Parity, Record, run_case
from dinov2_jax.bench.harness import BenchError
from dinov2_jax.errors import UserError

# {peer: (its function below dinov2_jax.bench, settings that only this peer gets)}
Peers = Mapping[str, tuple[str, Mapping[str, Any]]]
# {flag: (default, help)}, or (default, help, choices). The type follows from the default: a list
# takes several values, False is a switch.
Flags = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Case:
    """One line of the table per peer.

    Attributes:
      settings: what both sides get.
      parity: raises BenchError if the results of the two sides differ.
      items, unit: what one repetition works through, such as 8 and "images".
      check_settings: settings of the comparison, if it needs others than the timing.
      ours: the function of our side.
      record: more entries of the JSON record.
      summary: a text that is printed above the table.
    """

    title: str
    settings: Mapping[str, Any]
    parity: Parity
    items: int
    unit: str
    check_settings: Mapping[str, Any] | None = None
    ours: str = "side"
    record: Mapping[str, Any] = field(default_factory=dict)
    summary: Callable[[Record], str] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its command line.

    Attributes:
      name: of the module, and of ours/<name>.py.
      cases: (arguments, a temporary folder) -> the cases.
      defaults: other defaults of the flags that all benchmarks have.
    """

    name: str
    doc: str | None
    peers: Peers
    flags: Flags
    cases: Callable[[argparse.Namespace, Path], Iterable[Case]]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def main(self) -> int:
        """Runs the command line; returns the exit status."""
        flags = report.parser(self.doc or "", list(self.peers), **self.defaults)
        add_flags(flags, self.flags)
        args = flags.parse_args()
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                cases = list(self.cases(args, folder))
            except (BenchError, UserError) as error:
                raise SystemExit(f"error: {error}") from error
            rules = report.prepare(args)
            records = [self._measure(case, args.peers, rules) for case in cases]
        return report.finish(self.name, args, records)

    def _measure(self, case: Case, peers: Iterable[str], rules: report.Rules) -> Record:
        ours, theirs = self.contenders(case, peers)
        record = run_case(
            case.title, ours, theirs, case.parity, rules, items=case.items, unit=case.unit
        )
        if case.summary:
            print(case.summary(record))
        return record | dict(case.record)

    def contenders(self, case: Case, peers: Iterable[str]) -> tuple[Contender, list[Contender]]:
        """Our side of a case, and its peers."""
        mine = f"dinov2_jax.bench.ours.{self.name}:{case.ours}"
        ours = Contender("ours", mine, case.settings, case.check_settings)
        theirs = []
        for name in peers:
            function, more = self.peers[name]
            check = case.check_settings and {**case.check_settings, **more}
            target = f"dinov2_jax.bench.{function}"
            theirs.append(Contender(name, target, {**case.settings, **more}, check))
        return ours, theirs


def add_flags(parser: argparse.ArgumentParser, flags: Flags) -> None:
    """Adds `--flag` for each entry, see `Flags`."""
    for name, (default, text, *choices) in flags.items():
        if default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
            continue
        several = isinstance(default, list)
        parser.add_argument(
            f"--{name}",
            default=default,
            type=type(default[0] if several else default),
            nargs="+" if several else None,
            choices=choices[0] if choices else None,
            help=text,
        )
