"""Weights and batches that both sides of a benchmark draw, and the command lines around them."""

import argparse
import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinov2_jax import bench
from dinov2_jax.bench import (
    attention,
    curation,
    dpt,
    draws,
    end_to_end,
    features,
    knn,
    linear,
    logreg,
    losses,
    photos,
    pipeline,
    step,
)
from dinov2_jax.bench.harness import BenchError
from dinov2_jax.models.depth import DPT
from dinov2_jax.models.head import DINOHead
from dinov2_jax.models.maps import Level
from dinov2_jax.models.vit import VARIANTS, VisionTransformer
from dinov2_jax.weights.convert import from_reference
from dinov2_jax.weights.dense import PREFIX, from_released


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_drawn_weights_are_all_that_the_model_has(ffn):
    shape = draws.ViTShape(48, 2, 3, 7, 28, ffn)
    flat = draws.draw_weights(draws.backbone_shapes(shape), seed=0)
    model = VisionTransformer(dim=48, depth=2, heads=3, patch_size=7, image_size=28, ffn=ffn)
    want = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]
    assert jax.tree.map(np.shape, from_reference(flat)) == jax.tree.map(np.shape, want)
    assert all(np.std(value) > 0 for value in flat.values())  # none keeps an initial 0 or 1
    again = draws.draw_weights(draws.backbone_shapes(shape), seed=0)
    assert all(np.array_equal(flat[name], again[name]) for name in flat)


@pytest.mark.parametrize("layers", [1, 2, 3, 7])
def test_drawn_heads_are_all_that_a_head_has(layers):
    flat = draws.draw_weights(draws.head_shapes(48, 32, 16, 64, layers), seed=0)
    head = DINOHead(64, hidden_dim=32, bottleneck_dim=16, layers=layers)
    want = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((1, 48)))["params"]
    assert jax.tree.map(np.shape, from_reference(flat)) == jax.tree.map(np.shape, want)


def test_drawn_depth_heads_are_all_that_the_module_has():
    flat = draws.draw_weights(draws.dpt_shapes(16, 8), seed=0)
    found, _ = from_released({PREFIX + name: value for name, value in flat.items()}, "depth_dpt")
    levels = [Level(*level) for level in draws.draw_levels(0, 1, 2, 3, 16)]
    want = jax.eval_shape(DPT(0.001, 8).init, jax.random.key(0), levels)["params"]
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, want)


def test_variants_are_the_models_own():
    sizes = {name: tuple(value[:3]) for name, value in draws.VARIANTS.items()}
    assert sizes == {name: (v.dim, v.depth, v.heads) for name, v in VARIANTS.items()}


def arguments(**changes):
    given = {
        "config": "configs/default.py",
        "batch": 3,
        "dtype": "bfloat16",
        "variant": "vit_tiny",
        "depth": 2,
        "patch_size": 0,
        "global_size": 64,
        "local_size": 32,
        "prototypes": 128,
        "centering": "",
        "remat": "",
        "blocks": "",
    }
    return argparse.Namespace(**given | changes)


def test_recipe_of_a_step():
    config = step.recipe(arguments())
    assert config["batch_size"] == config["group_size"] == 3
    assert config["dino"]["head_prototypes"] == config["ibot"]["head_prototypes"] == 128
    assert config["model"]["patch_size"] == 16 and config["centering"] == "centering"
    assert draws.shape_of(config) == draws.ViTShape(192, 2, 3, 16, 64, "mlp")
    assert (config["model"]["drop_path_rate"], config["compute_dtype"]) == (0.3, "bfloat16")
    checked = step.for_check(config)
    assert (checked["model"]["drop_path_rate"], checked["compute_dtype"]) == (0.0, "float32")
    assert config["model"]["drop_path_rate"] == 0.3  # the timed recipe keeps its own
    assert (checked["batch_size"], checked["group_size"]) == (3, 3)
    assert step.for_check(step.recipe(arguments(batch=64)))["batch_size"] == step.CHECK_BATCH


def test_batch_of_a_step():
    batch = draws.draw_batch(step.recipe(arguments()), seed=0)
    assert batch["global_crops"].shape == (3, 2, 64, 64, 3)
    assert batch["local_crops"].shape == (3, 8, 32, 32, 3)
    real = batch["mask_indices"][batch["mask_weights"] > 0]
    assert np.array_equal(np.sort(real), np.flatnonzero(batch["masks"]))


@pytest.mark.parametrize(
    "module",
    [attention, curation, dpt, end_to_end, features, knn, linear, logreg, losses, pipeline, step],
)
def test_functions_that_workers_load_by_name_exist(module):
    defined = set()
    folder = Path(bench.__file__).parent
    for file in (*folder.glob("ours/*.py"), *folder.glob("peers/*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        defined |= {f"{file.parent.name}.{file.stem}:{name}" for name in names}
    mine = [side for side, _ in pipeline.ROWS.values()] if module is pipeline else ["side"]
    wanted = {f"ours.{module.BENCHMARK.name}:{side}" for side in mine}
    assert wanted | {target for target, _ in module.PEERS.values()} <= defined
    assert module.__name__.endswith(f".{module.BENCHMARK.name}")


def test_photos_come_from_a_folder_or_are_asked_for(tmp_path):
    with pytest.raises(BenchError, match="--photos=FOLDER"):
        photos.find_photos(str(tmp_path))
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8rest")
    assert photos.find_photos(str(tmp_path)) == [str(tmp_path / "a.jpg")]
    assert photos.read_jpeg(str(tmp_path / "a.jpg")) == b"\xff\xd8rest"


def test_photos_are_written_over_and_over(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(b"\xff\xd8" + name.encode())
    (tmp_path / "out").mkdir()
    files = photos.write_photos(photos.find_photos(str(tmp_path)), tmp_path / "out", 3)
    assert [Path(file).read_bytes()[2:] for file in files] == [b"a", b"b", b"a"]


def test_photos_are_shrunk_to_a_side(tmp_path):
    Image.new("RGB", (60, 30)).save(tmp_path / "large.png")
    small = photos.shrink_photos([str(tmp_path / "large.png")], tmp_path, 20)
    with Image.open(small[0]) as image:
        assert image.size == (20, 10) and image.format == "JPEG"


def test_crops_and_statistics_that_differ_are_refused():
    crop = np.full((4, 4, 3), 100, np.uint8)
    assert pipeline.crops_agree({"x": crop}, {"x": crop + 1}) == {"x": 1.0}
    with pytest.raises(BenchError, match=r"2\.00 levels"):
        pipeline.crops_agree({"x": crop}, {"x": crop - 2})
    pipeline.statistics_agree({"x": np.array([0.0, 1.0])}, {"x": np.array([0.1, 1.0])})
    for other in (0.2, np.nan):
        with pytest.raises(BenchError, match="mean or spread of x"):
            pipeline.statistics_agree({"x": np.array([0.0, 1.0])}, {"x": np.array([0.0, other])})
