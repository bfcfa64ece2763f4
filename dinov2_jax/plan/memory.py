"""Bytes on each device, from the shardings and from the compiler."""

import math
import re
from typing import Any, NamedTuple

import jax

from dinov2_jax.train.setup import Family, Run


class Memory(NamedTuple):
    """Bytes on each device while a step runs; the first five from shapes and shardings."""

    student: int = 0
    teacher: int = 0
    optimizer: int = 0
    other_state: int = 0
    batch: int = 0
    layout: int = 0  # what the compiler's layout adds (a TPU pads to tiles), and the metrics
    temporaries: int = 0  # activations, gradients and all else that exists only inside a step
    code: int = 0

    @property
    def state(self) -> int:
        return self.student + self.teacher + self.optimizer + self.other_state

    @property
    def total(self) -> int:
        return sum(self)


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of ShapeDtypeStruct with shardings, on each device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def argument_memory(run: Run | Family, batch: Any) -> Memory:
    """The part of `Memory` that is known before compiling; a frozen teacher counts as teacher.

    Args:
      batch: abstract batch with shardings.
    """
    states = run.abstract_state
    of_each = states.values() if isinstance(states, dict) else [states]
    parts = ("student", "teacher", "opt_state")
    held = [shard_bytes([getattr(state, part) for state in of_each]) for part in parts]
    other = shard_bytes(states) - sum(held)
    held[1] += shard_bytes(run.frozen)
    return Memory(*held, other, shard_bytes(batch))


def compiled_memory(arguments: Memory, compiled: Any) -> Memory:
    """Completes `arguments` by what the compiler reports. compiled: jax.stages.Compiled."""
    stats = compiled.memory_analysis()
    # The state is donated: its successor takes its place, and only the metrics are new.
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return arguments._replace(
        layout=stats.argument_size_in_bytes - arguments.total + results,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The TPU compiler states either all that it needs or its temporaries only.
_OUT_OF_MEMORY = re.compile(r"(Used|temporaries) \(?([\d.]+)([KMGT]?)(?: of \S+ hbm|\))")


def missing_memory(arguments: Memory, error: BaseException) -> Memory | None:
    """Completes `arguments` by what a compiler that ran out of memory says it needs.

    Returns:
      None when the error is another one or names no size.
    """
    text = str(error)
    found = _OUT_OF_MEMORY.search(text) if "RESOURCE_EXHAUSTED" in text else None
    if found is None:
        return None
    size = int(float(found[2]) * _UNITS[found[3]])
    temporaries = max(size - arguments.total, 0) if found[1] == "Used" else size
    return arguments._replace(temporaries=temporaries)
