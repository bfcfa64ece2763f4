"""Reading and comparing configurations, without importing JAX.

A configuration is a Python file with `get_config() -> ml_collections.ConfigDict`. Its leaves are
bool, int, float, str or tuples of these, never lists, so a list in a stored JSON was always a
tuple.
"""

import contextlib
import difflib
import importlib.util
import json
import os
import re
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from dinov2_jax.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot run; the message is one sentence with the remedy."""


# ----------------------------------------------------------------------------------- names
def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """All fields of a nested mapping as {dotted name: value}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict | ml_collections.ConfigDict)
        found |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def local_path(path: str | os.PathLike[str], field: str = "the path") -> Path:
    """A path of this machine, ~ expanded.

    Raises:
      ConfigError: a URL, of which nothing here can be read or written; `field` names where it was
        given.
    """
    if _URL.match(os.fspath(path)):
        raise ConfigError(
            f"{field}={os.fspath(path)} is a URL; mount the bucket (gcsfuse, mount-s3) or copy the "
            "files, and name the folder"
        )
    return Path(path).expanduser()


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/dinov2_jax`, by default `~/.cache/dinov2_jax`.

    A user without a home directory, as in some containers, has one in the folder for temporary
    files.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(given) if given else Path.home() / ".cache"
    except RuntimeError:
        root = Path(tempfile.gettempdir())
    return root / "dinov2_jax"


def nearest(name: str, candidates: Sequence[str]) -> str:
    """The candidate most similar to `name`; the last dotted part counts nearly as the whole."""
    return max(candidates, key=lambda candidate: _similarity(name, candidate, "."))


def _similarity(name: str, other: str, separator: str) -> float:
    whole = difflib.SequenceMatcher(None, name, other).ratio()
    last = difflib.SequenceMatcher(None, name.split(separator)[-1], other.split(separator)[-1])
    return max(whole, 0.95 * last.ratio())


# ----------------------------------------------------------------------------------- files
def recipes_folder() -> Path:
    """The folder of the recipes: inside the installed package, or `configs/` of the checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def load_config(name_or_path: str) -> ml_collections.ConfigDict:
    """Runs `get_config()` of a configuration file.

    Args:
      name_or_path: a recipe's name, such as quickstart or eval/knn, or the path of a Python file.
        `name:text` calls `get_config("text")`.

    Raises:
      ConfigError: no such file (the message names the nearest one), or it holds no `get_config`.
    """
    name, _, argument = name_or_path.partition(":")
    file = find_config(name)
    with _configs_importable(file):
        spec = importlib.util.spec_from_file_location("dinov2_jax_config", file)
        if spec is None or spec.loader is None:
            raise ConfigError(
                f"{file} is no Python file; a configuration is a .py file with get_config()"
            )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            form = recipes_folder() / "default.py"
            raise ConfigError(f"{file} defines no get_config(); see {form} for the form")
        return module.get_config(argument) if argument else module.get_config()


def find_config(name_or_path: str) -> Path:
    """The file of a recipe's name (quickstart, eval/knn) or of a path.

    Raises:
      ConfigError: no such file; the message names the nearest one.
    """
    path = Path(name_or_path).expanduser()
    for file in (path, recipes_folder() / f"{name_or_path}.py"):
        if os.path.isfile(file):  # a name that is too long is no error, but no file
            return file
    raise ConfigError(_missing_config(path))


def config_folders(file: Path) -> list[Path]:
    """Where a configuration file's `from configs import ...` looks: its own `configs/` first."""
    own = [folder for folder in file.resolve().parents if folder.name == "configs"]
    return list(dict.fromkeys([*own[:1], recipes_folder()]))


@contextlib.contextmanager
def _configs_importable(file: Path) -> Iterator[None]:
    """Inside, `file` can import `configs` and the modules beside it; afterwards nothing remains.

    A module named `configs` belongs to the configuration files alone: another package of this name
    in the host program is neither used nor replaced.
    """
    root = file.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    hidden = {name: sys.modules.pop(name) for name in _configs_modules()}
    package = types.ModuleType("configs")
    package.__path__ = [str(folder) for folder in config_folders(file)]
    sys.modules["configs"] = package
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        for name in _configs_modules():
            del sys.modules[name]
        sys.modules.update(hidden)


def _configs_modules() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "configs"]


def _missing_config(path: Path) -> str:
    recipes = recipes_folder()
    if not path.name:  # "", "." or "/"
        return f"{str(path)!r} names no configuration; give a recipe such as quickstart, or a file"
    names = {
        recipe.relative_to(recipes).with_suffix("").as_posix(): ""
        for recipe in recipes.rglob("*.py")
        if recipe.name != "__init__.py"
    }
    if path.suffix == ".py":  # a path is answered by a path, where there is one
        folders = [folder for folder in (path.parent, Path("configs")) if folder.is_dir()]
        found = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
        names |= {file.with_suffix("").as_posix(): ".py" for file in found if "__" not in file.name}
    if not names:
        return f"there is no configuration file {path}; give the path of a .py file"
    wanted = path.with_suffix("").as_posix()
    closest = max(names, key=lambda name: (_similarity(wanted, name, "/"), names[name]))
    file = f"{closest}{names[closest]}"
    return f"there is no configuration {path}; the nearest one is --config={file}"


# ------------------------------------------------------------------------------------ JSON
def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Plain nested dict of the resolved configuration."""
    items = config.items()
    return {key: to_dict(value) if hasattr(value, "items") else value for key, value in items}


def tuples(value: Any) -> Any:
    """The same nested value with every list turned into the tuple it was before JSON."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list | tuple) else value


def to_json(config: ml_collections.ConfigDict) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def diff_configs(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line a field that differs, as `model.dim: 96 -> 128`, sorted by name.

    How the processes were started (`distributed`) is no property of a run.
    """
    before, after = leaves(tuples(old)), leaves(tuples(new))
    names = sorted(name for name in {*before, *after} if not name.startswith("distributed."))
    pairs = {name: (before.get(name, "absent"), after.get(name, "absent")) for name in names}
    return [f"{name}: {left} -> {right}" for name, (left, right) in pairs.items() if left != right]
