"""Plans for eight virtual CPU devices; topologies, searches and errors without any compiler."""

import contextlib
import dataclasses
import importlib.util
import json
from typing import Any, NamedTuple
from unittest import mock

import jax
import pytest

from dinov2_jax.config.files import ConfigError
from dinov2_jax.ops import layout
from dinov2_jax.parallel.mesh import MeshError, make_mesh
from dinov2_jax.plan import plan
from dinov2_jax.plan import trial as trials
from dinov2_jax.plan.memory import Memory, argument_memory, compiled_memory, missing_memory
from dinov2_jax.plan.text import rate
from dinov2_jax.plan.topology import CHIPS, GIB, Target, chip_of, open_target
from dinov2_jax.train.checks import check_training
from dinov2_jax.train.setup import abstract_batch, compiled_step, make_run
from tests.plan.collectives import read_collectives
from tests.plan.purposes import step_shapes, stray, traffic
from tests.plan.toy import CHIP, plan_config, toy_trial
from tests.train.tiny import random_batch


class Planned(NamedTuple):
    """The plan of one FSDP step: plan.json, what was printed, and the compiled program."""

    results: dict
    text: str
    program: Any


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder, lines, programs = tmp_path_factory.mktemp("plan"), [], []

    def spy(arguments, compiled):
        programs.append(compiled)
        return compiled_memory(arguments, compiled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *text, **_: lines.extend(map(str, text)))
        patch.setattr(trials, "compiled_memory", spy)
        plan.plan(plan_config(), str(folder))
    (program,) = programs
    results = json.loads((folder / "plan.json").read_text())
    return Planned(results, "\n".join(lines), program)


def test_the_batch_is_what_the_loader_delivers():
    config = plan_config()
    shapes = {name: (x.shape, x.dtype) for name, x in random_batch(config, 0).items()}
    batch = abstract_batch(config, make_mesh(1, 8))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == shapes


def test_arguments_by_arithmetic():
    config = plan_config()
    mesh = make_mesh(1, 8)
    run = make_run(config, mesh)
    state = run.abstract_state
    memory = argument_memory(run, abstract_batch(config, mesh))
    assert memory.optimizer == 2 * memory.student + 4  # two moments and a counter
    assert memory.teacher == memory.student
    # All but vectors is split 8 ways.
    weights = sum(x.size * 4 for x in jax.tree.leaves(state.student))
    assert weights / 8 < memory.student < weights / 3
    # 40 images on 8 devices: 5 x (2 x 28^2 + 3 x 14^2) x 3 bytes of pixels, and masks.
    pixels = 5 * (2 * 28**2 + 3 * 14**2) * 3
    slots = 32  # of a group of 5: reference upperbound 25 for 10 crops of 16 patches, filled up
    assert memory.batch == pixels + 5 * 2 * 16 + slots * (4 + 4)


def test_memory_is_the_compilers_own_account(planned):
    stats = planned.program.memory_analysis()
    found = planned.results["settings"][0]["memory_bytes"]
    assert found["temporaries"] == stats.temp_size_in_bytes > 0
    metrics = stats.output_size_in_bytes - stats.alias_size_in_bytes
    everything = (
        stats.argument_size_in_bytes
        + metrics
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    assert found["total"] == everything
    # A CPU does not pad: only metrics and the five rates are not in the table of arguments.
    assert 0 <= found["layout"] < 2048


def test_fsdp_sends_weights_and_gradients_only(planned):
    config = plan_config()
    shapes = step_shapes(make_run(config, make_mesh(1, 8)), config)
    collectives = read_collectives(planned.program.as_text())
    rows = traffic(collectives, shapes)
    assert stray(collectives, shapes) == []
    # Four matrices of two blocks, gathered by the teacher, the student and its backward pass.
    assert rows["all-gather of weights"]["times"] >= 2 * 4 * 3
    blocks = 2 * 4 * (48 * 144 + 48 * 48 + 2 * 48 * 192)
    assert rows["all-gather of weights"]["bytes"] >= 3 * blocks
    assert rows["all-reduce of gradients"]["bytes"] >= 2 * blocks


def test_devices_of_no_known_kind_have_no_rate(planned):
    assert planned.results["settings"][0]["fits"] is None
    assert "rate: not known" in planned.text


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batches": 2, "model.remat": "blocks"},
        {"mesh.data": 2, "mesh.fsdp": 4, "centering": "sinkhorn_knopp"},
        {"mesh.data": 2, "mesh.fsdp": 4, "micro_batches": 2, "prototype_block": 16},
    ],
    ids=["parts", "2x4 Sinkhorn", "blocks of prototypes"],
)
def test_no_activation_travels(changes):
    config = plan_config(**{"batch_size": 32, "group_size": 2} | changes)
    mesh = make_mesh(**config.mesh)
    run = make_run(config, mesh)
    program = trials.compile_step(run, abstract_batch(config, mesh), mesh)
    collectives = read_collectives(program.as_text())
    assert collectives and stray(collectives, step_shapes(run, config)) == []


@pytest.mark.parametrize("mesh", [{"mesh.data": 8, "mesh.fsdp": 1}, {"mesh.fsdp": 8}])
def test_layouts_of_a_gpu_send_nothing(mesh, monkeypatch):
    """XLA gathers what a layout is asked of, unless each device asks for its own share."""
    monkeypatch.setattr(layout, "platform_in_use", lambda: "gpu")
    config = plan_config(**{"batch_size": 40, "group_size": 5} | mesh)
    mesh = make_mesh(**config.mesh)
    run = make_run(config, mesh)
    program = trials.compile_step(run, abstract_batch(config, mesh), mesh)
    assert stray(read_collectives(program.as_text()), step_shapes(run, config)) == []


def test_nothing_is_written_without_a_run_directory(monkeypatch, capsys):
    trial = toy_trial(700, state=600, batch=40, mesh=(1, 8, 1), fits=True)
    monkeypatch.setattr(plan, "try_setting", lambda *_: trial)
    monkeypatch.setattr(plan, "step_flops", lambda _: {"model": 1e9, "executed": 1e9})
    target = Target("toy", jax.devices(), CHIP)
    results = plan.make_plan(plan_config(), target, ["a note"], "")
    text = capsys.readouterr().out
    assert "fits (70%)" in text and "a note" in text and "written" not in text
    assert len(results["settings"]) == 1


# ------------------------------------------------------------------------------ topologies
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:4x4", "did you mean v5"),
        ("a100:8", "names no known chip"),
        ("v5e", "does not say how many chips"),
        ("v5e:4x", "does not say how many chips"),
        ("h100:0", "does not say how many chips"),
        ("h100:2x4x8", "does not say how many chips"),
        ("v5e:4x4x4", "does not say how many chips"),
        ("v5e:16x32", "the largest is v5e:16x16"),
        ("v6e:32x2", "the largest is v6e:16x16"),
        ("v5p:4x20x20", "the largest is v5p:16x16x24"),
    ],
)
def test_what_is_no_topology(name, message):
    with pytest.raises(ConfigError, match=message):
        open_target(name)


@pytest.mark.parametrize(
    ("name", "install"), [("v5e:4x4", r'"jax\[tpu\]"'), ("h200:4x8", "jax-cuda13-plugin==")]
)
def test_a_missing_compiler_is_named(monkeypatch, name, install):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ImportError, match=install):
        open_target(name)


def test_a_batch_must_divide_over_the_topology(monkeypatch):
    devices = [jax.devices()[0]] * 16
    monkeypatch.setattr(plan, "open_target", lambda name: Target(name, devices, CHIPS["v5e"]))
    with pytest.raises(ConfigError, match=r"16 shards.*--config.batch_size=80"):
        plan.plan(plan_config(**{"mesh.fsdp": 16}))
    with pytest.raises(ConfigError, match="does not divide the 16 devices"):
        plan.plan(plan_config(**{"mesh.data": -1, "mesh.fsdp": 3}))


def test_a_plan_needs_no_pictures_and_a_likely_mfu():
    config = plan_config(**{"data.source": "folder", "data.path": ""})
    assert check_training(config, 8) == []
    config.plan.mfu = 1.5
    with pytest.raises(ConfigError, match=r"config.plan.mfu is 1.5, but must be from 0.01 to 1"):
        check_training(config, 8)


def test_auto_means_the_target():
    class Described:
        platform = "tpu"

    config = plan_config()
    assert plan.for_target(config, Target("", jax.devices(), None)).compute_dtype == "float32"
    assert plan.for_target(config, Target("", [Described()], None)).compute_dtype == "bfloat16"
    config.compute_dtype = "float32"
    assert plan.for_target(config, Target("", [Described()], None)).compute_dtype == "float32"


@pytest.mark.parametrize(
    ("platform", "given", "passed"),
    [
        ("tpu", None, {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}),
        ("gpu", {"xla_gpu_enable_triton_gemm": False}, {"xla_gpu_enable_triton_gemm": False}),
        ("cpu", None, None),
    ],
)
def test_what_xla_is_told(platform, given, passed, monkeypatch):
    step = mock.MagicMock()
    run = mock.MagicMock(step=step, **{"schedules.at.return_value": {}})
    mesh = mock.MagicMock(**{"devices.flat": [mock.MagicMock(platform=platform)]})
    monkeypatch.setattr(jax, "set_mesh", lambda _: contextlib.nullcontext())
    compiled_step(run, {}, mesh, given)
    step.lower.return_value.compile.assert_called_once_with(compiler_options=passed)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_chips_by_what_jax_calls_them(kind, name):
    assert chip_of(kind) is CHIPS[name]


def test_an_unknown_chip_is_not_guessed():
    assert chip_of("cpu") is None and chip_of("TPU v99") is None


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.filterwarnings("ignore")
def test_tpu_topologies():
    assert len(open_target("v5e:4x4").devices) == 16
    assert len(open_target("v5p:4x4x8").devices) == 128
    with pytest.raises(ConfigError, match="no shape that libtpu knows"):
        open_target("v5e:3x5")


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.filterwarnings("ignore")
def test_a_mesh_that_the_torus_does_not_give_is_refused():
    devices = open_target("v5p:4x4x8").devices
    assert make_mesh(4, 32, devices=devices).shape["fsdp"] == 32
    with pytest.raises(MeshError, match=r"fsdp=64.* whole axes of this TPU's torus"):
        make_mesh(2, 64, devices=devices)


# ---------------------------------------------------------------------------------- memory
@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("the total memory required for HLO temporaries (1.50G) exceeds available HBM (15.75G).",
         10 + 1.5 * GIB),
        ("Ran out of memory in memory space hbm. Used 41.25G of 15.75G hbm. Exceeded", 41.25 * GIB),
    ],
)  # fmt: skip
def test_what_a_tpu_compiler_says_it_needs(text, needed):
    error = RuntimeError(f"RESOURCE_EXHAUSTED: {text}")
    memory = missing_memory(Memory(student=10), error)
    assert memory is not None and memory.total == pytest.approx(needed)
    assert missing_memory(Memory(student=10), RuntimeError(text)) is None


# ------------------------------------------------------------------------------------ rate
def test_rate_by_hand():
    config = plan_config(**{"plan.mfu": 0.5, "total_steps": 1000})
    target = Target("v5e:2x4", jax.devices(), CHIPS["v5e"])
    trial, flops = toy_trial(500, batch=400), {"model": 197e12 / 100, "executed": 0.0}
    found = rate(config, target, trial, flops)
    assert found is not None
    # A chip at half its peak does 50 images/s, eight 400: a step a second.
    assert found.images_per_s == pytest.approx(400)
    assert found.step_s == pytest.approx(1.0)
    assert found.days == pytest.approx(1000 / 86400)
    assert found.chip_hours == pytest.approx(8 * 1000 / 3600)
    # A mesh that leaves out half of the chips is paid for all of them.
    larger = dataclasses.replace(target, devices=2 * jax.devices())
    assert rate(config, larger, trial, flops) == found._replace(chip_hours=2 * found.chip_hours)
