"""Distillation by features: losses against torch, devices, students, stops, wrong input."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dinov2_jax.config.files import ConfigError
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.run.checkpoint import CheckpointError, restore_params
from dinov2_jax.ssl.feature_matching import FeatureNetworks, FeatureObjective
from dinov2_jax.train import loop
from dinov2_jax.train.student_configs import student_configs
from dinov2_jax.train.teacher import open_teacher
from dinov2_jax.weights.convert import to_reference
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.load import load
from tests.train.test_distill import (
    _stopped_after,
    config_of,
    require_close,
    steps_of,
    student_files,  # noqa: F401
)
from tests.train.test_resume import metrics, pictures  # noqa: F401

PATCH = 8


def write_pth(folder: Path, dim: int, heads: int) -> Path:
    """A file in the layout of the released backbones: no projection heads, 4 x 4 positions."""
    torch = pytest.importorskip("torch")
    model = VisionTransformer(dim, 3, heads, PATCH, 4 * PATCH, layerscale=1.0)
    images = jnp.zeros((1, 4 * PATCH, 4 * PATCH, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(dim)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    tensors = to_reference(params, PATCH)
    path = folder / f"vit{dim}.pth"
    torch.save({name: torch.tensor(np.asarray(x)) for name, x in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return write_pth(tmp_path_factory.mktemp("released"), 64, 1)


def matching(pictures: Path, teacher: Path, **changes: Any) -> ConfigDict:  # noqa: F811
    return config_of(
        pictures, **{"distill.teacher": str(teacher), "distill.kind": "features"} | changes
    )


def objective(**changes: Any) -> FeatureObjective:
    student, large = (
        VisionTransformer(dim, 2, 2, PATCH, 2 * PATCH, layerscale=1.0) for dim in (12, 20)
    )
    nets = FeatureNetworks(student, large.dim), FeatureNetworks(large)
    return FeatureObjective(*nets, **{"koleo_weight": 0.0} | changes)


def noise_batch(groups: int, images: int, views: int) -> dict[str, jax.Array]:
    rng, size = np.random.default_rng(0), groups * images
    shapes = {"global_crops": (size, 2, 16, 16, 3), "local_crops": (size, views, 8, 8, 3)}
    crops = {name: jnp.asarray(rng.normal(size=x), jnp.float32) for name, x in shapes.items()}
    return crops | {"mask_indices": jnp.zeros((groups, 1), jnp.int32)}


def tokens_of(model: VisionTransformer, params: Any, crops: jax.Array) -> dict[str, np.ndarray]:
    """{"cls" [B, V, D], "patches" [B, V, P, D]} of crops [B, V, ...], by a plain forward pass."""
    out = jax.jit(model.apply)({"params": params["backbone"]}, crops.reshape(-1, *crops.shape[2:]))
    return {
        name: np.asarray(out[name]).reshape(*crops.shape[:2], *out[name].shape[1:])
        for name in ("cls", "patches")
    }


@pytest.mark.parametrize("views", [0, 3])
def test_losses_equal_torch(views):
    """Every pair of tokens on its own, by torch's cosine similarity."""
    torch = pytest.importorskip("torch")
    own, batch = objective(), noise_batch(2, 2, views)
    params, frozen = (
        net.init(jax.random.key(i), 16) for i, net in enumerate((own.student, own.teacher))
    )
    assert set(frozen) == {"backbone"}
    batch = own.prepared(batch)
    targets, centers = jax.jit(own.targets)(frozen, {}, batch, jnp.ones(()))
    loss, parts = jax.jit(own.loss)(params, targets, batch, None)
    want = tokens_of(own.teacher.backbone, frozen, batch["global_crops"])
    seen = tokens_of(own.student.backbone, params, batch["global_crops"])

    def cosine(name: str, tokens: np.ndarray, teacher: np.ndarray) -> Any:
        layer = {key: torch.tensor(np.asarray(x)) for key, x in params[name].items()}
        projected = torch.tensor(tokens) @ layer["kernel"] + layer["bias"]
        return 1 - torch.nn.functional.cosine_similarity(projected, torch.tensor(teacher), dim=-1)

    expected = {
        "loss/cls_features": cosine("cls_projection", seen["cls"], want["cls"]).mean(),
        "loss/patch_features": cosine("patch_projection", seen["patches"], want["patches"]).mean(),
        "loss/local_features": 0.0,
    }
    if views:
        local = tokens_of(own.student.backbone, params, batch["local_crops"])["cls"]
        pairs = cosine("cls_projection", local[:, :, None], want["cls"][:, None])
        assert pairs.shape == (4, views, 2)
        expected["loss/local_features"] = pairs.mean()
    for name, value in expected.items():
        assert float(parts[name]) == pytest.approx(float(value), abs=1e-6), name
    assert float(loss) == pytest.approx(float(sum(expected.values())), abs=2e-6)
    fixed = targets.cls.reshape(-1, 20)
    best = (fixed.sum(0) / jnp.linalg.norm(fixed.sum(0))) @ fixed.T
    constant = own.health(targets, parts, batch)["health/constant_cls"]
    assert float(constant) == pytest.approx(1 - float(best.mean()), abs=1e-6)
    assert centers == {}


def test_a_weight_of_zero_leaves_the_patches_out():
    own, batch = objective(patch_weight=0.0), noise_batch(1, 2, 0)
    params, frozen = (
        own.student.init(jax.random.key(0), 16),
        own.teacher.init(jax.random.key(1), 16),
    )
    batch = own.prepared(batch)
    targets, _ = jax.jit(own.targets)(frozen, {}, batch, jnp.ones(()))
    grads, parts = jax.jit(jax.grad(own.loss, has_aux=True))(params, targets, batch, None)
    assert float(parts["loss/patch_features"]) == 0
    assert not np.any(grads["patch_projection"]["kernel"])
    assert np.any(grads["cls_projection"]["kernel"])


# Groups are large enough to tell the rank of their features.
LEARNING = {
    "batch_size": 16,
    "group_size": 8,
    "total_steps": 40,
    "optimizer.base_lr": 3e-3,
    "optimizer.lr_scaling": "none",
}


@functools.cache
def on_one_device(pictures: Path, teacher: Path) -> list[dict]:  # noqa: F811
    return steps_of(matching(pictures, teacher, **LEARNING), (1, 1), 40)[""]


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [((2, 1), {}), ((2, 4), {}), ((1, 1), {"micro_batches": 2})],
    ids=["2 devices", "8 devices", "micro_batches"],
)
def test_devices_and_micro_batches_change_nothing(pictures, teacher, mesh, changes):  # noqa: F811
    got = steps_of(matching(pictures, teacher, **LEARNING, **changes), mesh, 3)[""]
    want = on_one_device(pictures, teacher)[:3]
    require_close(got, want)
    for name in ("health/effective_rank", "health/constant_cls"):
        assert got[0][name] == pytest.approx(want[0][name], rel=1e-5)


def test_two_students_at_once_equal_each_alone(pictures, teacher, student_files):  # noqa: F811
    names = tuple(map(str, student_files))
    config = matching(pictures, teacher, **{"distill.students": names})
    together = steps_of(config, (1, 1), 3)
    for name, own in student_configs(config).items():
        require_close(together[name], steps_of(own, (1, 1), 3)[""])
    assert together["small"][0]["loss"] != pytest.approx(together["tall"][0]["loss"], rel=1e-4)


def test_a_stopped_run_continues_bit_for_bit_and_can_be_loaded(pictures, teacher, tmp_path):  # noqa: F811
    before = teacher.read_bytes()
    loop.train(matching(pictures, teacher), str(tmp_path / "whole"))
    _stopped_after(2, matching(pictures, teacher), tmp_path / "cut")
    assert [row["step"] for row in metrics(tmp_path / "cut")] == [1, 2]
    loop.train(matching(pictures, teacher), str(tmp_path / "cut"))
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    for side in ("student", "teacher"):
        got, want = (restore_params(tmp_path / x / "checkpoints/4", side) for x in ("cut", "whole"))
        assert set(got) == {"backbone", "cls_projection", "patch_projection"}
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert teacher.read_bytes() == before
    assert load(tmp_path / "cut").model.dim == 24
    with pytest.raises(CheckpointError, match=r"of another model.*changed fields: distill\.kind"):
        loop.train(config_of(pictures), str(tmp_path / "cut"))


def test_training_lowers_the_loss(pictures, teacher):  # noqa: F811
    rows = on_one_device(pictures, teacher)
    for name in ("loss", "loss/cls_features", "loss/patch_features", "loss/local_features"):
        assert rows[-1][name] < 0.8 * rows[0][name], name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.patch_size": 4}, r"patch_size 4, but has to have the patches of.*patch_size=8"),
        ({"distill.teacher": "/nowhere/weights.pth"}, "/nowhere/weights.pth"),
        ({"distill.teacher": "quickstart"}, "is a recipe, which has no weights"),
        ({"distill.teacher": ""}, r"is empty; add --config\.distill\.teacher"),
        ({"distill.kind": "feature"}, "features"),
        ({"distill.patches": "masked"}, "learns all patches; leave patches out"),
        ({"distill.teacher_heads": "train"}, "needs no heads; leave teacher_heads out"),
        ({"distill.head_steps": 5}, "trains no heads; leave head_steps out, or add"),
        ({"prototype_block": 8}, "has no prototypes; leave prototype_block out, or add"),
        ({"distill.kind": "prototypes"}, r"--config\.distill\.kind=features.*teacher_heads=train"),
        ({"distill.attention_heads": 5}, "64 cannot be split into 5 attention heads"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(pictures, teacher, tmp_path, changes, message):  # noqa: F811
    with pytest.raises((ConfigError, OSError, ValueError), match=message) as caught:
        loop.train(matching(pictures, teacher, **changes), str(tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_a_file_of_an_unusual_width_needs_the_number_of_its_heads(pictures, tmp_path):  # noqa: F811
    odd = write_pth(tmp_path, 20, 5)
    config = matching(pictures, odd)
    with pytest.raises(WeightsError, match=r"20, .*: --config\.distill\.attention_heads=N$"):
        open_teacher(config, {"": config})
    config = matching(pictures, odd, **{"distill.attention_heads": 5})
    assert open_teacher(config, {"": config}).networks.backbone.heads == 5
