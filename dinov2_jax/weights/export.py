"""Writes weights in formats that other programs open, and compares each export with its source.

An export is a directory <workdir>/<format>/ with the files and report.json, which lists what was
compared and with which result. The directory appears only when all comparisons have passed.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from dinov2_jax import __version__
from dinov2_jax.config.files import ConfigError
from dinov2_jax.run.files import write_json
from dinov2_jax.weights import huggingface, onnx, stablehlo
from dinov2_jax.weights.architecture import in_channels
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.convert import flatten, to_reference
from dinov2_jax.weights.files import EXPORTED, WeightsError
from dinov2_jax.weights.heads import linear_heads, write_heads
from dinov2_jax.weights.layouts import from_reference_names
from dinov2_jax.weights.load import Backbone, load
from dinov2_jax.weights.stablehlo import Programs

FORMATS = ("reference", "pth", "huggingface", "timm", "bundle", "stablehlo", "onnx")
# timm adds the position of the cls token to the cls token, which rounds once.
MAX_DIFFERENCE = 1e-5


def run(config: ConfigDict, workdir: str) -> Path:
    """Runs the task "export", see configs/export.py; prints what was written and compared.

    Raises:
      ConfigError: no checkpoint or no format is given.
      WeightsError, CheckpointError: as `load` and `export`.
    """
    for field, example in (("checkpoint", "runs/quickstart"), ("format", "huggingface")):
        if not config[field]:
            raise ConfigError(f"no {field} given; add --config.{field}={example}")
    backbone = load(
        config.checkpoint,
        which=config.which,
        heads=config.heads or None,
        allow=config.allow.split(","),
    )
    print("\n".join(backbone.report))
    sizes = [_size(text, backbone.model.patch_size) for text in config.image_sizes]
    programs = Programs(sizes, config.batch_sizes, config.bake_positions)
    folder = export(backbone, config.format, workdir or "exports", programs)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for name, size in report["files_bytes"].items():
        print(f"{size / 2**20:10.2f} MiB  {folder / name}")
    print("".join(f"{note}\n" for note in report["notes"]), end="")
    print(
        f"re-opened; {len(report['compared'])} comparisons with the source, greatest difference "
        f"{report['greatest_difference']:.2g}: {folder / 'report.json'}"
    )
    return folder


def _size(text: str, patch: int) -> tuple[int, int]:
    """ "224x336" -> (224, 336)."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    height, width = (int(found[1]), int(found[2])) if found else (0, 0)
    if not found or height % patch or width % patch or not height * width:
        raise ConfigError(
            f"config.image_sizes has {text!r}; a size is height x width in multiples of {patch} "
            f"px, such as {16 * patch}x{16 * patch}"
        )
    return height, width


def export(
    backbone: Backbone, form: str, workdir: str | Path, programs: Programs | None = None
) -> Path:
    """Writes <workdir>/<form>/ and returns it.

    Args:
      form: one of FORMATS. "reference" is safetensors with the names of the released .pth files;
        "pth" the same as torch saves it; "huggingface" a directory for AutoModel.from_pretrained,
        or AutoModelForImageClassification where a head reads cls and mean patch of the last block;
        "timm" safetensors for timm.create_model; "bundle" ours. "reference", "pth" and "bundle"
        keep all linear heads.
      programs: of "stablehlo" and "onnx".

    Raises:
      WeightsError: an unknown form, one that cannot hold this model, a folder that exists already,
        or an export that differs from its source.
    """
    if form not in FORMATS:
        raise WeightsError(f"unknown format {form!r}; choose one of {', '.join(FORMATS)}")
    folder = Path(workdir).expanduser() / form
    if folder.exists():
        raise WeightsError(f"{folder} exists already; give another --workdir, or remove it")
    unfinished = folder.with_name(f".{form}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        compared = _write(backbone, form, unfinished, programs or Programs())
        _write_report(backbone, form, unfinished, compared)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write(backbone: Backbone, form: str, folder: Path, programs: Programs) -> dict[str, float]:
    """Writes the files; returns the greatest difference of each comparison."""
    if form in ("stablehlo", "onnx"):
        module = stablehlo if form == "stablehlo" else onnx
        compared = module.write(backbone, folder, programs)
    else:
        path = _WRITERS[form](backbone, folder)
        compared = _compare(backbone, path)
    worst = max(compared, key=lambda name: compared[name])
    if not compared[worst] <= MAX_DIFFERENCE:  # also nan
        raise WeightsError(
            f"the {form} export differs from its source by {compared[worst]:.2g} in {worst}, more "
            f"than {MAX_DIFFERENCE:g}; nothing was written"
        )
    return compared


def reference_tensors(backbone: Backbone) -> dict[str, np.ndarray]:
    """The backbone's tensors with the layout and names of the released files."""
    flat = to_reference(backbone.params, backbone.model.patch_size)
    return {name: np.ascontiguousarray(x, np.float32) for name, x in flat.items()}


def _write_reference(backbone: Backbone, folder: Path) -> Path:
    path = folder / "backbone.safetensors"
    save_file(reference_tensors(backbone), path, _exported(backbone))
    write_heads(folder, linear_heads(backbone.heads))
    return path


def _exported(backbone: Backbone) -> dict[str, str]:
    """What the tensors do not tell; `load` reads it again."""
    about = {"preprocessing": dataclasses.asdict(backbone.preprocessing)}
    return {EXPORTED: json.dumps(about)}


def _write_pth(backbone: Backbone, folder: Path) -> Path:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            'format pth is written by torch: pip install "dinov2_jax[torch]"; or use reference, '
            "the same tensors as safetensors"
        ) from error
    path = folder / "backbone.pth"
    torch.save({k: torch.from_numpy(x) for k, x in reference_tensors(backbone).items()}, path)
    write_json(path.with_suffix(".json"), _exported(backbone))
    write_heads(folder, linear_heads(backbone.heads))
    return path


def _write_timm(backbone: Backbone, folder: Path) -> Path:
    path = folder / "model.safetensors"
    about = {"format": "pt"} | _exported(backbone)
    save_file(from_reference_names(reference_tensors(backbone), "timm"), path, about)
    return path


def _write_bundle(backbone: Backbone, folder: Path) -> Path:
    path = folder / "bundle"
    heads = linear_heads(backbone.heads)
    given = backbone.model, backbone.params, backbone.preprocessing, backbone.source
    write_bundle(path, *given, heads)
    return path


def _write_huggingface(backbone: Backbone, folder: Path) -> Path:
    huggingface.write(backbone, reference_tensors(backbone), folder)
    return folder


_WRITERS: Mapping[str, Callable[[Backbone, Path], Path]] = {
    "reference": _write_reference,
    "pth": _write_pth,
    "huggingface": _write_huggingface,
    "timm": _write_timm,
    "bundle": _write_bundle,
}


def _compare(backbone: Backbone, path: Path) -> dict[str, float]:
    """Loads `path` again; returns the greatest difference of each tensor, head and feature."""
    allow = ["mask_token"] if path.suffix == ".safetensors" else []
    again = load(path, heads=backbone.model.heads, allow=allow)
    if again.preprocessing != backbone.preprocessing:
        raise WeightsError(
            f"the export keeps {again.preprocessing} instead of {backbone.preprocessing}, so its "
            "features of a picture would differ; nothing was written"
        )
    compared = _compare_tensors(backbone, again) | _compare_heads(backbone, again)
    for size, (ours, theirs) in _features(backbone, again).items():
        compared[f"features at {size}"] = max(
            float(np.abs(ours[name] - theirs[name]).max()) for name in ("cls", "patches")
        )
    return compared


def _compare_tensors(backbone: Backbone, again: Backbone) -> dict[str, float]:
    """Compares all tensors but those that timm does not keep: mask token, cls token, position."""
    lost = set()
    if again.layout == "timm":
        lost = {"mask_token"} | ({"cls_token", "pos_embed"} if again.model.registers else set())
    have, want = flatten(again.params), flatten(backbone.params)
    return {
        f"tensor {name}": float(np.abs(np.asarray(have[name]) - np.asarray(value)).max())
        for name, value in want.items()
        if name not in lost
    }


def _compare_heads(backbone: Backbone, again: Backbone) -> dict[str, float]:
    """Compares the linear heads that the format keeps; `_notes` names the others."""
    kept = linear_heads(again.heads)
    if again.layout == "huggingface" and kept:
        name = huggingface.classifier_of(backbone)
        kept = {name: kept["classifier"]} if name else {}
    return {
        f"head {name}": max(
            float(np.abs(head[part] - backbone.heads[name][part]).max())
            for part in ("weight", "bias")
        )
        for name, head in kept.items()
    }


def _notes(backbone: Backbone, form: str) -> list[str]:
    """One sentence for each linear head that the format does not keep."""
    lost = linear_heads(backbone.heads)
    if form in ("reference", "pth", "bundle"):
        return []
    if form == "huggingface":
        lost.pop(huggingface.classifier_of(backbone), None)
    return [
        f"the head {name!r} reads {head['metadata']['blocks']} blocks with avgpool="
        f"{head['metadata']['avgpool']} and is not part of this export; --config.format=bundle or "
        "reference keeps it"
        for name, head in lost.items()
    ]


def _features(backbone: Backbone, again: Backbone) -> dict[str, tuple[Any, Any]]:
    """Features of noise by both, at the table's own size and at another one that is not square."""
    patch, own = backbone.model.patch_size, backbone.model.image_size
    channels, rng = in_channels(backbone.params, patch), np.random.default_rng(0)
    found = {}
    for height, width in ((own, own), (3 * patch, 5 * patch)):
        images = rng.standard_normal((2, height, width, channels)).astype(np.float32)
        found[f"{height} x {width} px"] = tuple(
            jax.device_get(
                jax.jit(side.model.clone(dtype=np.float32).apply)({"params": side.params}, images)
            )
            for side in (backbone, again)
        )
    return found


def _write_report(
    backbone: Backbone, form: str, folder: Path, compared: Mapping[str, float]
) -> None:
    files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    report = {
        "format": form,
        "source": backbone.source,
        "source_report": list(backbone.report),
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "files_bytes": dict(sorted(files.items())),
        "greatest_difference": max(compared.values()),
        "compared": dict(compared),
        "notes": _notes(backbone, form),
        "dinov2_jax": __version__,
        "jax": jax.__version__,
    }
    write_json(folder / "report.json", report)
