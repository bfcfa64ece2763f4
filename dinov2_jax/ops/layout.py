"""How arrays lie in memory, where XLA's own choice costs time."""

from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

from dinov2_jax.ops.attention import platform_in_use
from dinov2_jax.parallel.constraints import on_each_device

GEMM_ROWS = 8  # cuBLAS copies bf16 operands with another number of rows


def row_major(x: Array) -> Array:
    """x [G, ...] with its last axis contiguous, on a GPU; elsewhere XLA chooses.

    A GPU's compiler stores some activations column by column, so that a gradient of weights need
    not transpose them. cuBLAS transposes as it reads, but LayerNorm, gathers and additions along
    such columns then take several passes.
    """
    if platform_in_use() != "gpu":
        return x
    return on_each_device(lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), x)


def filled_rows(rows: int) -> int:
    """The number of rows that products of `rows` rows should have: no less, on CPU the same."""
    return rows if platform_in_use() == "cpu" else -(-rows // GEMM_ROWS) * GEMM_ROWS
