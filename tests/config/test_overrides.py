"""Overrides: text and Python values, each converted once to the type of its field."""

from typing import Any

import numpy as np
import pytest

from dinov2_jax.config.files import ConfigError, leaves, load_config
from dinov2_jax.config.overrides import override


def overridden(recipe: str, name: str, value: Any) -> Any:
    config = load_config(recipe)
    override(config, {name: value})
    return leaves(config)[name]


@pytest.mark.parametrize(
    ("recipe", "name", "given", "value"),
    [
        ("default", "seed", "1_000", 1000),
        ("default", "seed", np.int64(3), 3),
        ("default", "optimizer.base_lr", "1", 1.0),
        ("default", "optimizer.base_lr", 2, 2.0),
        ("default", "model.qkv_bias", "F", False),
        ("default", "crops.global_scale", "(0.25,1)", (0.25, 1.0)),
        ("default", "crops.global_scale", [0.25, 1], (0.25, 1.0)),
        ("default", "colour.mean", "0.5", (0.5,)),
        ("eval/default", "knn.ks", "10", (10,)),
        ("eval/default", "protocols", "knn,logreg", ("knn", "logreg")),
        ("eval/default", "protocols", "('knn', 'logreg',)", ("knn", "logreg")),
        ("eval/default", "protocols", ["knn"], ("knn",)),
        # Several scales are averaged, although the default is one.
        ("eval/default", "retrieval.scales", "(1.0,0.7071,1.4142)", (1.0, 0.7071, 1.4142)),
        ("eval/default", "segmentation.rates", "0.001,0.01", (0.001, 0.01)),
        ("eval/default", "segmentation.scales", "(1, 1.5)", (1.0, 1.5)),
        ("eval/default", "segmentation.scales", "()", ()),
        ("eval/default", "linear.avgpool", "(False,)", (False,)),
        ("eval/default", "linear.avgpool", "True", (True,)),
        ("embed", "size", "224", (224,)),
        ("embed", "size", "()", ()),
        ("default", "data.path", "/my pictures", "/my pictures"),
        ("default", "data.path", "", ""),
    ],
)
def test_values_get_the_type_of_their_field(recipe: str, name: str, given: Any, value: Any) -> None:
    found = overridden(recipe, name, given)
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in found] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("seed", True, "a whole number"),
        ("seed", 1.5, "a whole number"),
        ("optimizer.base_lr", True, "a number"),
        ("optimizer.base_lr", float("inf"), "a number"),
        ("model.qkv_bias", 2, "true or false"),
        ("crops.global_scale", (0.1, None), "a tuple of 2 numbers"),
        ("data.path", 5, "text"),
        ("seed", None, "a whole number"),
    ],
)
def test_a_python_value_of_another_type_is_refused(name: str, given: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"config.{name} expects {expected}"):
        overridden("default", name, given)
