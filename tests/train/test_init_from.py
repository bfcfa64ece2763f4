"""Runs that start from weights: other sizes, meshes, heads, channels; what is refused."""

import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save_file

import dinov2_jax
from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
from dinov2_jax.run.checkpoint import read_config
from dinov2_jax.train.init_from import initial_params
from dinov2_jax.train.setup import make_run
from dinov2_jax.weights.adapt import with_image_size
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.convert import to_reference
from dinov2_jax.weights.files import WeightsError
from tests.train.test_resume import ROOT, command, environment
from tests.train.test_resume import run as run_command
from tests.train.tiny import random_batch, tiny_config

TINY = {"dim": 48, "depth": 2, "heads": 3, "patch_size": 7, "layerscale": 0.1}
REGISTERS = {"registers": 2, "interpolate_offset": 0.0, "interpolate_antialias": True}
KINDS = {"plain": {}, "registers": REGISTERS}
RUN_PX = 28  # of the tiny configuration: 4 x 4 patches
WEIGHTS_PX = 42  # of the weights: 6 x 6


def random_params(model: VisionTransformer, channels: int = 3) -> Any:
    """Random everywhere, also where the initial value is 0, 1 or as small as the tokens'."""
    images = np.zeros((1, model.patch_size, model.patch_size, channels), np.float32)
    params = jax.jit(model.init)(jax.random.key(7), images)["params"]
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: np.asarray(x + 0.1 * rng.standard_normal(x.shape), np.float32), params
    )


def bundle(folder: Path, **changes) -> Path:
    model = VisionTransformer(**(TINY | {"image_size": WEIGHTS_PX} | changes))
    path = folder / "bundle"
    write_bundle(path, model, random_params(model), Preprocessing(), "a test")
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    return {
        kind: bundle(tmp_path_factory.mktemp(kind), **changes) for kind, changes in KINDS.items()
    }


def config_of(path: Path, kind: str = "plain", **changes) -> ConfigDict:
    fields = {f"model.{name}": value for name, value in KINDS[kind].items()}
    return tiny_config(init_from=str(path), **(fields | changes))


def start(config: ConfigDict, mesh_sizes: tuple[int, ...] = (1, 1)) -> tuple[Any, Any, Any, Any]:
    """(run, its mesh, its first state, the notes)."""
    mesh = make_mesh(*mesh_sizes)
    run = make_run(config, mesh)
    with jax.set_mesh(mesh):
        given, notes = initial_params(config, run)
        return run, mesh, run.init(given), notes


def steps(config: ConfigDict, run: Any, mesh: Any, state: Any, numbers: range) -> tuple[list, Any]:
    """Losses of the steps, and the state after them."""
    losses = []
    with jax.set_mesh(mesh):
        for i in numbers:
            batch = put_batch(random_batch(config, i), mesh)
            state, metrics = run.step(state, batch, run.schedules.at(i))
            losses.append(float(metrics["loss"]))
    return losses, state


def same(a: Any, b: Any) -> list[bool]:
    return jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_global_crops_are_those_of_the_weights(bundles, kind):
    model, params = dinov2_jax.load(bundles[kind])
    run, _, state, _ = start(config_of(bundles[kind], kind))
    images = np.random.default_rng(0).standard_normal((2, RUN_PX, RUN_PX, 3)).astype(np.float32)
    wanted = jax.jit(model.apply)({"params": params}, images)
    for side in ("student", "teacher"):
        networks = getattr(run.objective, side)
        backbone = getattr(state, side)["backbone"]
        assert backbone["pos_embed"].shape == (1, 1 + 4 * 4, 48)
        got = jax.jit(networks.backbone.apply)({"params": backbone}, images)
        for name in ("cls", "patches", "registers"):
            np.testing.assert_allclose(got[name], wanted[name], atol=1e-5, err_msg=name)
    assert all(same(state.student, state.teacher))


def test_all_but_positions_is_bit_for_bit_the_weights_and_stays_so(bundles):
    """The step that follows donates its state: what was given must not share memory with it."""
    config = config_of(bundles["plain"])
    mesh = make_mesh(1)
    run = make_run(config, mesh)
    params = dinov2_jax.load(bundles["plain"]).params
    given, notes = initial_params(config, run)
    state = run.init(given)
    for name in params.keys() - {"pos_embed"}:
        assert all(same(state.student["backbone"][name], params[name])), name
    before = jax.tree.map(np.array, given)
    losses, after = steps(config, run, mesh, state, range(3))
    assert np.isfinite(losses).all()
    assert all(same(given, before))
    assert not all(same(after.student["backbone"], before["backbone"]))
    assert notes[0].startswith("student and teacher start from 21 of 21 tensors")
    assert "dino_head is fresh: the weights come without it" in notes
    config.colour.mean = (0.5, 0.5, 0.5)
    assert "made with colour.mean (0.485, 0.456, 0.406)" in initial_params(config, run)[1][1]


def test_sharded_over_eight_devices_it_is_the_same(bundles):
    config = config_of(bundles["plain"])
    run, mesh, state, _ = start(config)
    wanted, _ = steps(config, run, mesh, state, range(3))
    run, mesh, state, _ = start(config, (2, 4))
    kernel = state.student["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 48, 192 // 4)
    got, _ = steps(config, run, mesh, state, range(3))
    assert got == pytest.approx(wanted, rel=1e-5)


def test_while_the_backbone_is_frozen_only_the_heads_change(bundles):
    changes = {"optimizer.freeze_backbone_steps": 3, "optimizer.freeze_last_layer_steps": 0}
    config = config_of(bundles["plain"], **changes, **{"optimizer.warmup_steps": 0})
    run, mesh, state, _ = start(config)
    first = jax.tree.map(np.array, state.student)
    _, state = steps(config, run, mesh, state, range(3))
    assert all(same(state.student["backbone"], first["backbone"]))
    assert not any(same(state.student["dino_head"], first["dino_head"]))
    assert all(np.any(moment) for moment in jax.tree.leaves(state.opt_state.nu["backbone"]))
    # The average of equal numbers is that number, but for rounding.
    teacher, student = state.teacher["backbone"], first["backbone"]
    jax.tree.map(lambda t, s: np.testing.assert_allclose(t, s, rtol=1e-6), teacher, student)
    _, state = steps(config, run, mesh, state, range(3, 4))
    assert not any(same(state.student["backbone"], first["backbone"]))


def checkpoint_of_the_reference(path: Path, config: ConfigDict) -> Any:
    """A file with the backbone and the heads of a run, under the reference's names."""
    student = make_run(config, make_mesh(1)).init().student
    tensors = {}
    for module, params in student.items():
        for name, value in to_reference(params, patch_size=7).items():
            tensors[f"{module}.{name}"] = np.ascontiguousarray(value)
    save_file(tensors, path)
    return student


def test_heads_come_along_where_they_fit(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    stored = {"ibot.separate_head": True, "ibot.head_prototypes": 32, "ibot.head_hidden_dim": 32}
    student = checkpoint_of_the_reference(path, tiny_config(**stored))
    _, _, state, notes = start(config_of(path, seed=1, **stored | {"ibot.head_prototypes": 96}))
    assert all(same(state.student["backbone"], student["backbone"]))
    assert all(same(state.student["dino_head"], student["dino_head"]))
    assert all(same(state.student, state.teacher))
    assert not all(same(state.student["ibot_head"]["mlp_0"], student["ibot_head"]["mlp_0"]))
    assert "dino_head is that of the weights" in notes
    (fresh,) = [note for note in notes if note.startswith("ibot_head")]
    assert fresh == (
        "ibot_head is fresh: last_layer/weight_g of the weights is (32,), the configured one (96,)"
    )
    _, _, _, notes = start(config_of(path))
    assert "ibot_head of the weights is not used" in notes


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("plain", {"model.depth": 3}, "depth 2 instead of 3; add .*--config.model.depth=2"),
        ("registers", {"model.registers": 0}, "registers 2 instead of 0; add .*registers=2$"),
        ("registers", {"model.layerscale": 0.0}, "layerscale on instead of off; add .*=1e-05$"),
        (
            "plain",
            {"model.ffn": "swiglu"},
            "ffn mlp instead of swiglu; add .*--config.model.ffn=mlp",
        ),
        ("plain", {"model.heads": 4}, "heads 3 instead of 4"),
        ("plain", {"model.patch_size": 14, "crops.local_size": 14}, "patch_size 7 instead of 14"),
        (
            "registers",
            {"model.interpolate_antialias": False, "model.interpolate_offset": 0.1},
            "add --config.model.interpolate_offset=0.0 --config.model.interpolate_antialias=true",
        ),
    ],
)
def test_another_model_is_refused_with_the_flags_that_help(bundles, kind, changes, message):
    config = config_of(bundles[kind], kind, **changes)
    run = make_run(config, make_mesh(1))
    with pytest.raises(ConfigError, match=message) as caught:
        initial_params(config, run)
    assert "\n" not in str(caught.value)
    flags = str(caught.value).split("add ")[1].split(";")[0].split()
    values = dict(flag.removeprefix("--config.").split("=") for flag in flags)
    for name, text in values.items():
        old = config.get_ref(name).get() if "." not in name else config["model"][name.split(".")[1]]
        config.update_from_flattened_dict({name: _typed(text, old)})
    initial_params(config, make_run(config, make_mesh(1)))


def _typed(text: str, old: Any) -> Any:
    return text == "true" if isinstance(old, bool) else type(old)(text)


def test_a_variant_is_named_by_its_name(tmp_path):
    path = bundle(tmp_path, dim=192, depth=12, heads=3)
    config = config_of(path)
    with pytest.raises(ConfigError) as caught:
        initial_params(config, make_run(config, make_mesh(1)))
    assert str(caught.value).endswith(
        "dim 192 instead of 48, depth 12 instead of 2; add --config.model.variant=vit_tiny "
        "--config.model.dim=0 --config.model.depth=0 --config.model.heads=0"
    )


def test_released_weights_into_the_default_name_all_that_differs(monkeypatch, tmp_path):
    """What `--config.init_from=dinov2_vits14_reg` says to configs/default.py."""
    from configs import default
    from dinov2_jax.train import init_from
    from dinov2_jax.weights.load import Backbone

    model = VisionTransformer(
        dim=384, depth=12, heads=6, registers=4, interpolate_offset=0.0, interpolate_antialias=True
    )
    found = Backbone(model, {}, Preprocessing(), {}, str(tmp_path), "huggingface", ())
    monkeypatch.setattr(init_from, "load", lambda *_, **__: found)
    config = default.get_config()
    config.init_from = "dinov2_vits14_reg"
    with pytest.raises(ConfigError) as caught:
        initial_params(config, make_run(config, make_mesh(1)))
    assert str(caught.value).endswith(
        "; add --config.model.variant=vit_small --config.model.patch_size=14 "
        "--config.model.registers=4 --config.model.interpolate_offset=0.0 "
        "--config.model.interpolate_antialias=true"
    )


@pytest.fixture(scope="module")
def half_precision(tmp_path_factory) -> Path:
    """A file as others store it: in float16, behind a prefix, with a classifier."""
    model = VisionTransformer(**(TINY | {"image_size": RUN_PX}))
    tensors = to_reference(random_params(model), model.patch_size)
    stored = {f"model.{name}": x.astype(np.float16) for name, x in tensors.items()}
    stored |= {"head.weight": np.zeros((5, 48), np.float16), "head.bias": np.zeros(5, np.float16)}
    path = tmp_path_factory.mktemp("half") / "x.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in stored.items()}, path)
    return path


def test_the_remedies_work_from_the_command_line(half_precision):
    """Each error names a flag; with all flags that were named, the run starts."""
    allow = ""
    for _ in range(3):
        config = config_of(half_precision, allow=allow)
        try:
            state, notes = start(config)[2:]
            break
        except WeightsError as error:
            allow = str(error).split("--config.allow=")[1].split(", or in Python")[0]
    assert allow == "head,float16"
    assert state.step == 0
    assert any("widened to float32" in note for note in notes)


def test_other_resampling_of_positions_may_be_kept(bundles):
    changes = {"model.interpolate_offset": 0.0}
    with pytest.raises(ConfigError, match=r"keep the configured.* --config\.allow=interpolate_off"):
        start(config_of(bundles["plain"], **changes))
    config = config_of(bundles["plain"], allow="interpolate_offset", **changes)
    params = start(config)[2].student
    model, stored = dinov2_jax.load(bundles["plain"], interpolate_offset=0.0)
    want = with_image_size(stored, model, RUN_PX)["pos_embed"]
    np.testing.assert_array_equal(params["backbone"]["pos_embed"], want)


def test_gray_pictures_with_weights_of_colour(bundles):
    """The patch embedding of a picture whose three channels are alike does not change."""
    changes = {"model.in_channels": 1, "colour.mean": (0.449,), "colour.std": (0.226,)}
    config = config_of(bundles["plain"], **changes)
    model, params = dinov2_jax.load(bundles["plain"])
    run, _, state, notes = start(config)
    assert "the patch embedding of 3 channels is spread over 1" in notes
    assert not any("colour.mean" in note for note in notes)
    gray = np.random.default_rng(0).standard_normal((2, RUN_PX, RUN_PX, 1)).astype(np.float32)
    wanted = jax.jit(model.apply)({"params": params}, np.repeat(gray, 3, axis=-1))["cls"]
    backbone = run.objective.teacher.backbone
    got = jax.jit(backbone.apply)({"params": state.teacher["backbone"]}, gray)["cls"]
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert state.student["backbone"]["patch_embed"]["kernel"].shape == (7 * 7, 48)


@pytest.mark.timeout(900)
def test_the_command_line_starts_goes_on_and_starts_from_a_run(tmp_path):
    """Gray pictures and weights of colour, two steps; a third whose weights are gone; a new run."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
    weights = bundle(tmp_path, dim=24, patch_size=8, image_size=24, layerscale=0.5)
    changes = {
        "init_from": weights,
        "total_steps": 2,
        "model.in_channels": 1,
        "colour.mean": "(0.5,)",
        "colour.std": "(0.25,)",
        "eval.every_steps": 0,
    }
    said = run_command(pictures, tmp_path / "run", **changes)
    assert "student and teacher start from 21 of 21 tensors" in said
    assert "dino_head is fresh: the weights come without it" in said
    assert (tmp_path / "run" / "crops.png").exists() and (tmp_path / "run" / "report.html").exists()
    changes |= {"total_steps": 3, "init_from": tmp_path / "gone"}
    said = run_command(pictures, tmp_path / "run", **changes)
    assert "continuing from step 2" in said
    assert f"config.init_from {tmp_path / 'gone'} is ignored: the run continues" in said

    refused = subprocess.run(
        command(pictures, tmp_path / "other", **changes),
        env=environment(1),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert refused.returncode == 2 and refused.stderr.count("error: no weights at") == 1
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "other" / "metrics.jsonl").exists()

    stored = read_config(tmp_path / "run")[0]
    config = ConfigDict(stored)
    config.init_from, config.crops.global_size = str(tmp_path / "run"), 32
    _, _, state, notes = start(config)
    assert "dino_head is that of the weights" in notes
    assert state.teacher["backbone"]["pos_embed"].shape == (1, 1 + 4 * 4, 24)
    teacher = dinov2_jax.load(tmp_path / "run").heads["dino_head"]
    assert all(same(state.student["dino_head"], teacher))
