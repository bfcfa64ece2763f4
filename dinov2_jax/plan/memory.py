"""Bytes on each device, from the shardings and from the compiler."""

import math
import re
from typing import Any, NamedTuple

import jax


class Memory(NamedTuple):
    """Bytes on each device while a step runs.

    Attributes:
      student, teacher, optimizer, other_state, batch: from shapes and shardings.
      layout: what the compiler's layout adds to them (a TPU pads to tiles), and the metrics.
      temporaries: activations, gradients and everything else that exists only inside a step.
      code: the program itself.
    """

    student: int = 0
    teacher: int = 0
    optimizer: int = 0
    other_state: int = 0
    batch: int = 0
    layout: int = 0
    temporaries: int = 0
    code: int = 0

    @property
    def state(self) -> int:
        return self.student + self.teacher + self.optimizer + self.other_state

    @property
    def total(self) -> int:
        return sum(self)


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree of ShapeDtypeStruct with shardings, on each device."""

    def leaf_bytes(leaf: Any) -> int:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.eval_shape(jax.random.key_data, leaf)
            return math.prod(data.shape) * data.dtype.itemsize
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def argument_memory(state: Any, batch: Any) -> Memory:
    """The part of `Memory` that is known before compiling.

    Args:
      state: abstract TrainState; batch: abstract batch, both with shardings.
    """
    parts = {name: shard_bytes(getattr(state, name)) for name in ("student", "teacher")}
    optimizer = shard_bytes(state.opt_state)
    other = shard_bytes(state) - sum(parts.values()) - optimizer
    return Memory(optimizer=optimizer, other_state=other, batch=shard_bytes(batch), **parts)


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
_SIZE = r"([\d.]+)([KMGT]?)"
# The TPU compiler states either all that it needs or its temporaries only.
_OUT_OF_MEMORY = re.compile(rf"Used {_SIZE} of {_SIZE} hbm|temporaries \({_SIZE}\)")


def missing_memory(arguments: Memory, error: BaseException) -> Memory | None:
    """Completes `arguments` by what a compiler that ran out of memory says it needs.

    Returns:
      None when the error is another one or names no size.
    """
    text = str(error)
    sizes = _OUT_OF_MEMORY.search(text) if "RESOURCE_EXHAUSTED" in text else None
    if sizes is None:
        return None
    total, unit, _, _, temporaries, temporaries_unit = sizes.groups()
    if total is None:
        return arguments._replace(temporaries=int(float(temporaries) * _UNITS[temporaries_unit]))
    needed = int(float(total) * _UNITS[unit])
    return arguments._replace(temporaries=max(needed - arguments.total, 0))
