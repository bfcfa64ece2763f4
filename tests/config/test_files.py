"""Configuration files: found by name and by path, and executed without a trace."""

import os
import sys
import types
from pathlib import Path

import pytest

from dinov2_jax.config.files import ConfigError, find_config, load_config, recipes_folder

ROOT = Path(__file__).resolve().parents[2]


def test_a_recipe_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipes_folder() == ROOT / "configs"
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == ROOT / "configs/quickstart.py"
    assert load_config("eval/knn").protocols == ("knn",)
    assert load_config(str(ROOT / "configs/eval/knn.py")).protocols == ("knn",)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("quikstart", "--config=quickstart"),
        ("knnn", "--config=eval/knn"),
        ("eval/linear_cache", "--config=eval/linear_cached"),
        ("configs/vitl.py", "--config=configs/vitl14.py"),
        ("elsewhere/visualise.py", "--config=configs/visualize.py"),
    ],
)
def test_a_wrong_name_is_answered_by_the_nearest(
    wrong: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as error:
        find_config(wrong)
    assert str(error.value) == f"there is no configuration {wrong}; the nearest one is {nearest}"


def test_a_file_leaves_no_module_and_no_path(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def get_config():\n    from configs.eval import default\n    return default.get_config()\n"
    )
    modules, path = set(sys.modules), list(sys.path)
    assert load_config(str(own)).task == "eval"
    assert sys.path == path
    assert not [name for name in set(sys.modules) - modules if name.startswith("configs")]


def test_another_package_named_configs_is_neither_used_nor_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = types.ModuleType("configs")
    monkeypatch.setitem(sys.modules, "configs", other)
    assert load_config("openmoji").total_steps == 2500
    assert sys.modules["configs"] is other


def test_a_folder_named_configs_adds_to_the_recipes(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "base.py").write_text(
        "from configs import default\n\ndef get_config():\n    return default.get_config()\n"
    )
    (folder / "mine.py").write_text(
        "from configs import base\n\n"
        "def get_config():\n    config = base.get_config()\n"
        "    config.seed = 5\n    return config\n"
    )
    assert load_config(os.fspath(folder / "mine.py")).seed == 5
