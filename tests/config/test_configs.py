"""The configurations: every file loads, the reference's recipes are met to the number."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from dinov2_jax.config.comments import field_comments
from dinov2_jax.config.files import (
    ConfigError,
    diff_configs,
    leaves,
    load_config,
    to_dict,
    to_json,
    tuples,
)
from dinov2_jax.train.checks import check_training

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")
# The others are of tasks that train nothing, and have fields of their own.
OVERLAYS = [name for name in FILES if load_config(str(CONFIGS / f"{name}.py")).task == "train"]

# Reference values, facebookresearch/dinov2: ssl_default_config.yaml, its epochs in steps of 1,250.
DEFAULTS: dict[str, Any] = {
    "seed": 0, "total_steps": 100 * 1250, "batch_size": 2048, "group_size": 64,
    "model.variant": "vit_large", "model.patch_size": 16, "model.ffn": "mlp",
    "model.registers": 0, "model.layerscale": 1e-5, "model.drop_path_rate": 0.3,
    "model.drop_path_uniform": True, "model.interpolate_offset": 0.1,
    "model.interpolate_antialias": False,
    "dino.loss_weight": 1.0, "dino.koleo_loss_weight": 0.1, "dino.head_prototypes": 65536,
    "dino.head_bottleneck_dim": 256, "dino.head_layers": 3, "dino.head_hidden_dim": 2048,
    "ibot.loss_weight": 1.0, "ibot.mask_probability": 0.5, "ibot.mask_ratio": (0.1, 0.5),
    "ibot.separate_head": False, "ibot.head_prototypes": 65536, "ibot.head_bottleneck_dim": 256,
    "ibot.head_layers": 3, "ibot.head_hidden_dim": 2048,
    "centering": "centering",
    "teacher.momentum": 0.992, "teacher.final_momentum": 1.0, "teacher.warmup_temp": 0.04,
    "teacher.temp": 0.07, "teacher.temp_warmup_steps": 30 * 1250,
    "optimizer.base_lr": 0.004, "optimizer.lr_scaling": "sqrt_wrt_1024",
    "optimizer.min_lr": 1e-6, "optimizer.warmup_steps": 10 * 1250,
    "optimizer.weight_decay": 0.04, "optimizer.weight_decay_end": 0.4,
    "optimizer.clip_norm": 3.0, "optimizer.freeze_last_layer_steps": 1250,
    "optimizer.patch_embed_lr_multiplier": 0.2, "optimizer.layerwise_decay": 0.9,
    "optimizer.beta1": 0.9, "optimizer.beta2": 0.999,
    "crops.global_size": 224, "crops.global_scale": (0.32, 1.0),
    "crops.local_size": 96, "crops.local_scale": (0.05, 0.32), "crops.local_number": 8,
    "colour.blur_probabilities": (0.0, 0.9, 0.5),
}  # fmt: skip

# What the two long recipes change; everything else stays as above.
VITL14: dict[str, Any] = {
    "batch_size": 3072, "group_size": 32, "total_steps": 500 * 1250,
    "model.patch_size": 14, "model.ffn": "swiglu", "model.drop_path_rate": 0.4,
    "dino.head_prototypes": 131072, "dino.head_bottleneck_dim": 384,
    "ibot.separate_head": True, "ibot.head_prototypes": 131072, "ibot.head_bottleneck_dim": 256,
    "centering": "sinkhorn_knopp", "teacher.momentum": 0.994,
    "optimizer.base_lr": 2e-4, "optimizer.warmup_steps": 80 * 1250,
    "optimizer.weight_decay_end": 0.2, "optimizer.layerwise_decay": 1.0,
    "crops.local_size": 98,
}  # fmt: skip
VITG14 = VITL14 | {"model.variant": "vit_giant2", "group_size": 12}


def load(name: str) -> ConfigDict:
    return load_config(str(CONFIGS / f"{name}.py"))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("default", {}), ("vitl16_short", {}), ("vitl14", VITL14), ("vitg14", VITG14)],
)
def test_reference_recipes_to_the_number(name: str, changes: dict[str, Any]) -> None:
    fields = leaves(load(name))
    expected = DEFAULTS | changes
    assert {field: fields[field] for field in expected} == expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [("vitl16_short", 0.005656854), ("vitl14", 3.46410162e-4), ("vitg14", 3.46410162e-4)],
)
def test_peak_rate_by_the_square_root_rule(name: str, peak: float) -> None:
    config = load(name)
    assert config.optimizer.lr_scaling == "sqrt_wrt_1024"
    rate = config.optimizer.base_lr * math.sqrt(config.batch_size / 1024)
    assert rate == pytest.approx(peak, rel=1e-7)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_has_the_fields_and_types_of_the_default(name: str) -> None:
    fields, default = leaves(load(name)), leaves(load("default"))
    assert fields.keys() == default.keys()
    for field, value in fields.items():
        assert type(value) is type(default[field]), field
        if isinstance(value, tuple):
            assert [type(v) for v in value] == [type(v) for v in default[field]], field


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_can_run(name: str) -> None:
    config = load(name)
    config.data.path = config.data.path or "/pictures"
    assert check_training(config, device_count=1) == []


@pytest.mark.parametrize(("name", "devices"), [("vits14", 8), ("vitb14", 8), ("vitg14", 256)])
def test_large_recipes_fit_their_machines(name: str, devices: int) -> None:
    assert check_training(load(name), device_count=devices) == []


@pytest.mark.parametrize("name", FILES)
def test_every_file_opens_with_command_hardware_time_and_result(name: str) -> None:
    text = (CONFIGS / f"{name}.py").read_text()
    opening = text[: text.index('"""', 3)]
    wanted = ["Command:"] if name == "default" else ["Command:", "Hardware:", "Time:", "Expected:"]
    assert all(f"\n{word}" in opening for word in wanted)
    assert f"--config=configs/{name}.py" in opening


@pytest.mark.parametrize(
    "name",
    [
        "default",
        "eval/default",
        "recipes/default",
        "curate/default",
        *sorted(set(FILES) - set(OVERLAYS)),
    ],
)
def test_every_field_has_a_comment(name: str) -> None:
    comments = field_comments(str(CONFIGS / f"{name}.py"))
    assert [field for field, (_, comment) in comments.items() if not comment] == []


def test_json_gives_the_same_configuration_back() -> None:
    config = load("vitg14")
    again = tuples(json.loads(to_json(config)))
    assert again == to_dict(config)
    assert isinstance(again["ibot"]["mask_ratio"], tuple)


def test_diff_names_what_changed() -> None:
    old, new = to_dict(load("vitl14")), to_dict(load("vitg14"))
    del old["seed"]
    assert diff_configs(old, new) == [
        "group_size: 32 -> 12",
        "model.variant: vit_large -> vit_giant2",
        "seed: absent -> 0",
    ]


def small() -> ConfigDict:
    """A configuration whose sizes do not follow the recipe of the day."""
    config = load("quickstart")
    config.batch_size = config.group_size = 64
    config.model.patch_size, config.model.dim, config.model.heads = 8, 96, 3
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 100}, r"--config.batch_size=128 or --config.group_size=50"),
        ({"batch_size": 1, "group_size": 1}, "KoLeo needs a neighbour.*--config.group_size=2"),
        ({"crops.global_size": 30}, r"--config.crops.global_size=32"),
        ({"crops.local_size": 20}, r"--config.crops.local_size=16"),
        ({"crops.local_size": 3}, r"--config.crops.local_size=8"),
        ({"eval.image_size": 36}, r"--config.eval.image_size=32"),
        ({"model.variant": "vit_smal"}, "did you mean 'vit_small'"),
        ({"centering": "sinkhorn"}, "did you mean 'sinkhorn_knopp'"),
        ({"model.attention": "flash"}, "did you mean 'splash'"),
        ({"data.source": "folders"}, "did you mean 'folder'"),
        ({"data.source": "folder"}, "config.data.path is empty"),
        ({"model.dim": 100}, "config.model.dim 100 is not a multiple of config.model.heads 3.*=99"),
        ({"model.dim": 0, "model.heads": 7}, r"dim 192 .*--config.model.heads=6"),
        ({"model.dim": 10, "model.heads": 0}, r"heads 3 .*--config.model.dim=9"),
        ({"ibot.mask_ratio": (0.6, 0.5)}, "0 <= low <= high <= 1"),
        (
            {"colour.mean": (123.675, 116.28, 103.53)},
            r'--config.colour.mean="\(0.485,0.456,0.406\)"',
        ),
        ({"colour.std": (58.395, 57.12, 57.375)}, r'std="\(0.229,0.224,0.225\)"'),
        ({"crops.global_scale": (0.0, 0.0)}, r"such as \(0.001, 1\)"),
        ({"batch_size": 2**20 - 1, "group_size": 2**19 - 1}, r"--config.group_size=349525"),
        ({"prototype_block": 2**24 - 1}, r"--config.prototype_block="),
        (
            {"dino.loss_weight": 0.0, "dino.koleo_loss_weight": 0.0, "ibot.loss_weight": 0.0},
            r"--config.dino.loss_weight=1.0",
        ),
        ({"checkpoint.every_steps": 0}, "at least 1"),
        ({"teacher.momentum": 1.5}, "from 0 to 1"),
        ({"mesh.fsdp": 3}, "does not divide the 8 devices; use --config.mesh.fsdp=1"),
        ({"mesh.fsdp": 4, "mesh.tensor": 3}, "fsdp=4 --config.mesh.tensor=1, instead of your 3"),
        ({"mesh.fsdp": 3, "mesh.tensor": 2, "model.heads": 6}, "use --config.mesh.fsdp=1$"),
        (
            {"mesh.tensor": 4, "model.heads": 6},
            "4 does not divide the 6 heads of the model.*mesh.tensor=2$",
        ),
        (
            {"mesh.tensor": 6, "model.heads": 12, "model.dim": 384, "model.ffn": "swiglu"},
            "6 does not divide the 12 heads and 1024 hidden units.*mesh.tensor=2$",
        ),
        ({"mesh.data": 16}, "asks for 16 devices, but there are 8; use --config.mesh.data=-1$"),
        (
            {"mesh.data": 2, "mesh.fsdp": 4, "mesh.tensor": 3},
            "--config.mesh.data=-1 --config.mesh.fsdp=4 --config.mesh.tensor=1, instead of your 3$",
        ),
        ({"mesh.data": 0}, "at least 1, or -1"),
        ({"batch_size": 12, "group_size": 4}, "8 shards.*--config.batch_size=16"),
        ({"seed": -1}, "config.seed is -1, but must be at least 0"),
        ({"colour.hue": 0.7}, "config.colour.hue is 0.7, but must be from 0 to 0.5"),
        ({"colour.blur_sigma": (0.0, 1.0)}, "but needs 0.001 <= low <= high"),
        ({"colour.blur_kernel": 8}, "--config.colour.blur_kernel=9"),
        ({"colour.blur_kernel": 33}, "--config.colour.blur_kernel=31 or less"),
        ({"model.interpolate_antialias": True}, "--config.model.interpolate_offset=0.0"),
        ({"model.in_channels": 1}, r'colour.mean has 3 numbers.*--config.colour.mean="\(0.449,\)"'),
        (
            {"model.in_channels": 2, "colour.mean": (0.5, 0.5)},
            r'colour.std has 3 numbers.*--config.colour.std="\(0.226,0.226\)"',
        ),
    ],
)
def test_what_cannot_run_is_refused_with_a_value_that_can(
    changes: dict[str, Any], message: str
) -> None:
    config = small()
    check_training(config, device_count=8)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        check_training(config, device_count=8)


def test_idle_devices_are_mentioned() -> None:
    config = small()
    config.mesh.data = 2
    idle, spanning = check_training(config, device_count=8)
    assert "2 of 8 devices" in idle
    assert "--config.group_size=32" in spanning


def test_schedules_longer_than_the_run_are_mentioned() -> None:
    config = load("vits14")
    assert check_training(config, device_count=8) == []
    config.total_steps = config.optimizer.freeze_last_layer_steps + 1
    (note,) = check_training(config, device_count=8)
    assert "config.optimizer.warmup_steps" in note


def test_a_frozen_backbone_of_random_weights_is_mentioned() -> None:
    config = small()
    config.optimizer.freeze_backbone_steps = 10
    (note,) = check_training(config, device_count=1)
    assert "keeps random weights" in note
    config.init_from = "dinov2_vits14"
    assert check_training(config, device_count=1) == []


def test_koleo_off_allows_groups_of_one() -> None:
    config = small()
    config.group_size, config.dino.koleo_loss_weight = 1, 0.0
    assert check_training(config, device_count=1) == []
