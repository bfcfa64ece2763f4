"""Rules for the fields of a configuration, and the one function that applies them.

The room that reads a configuration says what it accepts: its RULES give, by dotted field, the names
to choose from or the `Range` of a number. Every number has a rule.
"""

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
      empty: () has a meaning too. In all other tuples, fields with a rule or without, it has none.
    """

    low: float
    high: float
    ordered: bool = False
    empty: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with a value; "" if nothing is."""
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(x, int | float) for x in numbers):
            return "must be a number"
        if not numbers and not self.empty:
            return f"needs one number or more, such as ({max(self.low, 1)},)"
        if self.ordered and len(numbers) != 2:
            return f"needs two numbers, such as {(self.low, self.high)}"
        inside = all(self.low <= x <= self.high for x in numbers)
        if inside and not (self.ordered and numbers[0] > numbers[-1]):
            return ""
        if self.ordered:
            nearby = tuple(sorted(min(self.high, max(self.low, x)) for x in numbers))
            if nearby[0] == nearby[-1]:
                nearby = (self.low, self.high)
            return f"needs {self.low} <= low <= high <= {self.high}, such as {nearby}"
        limit = f"from {self.low} to {self.high}"
        if self.high > 1:  # shares have two bounds that matter, other numbers one at a time
            above = any(x > self.high for x in numbers)
            limit = f"at most {self.high}" if above else f"at least {self.low}"
        return f"{'every number ' if isinstance(value, tuple) else ''}must be {limit}"


@dataclass(frozen=True)
class Names:
    """A tuple of names, or (), which the room that reads them checks itself."""


MOST = 2**31 - 1  # int32, which counts on devices and in XLA's shapes

Rules = Mapping[str, Range | Names | tuple[str, ...]]

COUNT = Range(1, MOST)
COUNT_OR_NONE = Range(0, MOST)
SHARE = Range(0, 1)
SEED = Range(0, 2**63 - 1)
BATCH = Range(1, 2**20)  # pictures that are computed together
SIDE = Range(1, 16384)  # px
PROCESSES = Range(0, 1024)
TEMPERATURE = Range(1e-3, 100)
# A step of AdamW changes a weight by about the rate. With a rate of more than 1 no weight lasts.
RATE = Range(0, 1)
DECAY = Range(0, 10)

# How the processes of a run find each other: fields of every task that runs in several.
DISTRIBUTED: Rules = {
    "distributed.processes": Range(-1, MOST),
    "distributed.process_id": Range(-1, MOST),
    "distributed.heartbeat_s": COUNT,
}


def require_fields(config: ml_collections.ConfigDict, rules: Rules) -> None:
    """Refuses a configuration that is of another task than its `task`, by a ConfigError."""
    fields = leaves(config)
    for name in rules:
        if name not in fields:
            raise ConfigError(
                f"the configuration has no field config.{name}, which config.task="
                f"{config.get('task')} needs; give a --config of this task, without --config.task"
            )


def check_values(config: ml_collections.ConfigDict, rules: Rules) -> None:
    """Refuses a field whose value is not among the names, or not in the range, of its rule.

    URLs are refused in any field, and () where no rule allows it.

    Raises:
      ConfigError: naming the field, the value and what would be accepted; see `require_fields`.
    """
    require_fields(config, rules)
    for name, value in leaves(config).items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str):
                local_path(text, f"config.{name}")
        rule = rules.get(name, ())
        if isinstance(rule, Range):
            if problem := rule.problem(value):
                raise ConfigError(f"config.{name} is {value}, but {problem}")
        elif isinstance(rule, Names):
            continue
        elif value == ():
            raise ConfigError(
                f"config.{name} is (), but needs one value or more; leave it out for its default"
            )
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
