"""FLOPs of a program's matrix products, counted in its jaxpr.

XLA's own cost analysis counts the body of a loop once, so a scanned ViT-L would seem 24 times
cheaper than it is; and it counts nothing on a GPU. Here every scan counts as often as it runs.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.train.setup import abstract_batch, make_objective
from dinov2_jax.train.state import AnyNetworks
from dinov2_jax.train.student_configs import student_configs
from dinov2_jax.train.teacher import planned_teacher


def count_flops(function: Any, *arguments: Any) -> float:
    """FLOPs of all matrix products and convolutions of `function`, 2 a multiply-add.

    Elementwise work and reductions are not counted. A branch counts as its most expensive side, and
    a `while` of unknown length as one turn. Arguments may be `jax.ShapeDtypeStruct`.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def step_flops(config: ConfigDict, teacher: AnyNetworks | None = None) -> dict[str, float]:
    """FLOPs an image of one training step of `config`; remat "auto" counts as "none".

    Args:
      teacher: of a distillation, where its weights are not there yet.

    Returns:
      "model": forward and backward of networks and losses without recomputation, the measure of
      MFU; "executed": with everything that `model.remat` and `prototype_block` compute again.
    """
    plain = _step_flops(config, teacher, remat="none", block=0)
    remat, block = config.model.remat, config.prototype_block
    again = remat not in ("none", "auto") or block
    executed = _step_flops(config, teacher, remat=remat, block=block) if again else plain
    return {"model": plain, "executed": executed}


def _step_flops(
    config: ConfigDict, teacher: AnyNetworks | None, *, remat: str, block: int
) -> float:
    # One group stands for all: FLOPs an image do not depend on their number.
    config = config.copy_and_resolve_references()
    config.batch_size, config.micro_batches = config.group_size, 1
    config.model.remat, config.prototype_block = remat, block
    config.model.attention = "xla"  # whose products can be seen; other kernels do the same work
    configs = student_configs(config)
    teacher = teacher or planned_teacher(config, configs)
    objectives = {name: make_objective(own, teacher) for name, own in configs.items()}
    first = next(iter(objectives.values()))
    size, keys = config.crops.global_size, jax.random.split(jax.random.key(0), 1)
    students, frozen = jax.eval_shape(
        lambda k: (
            {name: own.student.init(k[0], size) for name, own in objectives.items()},
            first.teacher.init(k[0], size),
        ),
        keys,
    )

    def step(students: Any, frozen: Any, batch: Any, keys: Array) -> Any:
        batch = first.prepared(batch)
        # The targets once, whatever the number of students.
        targets, _ = first.targets(frozen, first.init_centers(), batch, jnp.ones(()))
        return {
            name: jax.grad(own.loss, has_aux=True)(params, targets, batch, keys)[0]
            for (name, params), own in zip(students.items(), objectives.values(), strict=True)
        }

    batch = abstract_batch(config, make_mesh(1, devices=jax.devices()[:1]))
    # Colours are no part of the model: the crops are taken as already normalised.
    for name in ("global_crops", "local_crops"):
        batch[name] = batch[name].update(dtype=jnp.float32)
    return count_flops(step, students, frozen, batch, keys) / config.batch_size


def _jaxpr_flops(jaxpr: Any) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_features
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params)]
    return _turns(name, params) * (max(inner, default=0.0) if name == "cond" else sum(inner))


def _turns(name: str, params: dict[str, Any]) -> int:
    """How often the inner programs of an equation run."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return params["mesh"].size
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            inner = getattr(item, "jaxpr", item)  # a ClosedJaxpr holds one
            if hasattr(inner, "eqns"):
                yield inner
