"""A configuration and batches small enough to train on a laptop's eight virtual devices."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import default
from dinov2_jax.data.masking import sample_masks
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
from dinov2_jax.train.setup import make_run


def tiny_config(**changes) -> ConfigDict:
    """Width 48, two blocks, stochastic depth on; 16 images in 8 groups, 28 and 14 px crops.

    With two blocks, a higher drop rate leaves some crops without any residual branch: their cls
    tokens are equal, KoLeo takes the logarithm of a distance that is all rounding, and no two
    programs agree. For the same reason LayerScale is not 1e-5.
    """
    config = default.get_config()
    values = {
        "total_steps": 6,
        "batch_size": 16,
        "group_size": 2,
        "centering": "sinkhorn_knopp",
        "min_shard_bytes": 2**12,  # the matrices of a block and the prototypes are split
        "model.dim": 48,
        "model.depth": 2,
        "model.heads": 3,
        "model.patch_size": 7,
        "model.layerscale": 0.1,
        "model.drop_path_rate": 0.2,
        "dino.head_prototypes": 64,
        "dino.head_hidden_dim": 32,
        "dino.head_bottleneck_dim": 16,
        "optimizer.warmup_steps": 2,
        "optimizer.freeze_last_layer_steps": 1,
        "crops.global_size": 28,
        "crops.local_size": 14,
        "crops.local_number": 3,
    }
    config.update_from_flattened_dict(values | changes)
    return config


def random_batch(config: ConfigDict, seed: int) -> dict[str, np.ndarray]:
    """A batch as the loader delivers it, of noise."""
    rng = np.random.default_rng(seed)
    crops, patch = config.crops, config.model.patch_size
    side, channels = crops.global_size // patch, config.model.in_channels
    shapes = {
        "global_crops": (config.batch_size, 2, *(crops.global_size,) * 2, channels),
        "local_crops": (config.batch_size, crops.local_number, *(crops.local_size,) * 2, channels),
    }
    batch = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in shapes.items()}
    drawn = [
        sample_masks(rng, config.group_size, (side, side), 0.5, (0.1, 0.5))
        for _ in range(config.batch_size // config.group_size)
    ]
    masks, indices, weights = zip(*drawn, strict=True)
    return batch | {
        "masks": np.concatenate(masks),
        "mask_indices": np.stack(indices),
        "mask_weights": np.stack(weights),
    }


def train_steps(
    config: ConfigDict, steps: int, mesh_sizes: tuple[int, ...] = (1, 1)
) -> tuple[list[dict[str, float]], Any]:
    """All metrics of the first steps on batches of noise, and the state after them."""
    mesh = make_mesh(*mesh_sizes)
    run, found = make_run(config, mesh), []
    with jax.set_mesh(mesh):
        state = run.init()
        for i in range(steps):
            batch = put_batch(random_batch(config, i), mesh)
            state, metrics = run.step(state, batch, run.schedules.at(i + 1))
            found.append({name: float(value) for name, value in metrics.items()})
    return found, state
