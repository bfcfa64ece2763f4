"""The stand-ins do what the packages do, as far as the step uses them."""

import importlib.util
import re
import sys
from pathlib import Path

import einops
import ml_collections
import numpy as np
import pytest

from dinov2_jax.bench import stand_ins
from dinov2_jax.config.files import load_config, to_dict

PACKAGE = Path(stand_ins.__file__).resolve().parents[1]
SIZES = {"g": 2, "n": 3, "v": 2, "c": 2, "d": 5}


def patterns():
    """All that the package hands to `rearrange`, with the sizes that it names."""
    texts = [path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "stand_ins.py"]
    return [call for text in texts for call in re.findall(r'"([^"]* -> [^"]*)", (\w)=', text)]


@pytest.mark.parametrize(("pattern", "name"), patterns())
def test_every_pattern_of_the_package(pattern, name):
    groups = re.findall(r"\(.+?\)|\S+", pattern.split("->")[0])
    shape = [np.prod([SIZES.get(n, 7) for n in re.findall(r"\w+", group)]) for group in groups]
    x = np.arange(np.prod(shape)).reshape([int(size) for size in shape])
    want = einops.rearrange(x, pattern, **{name: SIZES[name]})
    np.testing.assert_array_equal(
        stand_ins.rearrange(x, pattern, **{name: SIZES[name]}), want, strict=True
    )


def test_there_are_patterns():
    assert len(patterns()) >= 4


@pytest.mark.parametrize("sizes", [{"n": 4}, {}, {"n": 2, "v": 2}])
def test_what_does_not_fit_is_refused(sizes):
    with pytest.raises(ValueError, match="does not fit"):
        stand_ins.rearrange(np.zeros((2, 6)), "g (n v) -> g n v", **sizes)


def test_settings_are_read_and_changed_as_in_a_config_dict():
    real = load_config("vitl16_short")
    config = stand_ins.ConfigDict(to_dict(real))
    assert to_dict(config) == to_dict(real)
    copy = config.copy_and_resolve_references()
    copy.model.remat = "none"
    copy.crops = {"global_size": 32}
    assert copy.model["remat"] == "none" and copy.crops.global_size == 32
    assert config.model.remat == real.model.remat and {**config.crops} == {**real.crops}
    with pytest.raises(AttributeError, match="nothing"):
        _ = config.nothing


def test_only_what_is_missing_is_replaced(monkeypatch):
    assert stand_ins.install() == []
    monkeypatch.delitem(sys.modules, "ml_collections")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ml_collections" else found(name)
    )
    # What stands here now is put back at the end.
    monkeypatch.setitem(sys.modules, "ml_collections", ml_collections)
    del sys.modules["ml_collections"]
    assert stand_ins.install() == ["ml_collections"]
    assert sys.modules["ml_collections"].ConfigDict is stand_ins.ConfigDict
    assert load_config("vits14").model.variant == "vit_small"
    assert isinstance(load_config("vits14"), stand_ins.ConfigDict)
