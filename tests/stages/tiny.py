"""A recipe of two small stages, and the pictures that they read."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs.recipes import default
from tests.train.test_resume import OVERRIDES

OVERLAY = """
from configs import default

def get_config():
    config = default.get_config()
    config.update_from_flattened_dict({changes})
    return config
"""


def write_labelled(folder: Path) -> Path:
    """Two classes of dark and light noise: train/<class>/ and test/<class>/."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(16):
            home = folder / split / "ab"[number % 2]
            home.mkdir(parents=True, exist_ok=True)
            pixels = 60 * (number % 2) + rng.integers(0, 160, (24, 24, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(home / f"{number}.png")
    return folder


def tiny_recipe(folder: Path, **stages: ConfigDict) -> ConfigDict:
    """Two stages of 2 steps, the second from the first; `stages` replaces or adds some.

    Args:
      folder: gets tiny.py, the configuration of both stages, and reads labelled/.
    """
    changes = OVERRIDES | {
        "total_steps": 2,
        "mesh.data": 1,
        "checkpoint.every_steps": 2,
        "data.path": str(folder / "labelled"),
        "eval.labels": "folders",
        "eval.every_steps": 1,
        "eval.test_split": "test",
        "eval.linear_iterations": 0,
    }
    overlay = folder / "tiny.py"
    overlay.write_text(OVERLAY.format(changes=changes))
    recipe = default.get_config()
    recipe.evaluation.update(default.nested({"knn.ks": (3,)}))
    recipe.stages = ConfigDict(sort_keys=False)
    # The one that waits stands first.
    recipe.stages.second = stage(folder, {"optimizer.base_lr": 0.001}, start="first")
    recipe.stages.first = stage(folder)
    for name, one in stages.items():
        recipe.stages[name] = one
    return recipe


def stage(folder: Path, settings: dict | None = None, **fields) -> ConfigDict:
    """A stage of tiny.py."""
    return default.stage(str(folder / "tiny.py"), settings, **fields)
