"""Rules for the fields of a configuration, and the one function that applies them.

The room that reads a configuration says what it accepts: its RULES give, by dotted field, the names
to choose from or the `Range` of a number. Every number has a rule.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_collections

from dinov2_jax.config.files import ConfigError, leaves, local_path, nearest


@dataclass(frozen=True)
class Range:
    """The numbers that a field, or each item of a tuple, may be: finite, from `low` to `high`.

    Attributes:
      ordered: the field is a pair (low, high), the first not above the second.
    """

    low: float = -math.inf
    high: float = math.inf
    ordered: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with a value; "" if nothing is."""
        numbers = value if isinstance(value, tuple) else (value,)
        inside = all(math.isfinite(x) and self.low <= x <= self.high for x in numbers)
        if inside and not (self.ordered and numbers[0] > numbers[-1]):
            return ""
        bounded = self.high != math.inf
        if self.ordered:
            nearby = tuple(sorted(min(self.high, max(self.low, x)) for x in numbers))
            limit = f" <= {self.high}" if bounded else ""
            return f"needs {self.low} <= low <= high{limit}, such as {nearby}"
        limit = "finite" if self.low == -math.inf else f"at least {self.low}"
        limit = f"from {self.low} to {self.high}" if bounded else limit
        return f"{'every number ' if isinstance(value, tuple) else ''}must be {limit}"


Rules = Mapping[str, Range | tuple[str, ...]]

TINY = 1e-9  # stands for "more than 0"
COUNT = Range(1)
COUNT_OR_NONE = Range(0)
SHARE = Range(0, 1)
POSITIVE = Range(TINY)

# How the processes of a run find each other: fields of every task that runs in several.
DISTRIBUTED: Rules = {
    "distributed.processes": Range(-1),
    "distributed.process_id": Range(-1),
    "distributed.heartbeat_s": COUNT,
}


def check_values(config: ml_collections.ConfigDict, rules: Rules) -> None:
    """Refuses a field whose value is not among the names, or not in the range, of its rule.

    URLs are refused in any field.

    Raises:
      ConfigError: naming the field, the value and what would be accepted.
    """
    for name, value in leaves(config).items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                local_path(text, f"config.{name}")
        rule = rules.get(name, ())
        if isinstance(rule, Range):
            if problem := rule.problem(value):
                raise ConfigError(f"config.{name} is {value}, but {problem}")
        elif rule and value not in rule:
            options = [option for option in rule if option]
            raise ConfigError(
                f"config.{name} is {value!r}; did you mean {nearest(str(value), options)!r}? "
                f"(one of {', '.join(options)})"
            )


def check_distributed(settings: Mapping[str, Any]) -> None:
    """Refuses `config.distributed` that contradicts itself; called before JAX looks for devices.

    Raises:
      ConfigError: naming the field and a value that works.
    """
    fields = ("coordinator", "processes", "process_id")
    coordinator, processes, process_id = (settings[name] for name in fields)
    if problem := COUNT.problem(settings["heartbeat_s"]):
        raise ConfigError(
            f"config.distributed.heartbeat_s is {settings['heartbeat_s']}, but {problem}"
        )
    if coordinator in ("auto", "none"):
        if processes != -1 or process_id != -1:
            raise ConfigError(
                f"config.distributed.processes {processes} and process_id {process_id} need a "
                "coordinator; add --config.distributed.coordinator=<host of process 0>:<port>"
            )
        return
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"config.distributed.coordinator is {coordinator!r}, but must be auto, none or "
            "host:port, such as 10.0.0.1:8476"
        )
    if processes < 1 or not 0 <= process_id < processes:
        raise ConfigError(
            f"config.distributed.process_id is {process_id} of {processes} processes; with a "
            "coordinator both are needed: config.distributed.processes=N, and process_id from 0 "
            "to N - 1"
        )
