"""A run that goes on with another run: the stage at high resolution, from a trained run's files."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import dinov2_jax
from dinov2_jax.config.files import ConfigError, load_config
from dinov2_jax.data.reader import LostWorkerError
from dinov2_jax.models.positions import CONVENTIONS, resize_positions, resize_squares
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.run.checkpoint import CheckpointError, read_config, restore_params
from dinov2_jax.train.from_run import first_parts
from dinov2_jax.train.loop import train
from dinov2_jax.train.setup import make_run
from tests.train.test_init_from import bundle, same, steps
from tests.train.test_resume import metrics, pictures, saved_steps  # noqa: F401
from tests.train.test_stops import at_batch, config_of, lose_the_pictures

PX = 32  # of the stage: 4 x 4 patches; the run has 16 px and 2 x 2
HEADS = {"ibot.separate_head": True, "ibot.head_prototypes": 24, "ibot.head_hidden_dim": 16}
RUN = HEADS | {"ibot.head_bottleneck_dim": 8, "centering": "centering", "mesh.data": 1}
STAGE = RUN | {"crops.global_size": PX, "init_state": "both", "seed": 1}


@pytest.fixture(scope="module")
def base(pictures, tmp_path_factory) -> Path:  # noqa: F811
    """Three steps of a run; student and teacher differ, moments and centres are not zero."""
    workdir = tmp_path_factory.mktemp("base")
    train(config_of(pictures, **RUN, total_steps=3), str(workdir))
    return workdir


@pytest.fixture
def stage(pictures, base):  # noqa: F811
    """Configurations of a stage of that run."""
    return lambda **changes: config_of(pictures, **STAGE | {"init_from": str(base)} | changes)


def start(config: ConfigDict, mesh_sizes: tuple[int, ...] = (1, 1)) -> tuple[Any, Any, Any, Any]:
    """(run, its mesh, its first state, the notes)."""
    mesh = make_mesh(*mesh_sizes)
    run = make_run(config, mesh)
    with jax.set_mesh(mesh):
        given, parts, notes = first_parts(config, run)
        return run, mesh, run.init(given, parts), notes


def features(model: Any, params: Any) -> Any:
    images = np.random.default_rng(0).standard_normal((2, PX, PX, 3)).astype(np.float32)
    out = jax.jit(model.apply)({"params": params}, images)
    return {name: np.asarray(out[name]) for name in ("cls", "patches")}


def test_the_first_pass_is_that_of_the_run_at_the_new_size(base, stage):
    run, _, state, notes = start(stage())
    for side in ("student", "teacher"):
        wanted = features(*dinov2_jax.load(base, which=side))
        backbone = getattr(state, side)["backbone"]
        assert backbone["pos_embed"].shape == (1, 1 + 4 * 4, 24)
        got = features(getattr(run.objective, side).backbone, backbone)
        for name, x in wanted.items():
            np.testing.assert_allclose(got[name], x, rtol=0, atol=1e-5, err_msg=name)
    assert any("2 x 2 patches are resampled to 4 x 4 as the network does it" in x for x in notes)


def test_both_sides_heads_and_centres_go_on_and_the_rest_is_fresh(base, stage):
    _, _, state, notes = start(stage())
    step_dir = read_config(base)[1]
    for side in ("student", "teacher"):
        stored, got = restore_params(step_dir, side), getattr(state, side)
        for module in stored:
            for name in stored[module].keys() - {"pos_embed"}:
                assert all(same(got[module][name], stored[module][name])), (side, module, name)
    assert not all(same(state.student, state.teacher))
    centers = restore_params(step_dir, "centers")
    assert np.abs(centers["dino"]).max() > 0
    assert all(same(state.centers, centers))
    assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
    assert state.step == 0
    assert notes[1].endswith("Adam's moments are fresh")


def test_moments_go_on_with_positive_squares(base, stage):
    _, _, state, notes = start(stage(init_state="optimizer"))
    stored = restore_params(read_config(base)[1], "opt_state")
    got, table = state.opt_state, {}
    assert got.count == stored["count"] == 3
    for name in ("mu", "nu"):
        moments, table[name] = getattr(got, name), stored[name]["backbone"].pop("pos_embed")
        table[f"new {name}"] = np.asarray(moments["backbone"].pop("pos_embed"))
        assert all(same(moments, stored[name])), name
    np.testing.assert_allclose(
        table["new mu"], resize_positions(table["mu"], (4, 4), 0.1, False), atol=1e-9
    )
    assert table["new nu"].min() >= 0 and (table["new nu"] > 0).any()
    np.testing.assert_array_equal(table["new nu"][:, 0], table["nu"][:, 0])
    assert notes[1].endswith("and so are Adam's moments")


@pytest.mark.parametrize("rule", CONVENTIONS.values())
@pytest.mark.parametrize("grid", [(9, 9), (3, 5)])
def test_mean_squares_are_never_less_than_those_of_resampled_gradients(rule, grid):
    gradients = np.random.default_rng(0).standard_normal((20, 1, 1 + 4 * 4, 3)).astype(np.float32)
    resampled = np.stack([resize_positions(x, grid, *rule) for x in gradients])
    got = resize_squares(np.mean(gradients**2, axis=0), grid, *rule)
    assert (got * (1 + 1e-5) >= np.mean(resampled**2, axis=0)).all()
    assert got.mean() < 2 * np.mean(gradients**2)
    # The plain rule gives negative squares where the old ones differ much.
    spike = np.zeros((1, 1 + 4 * 4, 1), np.float32)
    spike[0, 6] = 1
    assert np.min(resize_positions(spike, (9, 9), *rule)) < 0
    assert resize_squares(spike, (9, 9), *rule).min() == 0


@pytest.mark.parametrize("positions", ["size", "size_antialias", "offset_antialias", "offset"])
def test_other_conventions_change_the_positions_of_both_sides(base, stage, positions):
    _, _, state, notes = start(stage(init_positions=positions))
    own = start(stage())[2]
    for side in ("student", "teacher"):
        tables = (getattr(x, side)["backbone"]["pos_embed"] for x in (state, own))
        assert np.array_equal(*tables) == (positions == "offset")
    assert ("changes the network's features" in notes[-1]) == (positions != "offset")


def test_eight_devices_are_as_one(stage):
    config = stage(init_state="optimizer", group_size=2, batch_size=16)
    run, mesh, state, _ = start(config)
    wanted, _ = steps(config, run, mesh, state, range(3))
    run, mesh, state, _ = start(config, (2, 4))
    kernel = state.teacher["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 24, 96 // 4)
    got, _ = steps(config, run, mesh, state, range(3))
    assert got == pytest.approx(wanted, rel=1e-5)


def test_a_stage_that_was_stopped_continues_bit_for_bit(stage, tmp_path, monkeypatch):
    train(stage(), str(tmp_path / "straight"))
    with monkeypatch.context() as patch:
        at_batch(patch, 5, lose_the_pictures)
        with pytest.raises(LostWorkerError):
            train(stage(), str(tmp_path / "stopped"))
    assert saved_steps(tmp_path / "stopped") == [4]
    # Once it has a checkpoint of its own, the first run is not needed.
    train(stage(init_from="gone"), str(tmp_path / "stopped"))
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")
    ends = [
        restore_params(read_config(tmp_path / x)[1], "teacher") for x in ("stopped", "straight")
    ]
    assert all(same(*ends))
    assert json.loads((tmp_path / "straight/config.json").read_text())["init_state"] == "both"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"init_from": ""}, ConfigError, "init_from is empty; add --config.init_from=<run direct"),
        ({"init_from": "runs/gone"}, ConfigError, "runs/gone does not exist; name a run"),
        ({"init_from": "dinov2_vits14"}, ConfigError, "dinov2_vits14 is a released backbone"),
        (
            {"dino.head_prototypes": 64, "ibot.head_hidden_dim": 8},
            ConfigError,
            "dino.head_prototypes 32 instead of 64, ibot.head_hidden_dim 16 instead of 8; add "
            "--config.dino.head_prototypes=32 --config.ibot.head_hidden_dim=16, or "
            "--config.init_state=teacher",
        ),
        ({"ibot.separate_head": False}, ConfigError, "add --config.ibot.separate_head=true"),
        ({"model.patch_size": 16}, ConfigError, "patch_size 8 instead of 16; add"),
        ({"model.depth": 3}, ConfigError, "depth 2 instead of 3; add"),
        (
            {
                "init_state": "optimizer",
                "model.in_channels": 1,
                "colour.mean": (0.5,),
                "colour.std": (0.5,),
            },
            ConfigError,
            "moments of 3 channels.*--config.init_state=both",
        ),
    ],
)
def test_what_cannot_go_on_is_refused_in_a_sentence(stage, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        start(stage(**changes))
    assert "\n" not in str(caught.value)


def test_weights_and_folders_that_are_no_run_are_refused(stage, tmp_path):
    path = bundle(tmp_path, dim=24, patch_size=8, image_size=16, layerscale=0.5)
    with pytest.raises(ConfigError, match=r"is no run; name a run, or add --config\.init_st"):
        start(stage(init_from=str(path)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty is no run; name a run"):
        start(stage(init_from=str(tmp_path / "empty")))
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="has the run saved one yet"):
        start(stage(init_from=str(tmp_path / "young")))


def test_a_backbone_alone_says_what_is_missing(stage, tmp_path):
    path = bundle(tmp_path, dim=24, patch_size=8, image_size=16, layerscale=0.5)
    changes = {"init_from": str(path), "init_state": "teacher", "total_steps": 50}
    (note,) = [x for x in start(stage(**changes))[3] if "backbone only" in x]
    assert "--config.optimizer.freeze_backbone_steps=5 would let the heads train alone" in note
    changes["optimizer.freeze_backbone_steps"] = 7
    (note,) = [x for x in start(stage(**changes))[3] if "backbone only" in x]
    assert "freeze_backbone_steps 7 lets the heads train alone" in note


@pytest.mark.parametrize(
    ("base", "side", "image", "resize"),
    [("vitl14", 518, 518, 592), ("vitl16_short", 512, 512, 585), ("quickstart", 64, 64, 64)],
)
def test_the_stage_of_a_recipe(base, side, image, resize):
    recipe, config = load_config(base), load_config(f"highres:{base}")
    assert config.crops.global_size == side
    assert (config.eval.image_size, config.eval.resize_size) == (image, resize)
    assert config.crops.local_size == recipe.crops.local_size
    assert config.batch_size == recipe.batch_size
    share = config.total_steps / recipe.total_steps
    assert config.total_steps == min(10_000, recipe.total_steps // 5)
    for group, field in (("optimizer", "warmup_steps"), ("teacher", "temp_warmup_steps")):
        assert config[group][field] == pytest.approx(recipe[group][field] * share, abs=1)
    assert config.init_state == "both" and config.init_from == ""
    groups = recipe.group_size / config.group_size
    assert groups == config.micro_batches == (1 if base == "quickstart" else 4)


def test_without_a_recipe_it_is_the_paper_s_and_others_are_refused():
    assert load_config("highres") == load_config("highres:vitl14")
    with pytest.raises(ConfigError, match="needs a recipe that trains, but eval/knn is of task"):
        load_config("highres:eval/knn")
    with pytest.raises(ConfigError, match="no configuration nosuch"):
        load_config("highres:nosuch")
