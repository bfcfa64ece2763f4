"""Settings that weights come with: config.json, preprocessor_config.json, timm's pretrained_cfg.

Whatever changes features is followed. What cannot be followed is refused, unless `allow` names the
field (or the file); the report then says so.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.files import (
    EXPORTED,
    WeightsError,
    blamed_on,
    is_allowed,
    permission,
    read_settings,
)

Settings = Mapping[str, Any]
Problems = dict[str, str]  # by field, what it asks for that is not possible here

_HERE = "here the shorter side is resized and the centre cut out"
_OF_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_OF_VIT = {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "resample": 2,
    "image_mean": 0.5,
    "image_std": 0.5,
}
# What transformers' processors do where the file is silent.
_DEFAULTS = {"Bit": _OF_CLIP, "CLIP": _OF_CLIP, "ViT": _OF_VIT}
# Steps of processors that change pictures and have no "do_..." of their own.
_STEPS = ("crop_pct", "rescale_offset", "size_divisor", "keep_aspect_ratio", "pad_size")
# Steps that do not change what an RGB picture or its features are.
_HARMLESS = ("do_convert_rgb", "do_reduce_labels", "do_normalize", "do_rescale")
# Arguments of timm's models that tensors tell, or that matter in training only.
_TIMM_TOLD = (
    "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth",
    "num_heads", "mlp_ratio", "qkv_bias", "proj_bias", "init_values", "class_token", "reg_tokens",
    "no_embed_class", "dynamic_img_size", "dynamic_img_pad", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init",
    "fix_init", "pretrained", "pretrained_strict",
)  # fmt: skip


def backbone_config(settings: Settings) -> Settings:
    """The part of config.json that describes the backbone: the whole, or a nested config."""
    nested = [x for x in settings.values() if isinstance(x, dict) and "hidden_size" in x]
    return nested[0] if nested and "hidden_size" not in settings else settings


def untold_fields(settings: Settings) -> dict[str, Any]:
    """What the settings say of the model that no tensor tells: heads, resampling of positions."""
    exported = json.loads(settings.get(EXPORTED, "{}")).get("model", {})
    config, arguments = backbone_config(settings), settings.get("model_args") or {}
    heads = config.get("num_attention_heads") or arguments.get("num_heads")
    found = {"heads": int(heads)} if heads else {}
    for name, kind in (("interpolate_offset", float), ("interpolate_antialias", bool)):
        if name in config:
            found[name] = kind(config[name])
    return found | exported


def check_config(
    settings: Settings, model: VisionTransformer, channels: int, allow: Sequence[str], source: str
) -> list[str]:
    """Refuses a config.json whose model computes other features from the same tensors.

    Returns:
      Notes on the fields that `allow` names.

    Raises:
      WeightsError: listing the fields, and how to load nevertheless.
    """
    problems = _of_timm_model(settings) if "architecture" in settings else {}
    config = backbone_config(settings)
    if config.get("hidden_act", "gelu") not in ("gelu", "gelu_python") and model.ffn == "mlp":
        problems["hidden_act"] = f"hidden_act {config['hidden_act']!r}, here it is the exact GELU"
    if config.get("layer_norm_eps", 1e-6) != 1e-6:
        problems["layer_norm_eps"] = f"layer_norm_eps {config['layer_norm_eps']}, here it is 1e-06"
    told = {
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "patch_size": model.patch_size,
        "num_channels": channels,
        "num_register_tokens": model.registers,
        "use_swiglu_ffn": model.ffn == "swiglu",
        "qkv_bias": model.qkv_bias,
    }
    for name, value in told.items():
        stored = config.get(name, value)
        if stored not in (value, [value, value]):
            problems[name] = f"{name} {stored}, but the tensors say {value}"
    return _followed(f"config.json of {source}", "config.json", problems, allow)


def _of_timm_model(settings: Settings) -> Problems:
    problems = {}
    if "quickgelu" in str(settings["architecture"]):
        problems["architecture"] = f"architecture {settings['architecture']!r}, here GELU is exact"
    for name, value in (settings.get("model_args") or {}).items():
        usual = value in (None, "gelu") if name == "act_layer" else value in (None, False)
        if name not in _TIMM_TOLD and not usual:
            problems[name] = f"{name} {value!r}, which is not known here"
    return problems


def stored_preprocessing(
    folder: Path | None, settings: Settings, channels: int, allow: Sequence[str]
) -> tuple[Preprocessing, list[str]]:
    """What the weights expect of a picture, and notes on it.

    Args:
      folder: where the weights lie, if they are a directory.
      settings: of config.json, which may hold timm's pretrained_cfg.
      channels: of the images that the backbone takes.

    Returns:
      The evaluation transform of the reference where nothing is stored.

    Raises:
      WeightsError: something is stored that cannot be followed.
    """
    if folder is None:
        return Preprocessing(), []
    file = folder / "preprocessor_config.json"
    problems: Problems = {}
    notes: list[str] = []
    with blamed_on(file):
        if file.is_file():
            name = str(file)
            found, notes = _of_transformers(read_settings(file), channels, problems, name)
        elif "architecture" in settings:
            name = f"config.json of {folder}"
            found = _of_timm(settings, channels, problems, name)
        else:
            return Preprocessing(), []
    return found, [*notes, *_followed(name, file.name, problems, allow)]


def _followed(name: str, file: str, problems: Problems, allow: Sequence[str]) -> list[str]:
    refused = [field for field in problems if not is_allowed(field, allow) and file not in allow]
    if refused:
        raise WeightsError(
            f"{name} asks for {'; '.join(problems[field] for field in refused)}; to load the "
            f"weights nevertheless: {permission(allow, refused)}"
        )
    return [f"not followed, as allowed: {text}" for text in problems.values()]


def _of_transformers(
    stored: Settings, channels: int, problems: Problems, name: str
) -> tuple[Preprocessing, list[str]]:
    kind = stored.get("image_processor_type") or stored.get("feature_extractor_type") or "Bit"
    known = re.match(r"(Bit|CLIP|ViT)(ImageProcessor|FeatureExtractor|$)", str(kind))
    defaults = _DEFAULTS[known[1]] if known else {}
    given = {key: value for key, value in stored.items() if value is not None}
    told = defaults | given
    silent = [key for key in _OF_CLIP if key not in told]
    if silent and (silent != ["crop_size"] or told["do_center_crop"]):
        text = f"{kind}, whose {', '.join(silent)} are not stored and not known here"
        problems["image_processor_type"] = text
    assumed = [key for key in ("size", "image_mean", "image_std") if key not in given]
    notes = [f"{name} has no {key}: {defaults[key]}" for key in assumed if key in defaults]
    values = _OF_CLIP | told
    resize_px = _shorter_side(values["size"], values, problems)
    image_px = _square(values["crop_size"], problems) if values["do_center_crop"] else resize_px
    if not values["do_center_crop"]:
        problems["do_center_crop"] = f"do_center_crop {values['do_center_crop']} ({_HERE})"
    if str(values["resample"]).lower() not in ("3", "bicubic"):
        problems["resample"] = f"resample {values['resample']}, here it is 3 (bicubic)"
    for key, value in given.items():
        step = key.startswith("do_") and key not in (*_HARMLESS, "do_resize", "do_center_crop")
        if value and (step or key in _STEPS):
            problems[key] = f"{key} {value}, which is not possible here"
    (factor,) = _numbers("rescale_factor", values.get("rescale_factor", 1 / 255), 1, problems, name)
    scale = 255 * factor if values.get("do_rescale", True) else 255.0
    mean, std = values["image_mean"], values["image_std"]
    if not values.get("do_normalize", True):
        mean, std = 0.0, 1.0
    statistics = (
        tuple(x / scale for x in _numbers("image_mean", mean, channels, problems, name)),
        tuple(x / scale for x in _numbers("image_std", std, channels, problems, name)),
    )
    return Preprocessing(resize_px, image_px, *statistics), notes


def _shorter_side(size: Any, values: Settings, problems: Problems) -> int:
    """The side to which `size` resizes, in px."""
    if not values.get("do_resize", True):
        problems["do_resize"] = f"do_resize False ({_HERE})"
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        size = size["shortest_edge"]
    if _is_side(size) and not values.get("default_to_square", False):
        return int(size)
    problems["size"] = f"size {size} ({_HERE})"
    sides = [x for x in _members(size) if _is_side(x)]
    return int(min(sides, default=Preprocessing.resize_px))


def _square(crop: Any, problems: Problems) -> int:
    sides = [x for x in _members(crop) if _is_side(x)]
    if len(set(sides)) != 1 or len(sides) != len(_members(crop)):
        problems["crop_size"] = f"crop_size {crop} (here it is a square)"
    return int(min(sides, default=Preprocessing.image_px))


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [x for x in value.values() if x is not None]
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_side(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value >= 1 and value % 1 == 0


def _numbers(
    key: str, value: Any, channels: int, problems: Problems, name: str
) -> tuple[float, ...]:
    """One number a channel, of one number or of as many; finite, and positive but for means."""
    numbers = _members(value)
    wrong = not numbers or not all(
        isinstance(x, int | float) and math.isfinite(x) and (key.endswith("mean") or x > 0)
        for x in numbers
    )
    if wrong:
        raise WeightsError(f"{name}: {key} is {value}, which fits no picture; correct it")
    if len(numbers) not in (1, channels):
        problems[key] = f"{key} {value} for images of {channels} channels"
        numbers = [sum(numbers) / len(numbers)]
    return tuple(float(x) for x in (numbers * channels if len(numbers) == 1 else numbers))


def _of_timm(settings: Settings, channels: int, problems: Problems, name: str) -> Preprocessing:
    """Reads pretrained_cfg as timm's evaluation transform does."""
    stored = settings.get("pretrained_cfg") or settings
    given = {key: value for key, value in stored.items() if value is not None}
    sides = given.get("input_size", (channels, 224, 224))[-2:]
    image_px = _square(list(sides), problems)
    (share,) = _numbers("crop_pct", given.get("crop_pct", 0.875), 1, problems, name)
    if given.get("crop_mode", "center") != "center":
        problems["crop_mode"] = f"crop_mode {given['crop_mode']!r} ({_HERE})"
    if given.get("interpolation", "bicubic") != "bicubic":
        problems["interpolation"] = f"interpolation {given['interpolation']!r}, here it is bicubic"
    if "crop_size" in problems:
        problems["input_size"] = problems.pop("crop_size").replace("crop_size", "input_size")
    mean, std = given.get("mean", Preprocessing.mean), given.get("std", Preprocessing.std)
    return Preprocessing(
        math.floor(image_px / share),
        image_px,
        _numbers("mean", mean, channels, problems, name),
        _numbers("std", std, channels, problems, name),
    )
