"""Odd values: every configuration refuses them in a sentence, or runs with them."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from dinov2_jax.config.checks import check_values
from dinov2_jax.config.files import ConfigError, leaves, load_config
from dinov2_jax.config.overrides import override
from dinov2_jax.errors import UserError
from dinov2_jax.main import require_task
from dinov2_jax.stages.recipe import read_recipe
from dinov2_jax.stages.rules import check_recipe
from dinov2_jax.stages.settings import override_recipe
from dinov2_jax.train.checks import check_training
from tests.config.test_rules import RECIPES, ROOMS

# fmt: off
NUMBERS = (
    "0", "1", "-1", "2", "3", "7", "10", "1e-12", "0.5", "0.999999999", "1.0", "1.5", "-0.5", "64",
    "255", "256", "1000", "65537", "1e5", "1e30", "-1e30", "1e400", "nan", "inf", "-inf",
    "2147483647", "2147483648", "9223372036854775807", "9223372036854775808",
    "-9223372036854775809", "1" + "0" * 40, "9" * 400, "9" * 5000,
)
TEXTS = (
    "", " ", "true", "False", "None", "null", "auto", "none", "no", "abc", "1,2", "(1,2)", "(2,1)",
    "(0.9,0.1)", "(0,0)", "(1,)", "()", "[]", "[1,2,3]", "(0.0,0.0)", "(123.7,116.3,103.5)",
    "(-1,1,1)", "(0,0,0)", "(2,2,2)", "(nan,nan)", "((1,2),3)", "{}", "'", "(", "a" * 3000, "\x00",
    "\udcff", "é", "\n", "../x", "~nobody/x", "gs://bucket/x", "%s{}", "10.0.0.1:0", "host:99999",
)
# fmt: on
DRAWS = 500


def odd_overrides(rng: np.random.Generator, fields: dict[str, Any]) -> dict[str, str]:
    """One to four fields with odd values, mostly of the field's type."""
    names = rng.choice(sorted(fields), int(rng.integers(1, 5)), replace=False)
    found = {}
    for name in map(str, names):
        value, length = fields[name], int(rng.integers(1, 4))
        kind = type(value[0] if value else 0) if isinstance(value, tuple) else type(value)
        texts = NUMBERS if kind in (int, float) and rng.random() < 0.8 else TEXTS
        if isinstance(value, tuple) and rng.random() < 0.8:
            length = len(value) if rng.random() < 0.8 else length
            found[name] = f"({','.join(rng.choice(NUMBERS[:-8], length))},)"
        else:
            found[name] = str(rng.choice(texts))
    return found


def check(config: ConfigDict, devices: int) -> None:
    """What a command checks before it reads weights or pictures."""
    require_task(config)
    if config.task in ("train", "plan"):
        check_training(config, devices)
    elif config.task == "stages":
        check_recipe(config)
        read_recipe(config, Path("runs/odd"))
    else:
        check_values(config, importlib.import_module(ROOMS[config.task]).RULES)


def drawn(seed: int, recipes: list[str]) -> Iterator[tuple[str, dict[str, str], int]]:
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        recipe = str(rng.choice(recipes))
        given = odd_overrides(rng, leaves(load_config(recipe)))
        yield recipe, given, int(rng.choice([1, 2, 6, 8]))


def test_odd_overrides_are_refused_or_accepted() -> None:
    refused = 0
    for recipe, given, devices in drawn(0, RECIPES):
        config = load_config(recipe)
        try:
            (override_recipe if "stages" in config else override)(config, given)
            check(config, devices)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error).strip(), (recipe, given)
        except Exception as error:
            raise AssertionError(f"{recipe} with {given} on {devices} devices") from error
    assert DRAWS / 2 < refused < DRAWS


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("seed", ["9223372036854775808", "-1"]),
        ("optimizer.base_lr", ["-0.01", "100"]),
        ("optimizer.min_lr", ["-1"]),
        ("optimizer.warmup_steps", ["-5"]),
        ("optimizer.weight_decay", ["-1", "1e3"]),
        ("optimizer.weight_decay_end", ["-1"]),
        ("optimizer.beta1", ["1.0", "-0.1"]),
        ("optimizer.beta2", ["1.0", "2"]),
        ("optimizer.layerwise_decay", ["0", "9"]),
        ("optimizer.patch_embed_lr_multiplier", ["-1"]),
        ("optimizer.clip_norm", ["0", "-1"]),
        ("teacher.momentum", ["1.1", "-1"]),
        ("teacher.temp", ["0", "1e9"]),
        ("model.depth", ["-1", "1000000"]),
        ("model.heads", ["-1", "7"]),
        ("model.layerscale", ["-1"]),
        ("dino.loss_weight", ["-1"]),
        ("dino.koleo_loss_weight", ["-0.1"]),
        ("ibot.loss_weight", ["-1"]),
        ("dino.head_layers", ["0"]),
        ("dino.head_bottleneck_dim", ["0", "-1"]),
        ("ibot.head_hidden_dim", ["0"]),
        ("colour.mean", ["(123.7,116.3,103.5)", "(-0.1,0.5,0.5)"]),
        ("colour.std", ["(58.4,57.1,57.4)", "(0,0,0)", "(-1,1,1)"]),
        ("colour.blur_sigma", ["(0,0)", "(2.0,0.1)"]),
        ("colour.jitter_probability", ["2", "-1"]),
        ("colour.blur_probabilities", ["(0,2,0)"]),
        ("colour.solarize_probability", ["1.1"]),
        ("colour.brightness", ["-1", "3"]),
        ("colour.solarize_threshold", ["1000", "-1"]),
        ("crops.global_scale", ["(0,0)", "(0.5,0.1)", "(0.5,2)"]),
        ("crops.local_number", ["-1"]),
        ("data.max_pixels", ["0", "-1"]),
        ("data.max_bad_fraction", ["2"]),
        ("data.workers", ["-1", "100000"]),
        ("eval.resize_size", ["0"]),
        ("eval.temperature", ["0"]),
        ("checkpoint.keep_every_steps", ["-1"]),
        ("checkpoint.keep_last", ["0"]),
    ],
)
def test_values_that_train_nonsense_are_refused(field: str, values: list[str]) -> None:
    for value in values:
        config = load_config("quickstart")
        override(config, {field: value})
        with pytest.raises(ConfigError, match=rf"config\.{field} (is )?.*|config.model.heads"):
            check_training(config, 1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_another_task_than_the_files_own_is_refused(recipe: str) -> None:
    for task in ROOMS:
        config = load_config(recipe)
        if config.task != task:
            config.task = task
            with pytest.raises(ConfigError, match=f"no field config.*config.task={task} needs"):
                check(config, 1)


def test_a_field_that_is_no_number_is_refused() -> None:
    config = load_config("quickstart")
    with config.ignore_type():
        config.batch_size = "64"
    with pytest.raises(ConfigError, match=r"batch_size is 64, but must be a number"):
        check_training(config, 1)
