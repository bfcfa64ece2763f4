"""Reading and comparing configurations, without importing JAX.

A configuration is a Python file with `get_config() -> ml_collections.ConfigDict`. Its leaves are
bool, int, float, str or tuples of those, never lists, so that a list found in a stored JSON is
always a tuple. Everything here and in checks.py runs before the first compile, so a wrong name or
value costs a second and one sentence instead of a minute and a traceback.
"""

import difflib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from dinov2_jax.errors import UserError

CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("train", "eval", "plan", "export", "embed", "visualize"),
    "compute_dtype": ("auto", "float32", "bfloat16"),
    "model.variant": ("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_giant2"),
    "model.ffn": ("mlp", "swiglu"),
    "model.attention": ("auto", "xla", "looped", "cudnn", "triton", "splash"),
    "model.remat": ("none", "pointwise", "blocks"),
    "centering": ("centering", "sinkhorn_knopp"),
    "optimizer.lr_scaling": ("sqrt_wrt_1024", "none"),
    "data.source": ("folder", "tar", "array_record", "tfds", "openmoji"),
    "eval.labels": ("auto", "folders", "none"),
    "data.labels": ("auto", "folders", "none"),
    "which": ("teacher", "student"),
    "format": ("reference", "pth", "huggingface", "timm", "bundle", "stablehlo", "onnx"),
    "pca.side": ("auto", "high", "low"),
    "policy": ("center_crop", "resize", "pad"),
    "store.format": ("parquet", "npy"),
    "store.dtype": ("float32", "float16"),
    "linear.rates": ("code", "paper"),
    "data.set": (
        *("", "imagenet", "imagenet_tfds", "food101", "cifar10", "cifar100", "sun397", "cars"),
        *("aircraft", "voc2007", "dtd", "pets", "caltech101", "flowers102", "cub200"),
    ),
    "video.set": ("", "ucf101", "kinetics400", "ssv2"),
    "retrieval.set": ("", "roxford5k", "rparis6k", "met", "amstertime"),
}


class ConfigError(UserError):
    """A configuration that cannot run; the message is one sentence with the remedy."""


# ----------------------------------------------------------------------------------- names
def leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """All fields of a nested mapping as {dotted name: value}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict | ml_collections.ConfigDict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def nearest(name: str, candidates: Sequence[str]) -> str:
    """The candidate most like `name`; likeness of the last dotted part counts nearly as much."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.split(".")[-1], candidate.split(".")[-1]).ratio()
        return max(whole, 0.95 * last)

    return max(candidates, key=likeness)


# ----------------------------------------------------------------------------------- files
def load_config(path: str) -> ml_collections.ConfigDict:
    """Runs the file's `get_config()`; `file.py:argument` passes the argument on.

    Raises:
        ConfigError: if there is no such file (naming the nearest one) or it holds no `get_config`.
    """
    file_name, _, argument = path.partition(":")
    file = Path(file_name)
    if not file.is_file():
        raise ConfigError(_missing_config(file))
    make_importable(file)
    spec = importlib.util.spec_from_file_location("dinov2_jax_config", file)
    if spec is None or spec.loader is None:
        raise ConfigError(
            f"{file} is no Python file; a configuration is a .py file with get_config()"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{file} defines no get_config(); see configs/default.py for the form")
    return module.get_config(argument) if argument else module.get_config()


def make_importable(file: Path) -> None:
    """Lets a configuration `from configs import default`, wherever the command is started.

    The checkout that holds the file comes first; the one that holds this package is the fallback,
    for a user's own file.
    """
    root = file.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    checkout = str(Path(__file__).resolve().parents[2])
    if checkout not in sys.path:
        sys.path.append(checkout)


def _missing_config(file: Path) -> str:
    checkout = Path(__file__).resolve().parents[2] / "configs"
    folders = [folder for folder in (file.parent, Path("configs"), checkout) if folder.is_dir()]
    found = sorted(
        {str(p) for folder in folders for p in folder.rglob("*.py") if p.name != "__init__.py"}
    )
    if not found:
        return f"no configuration file {file}; run from the checkout, or give the whole path"
    by_stem = {Path(name).stem: name for name in reversed(found)}
    closest = by_stem[nearest(file.stem, list(by_stem))]
    return f"no configuration file {file}; the nearest one is {closest}"


# ------------------------------------------------------------------------------------ JSON
def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Plain nested dict of the resolved configuration."""
    return {
        key: to_dict(value) if hasattr(value, "items") else value for key, value in config.items()
    }


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
    lines = []
    for name in sorted({*before, *after}):
        if name.startswith("distributed."):
            continue
        left, right = before.get(name, "absent"), after.get(name, "absent")
        if left != right:
            lines.append(f"{name}: {left} -> {right}")
    return lines
