"""Writes weights in formats that other programs open, and compares each export with its source.

An export is a directory <workdir>/<format>/ with the files and report.json, which lists what was
compared and with which result. The directory appears only when all comparisons have passed.
"""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from dinov2_jax import __version__
from dinov2_jax.config.checks import BATCH, Range, Rules
from dinov2_jax.config.files import ConfigError, local_path
from dinov2_jax.errors import UserError, sentence
from dinov2_jax.run.files import write_json
from dinov2_jax.weights import huggingface, onnx, stablehlo
from dinov2_jax.weights.bundle import new_folder, write_bundle
from dinov2_jax.weights.convert import to_reference
from dinov2_jax.weights.files import EXPORTED, WeightsError
from dinov2_jax.weights.heads import linear_heads, write_heads
from dinov2_jax.weights.layouts import from_reference_names
from dinov2_jax.weights.load import RULES as READING
from dinov2_jax.weights.load import UNTOLD, Backbone, load, load_configured
from dinov2_jax.weights.stablehlo import Programs, difference

FORMATS = ("reference", "pth", "huggingface", "timm", "bundle", "stablehlo", "onnx")
# Largest relative difference of features. Tensors and heads are equal bit for bit.
MAX_DIFFERENCE = 1e-5
RULES: Rules = READING | {
    "format": ("", *FORMATS),
    "batch_sizes": Range(0, BATCH.high),
}


def run(config: ConfigDict, workdir: str) -> Path:
    """Runs the task "export", see configs/export.py; prints what was written and compared.

    Raises:
      ConfigError: no checkpoint or no format is given.
      WeightsError, CheckpointError: as `load` and `export`.
    """
    for field, example in (("checkpoint", "runs/quickstart"), ("format", "huggingface")):
        if not config[field]:
            raise ConfigError(f"no {field} given; add --config.{field}={example}")
    backbone = load_configured(config, config.checkpoint)
    print("\n".join(backbone.report))
    sizes = [_size(text, backbone.model.patch_size) for text in config.image_sizes]
    programs = Programs(sizes, config.batch_sizes, config.bake_positions)
    try:
        folder = export(backbone, config.format, workdir or "exports", programs)
    except Exception as error:  # the libraries of the formats have many types for a full disk
        reason = sentence(error)
        if isinstance(error, UserError) or not reason:
            raise
        raise WeightsError(f"cannot export to {workdir or 'exports'}: {reason}") from error
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    for name, size in report["files_bytes"].items():
        print(f"{size / 2**20:10.2f} MiB  {folder / name}")
    print("".join(f"{note}\n" for note in report["notes"]), end="")
    print(
        f"re-opened; {len(report['compared'])} comparisons with the source, greatest difference "
        f"{report['greatest_difference']:.2g} of the greatest value: {folder / 'report.json'}"
    )
    return folder


def _size(text: str, patch: int) -> tuple[int, int]:
    """ "224x336" -> (224, 336)."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    height, width = map(int, found.groups()) if found else (0, 0)
    if height % patch or width % patch or not height * width:
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
    folder = local_path(workdir, "--workdir") / form
    with new_folder(folder) as unfinished:
        compared = _write(backbone, form, unfinished, programs or Programs())
        _write_report(backbone, form, unfinished, compared)
    return folder


def _write(backbone: Backbone, form: str, folder: Path, programs: Programs) -> dict[str, float]:
    """Writes the files; returns the greatest difference of each comparison."""
    if form == "stablehlo":
        compared = stablehlo.write(backbone, folder, programs)
    elif form == "onnx":
        compared = onnx.write(backbone, folder, programs)
    else:
        compared = _compare(backbone, _write_weights(backbone, form, folder))
    worst = max(compared, key=lambda name: compared[name])
    if not compared[worst] <= MAX_DIFFERENCE:  # also nan
        raise WeightsError(
            f"the {form} export differs from its source by {compared[worst]:.2g} of the greatest "
            f"value in {worst}, more than {MAX_DIFFERENCE:g}; nothing was written"
        )
    return compared


def reference_tensors(backbone: Backbone) -> dict[str, np.ndarray]:
    """The backbone's tensors with the layout and names of the released files."""
    flat = to_reference(backbone.params, backbone.model.patch_size)
    return {name: np.ascontiguousarray(x, np.float32) for name, x in flat.items()}


def _write_weights(backbone: Backbone, form: str, folder: Path) -> Path:
    """Writes what `load` can read; returns the path to give it."""
    if form == "bundle":
        given = backbone.model, backbone.params, backbone.preprocessing, backbone.source
        write_bundle(folder / "bundle", *given, linear_heads(backbone.heads))
        return folder / "bundle"
    tensors, about = reference_tensors(backbone), _exported(backbone)
    if form == "huggingface":
        huggingface.write(backbone, tensors, folder)
        return folder
    if form == "timm":
        path = folder / "model.safetensors"
        save_file(from_reference_names(tensors, "timm"), path, {"format": "pt"} | about)
        return path
    write_heads(folder, linear_heads(backbone.heads))
    path = folder / ("backbone.pth" if form == "pth" else "backbone.safetensors")
    if form == "pth":
        _write_pth(path, tensors, about)
    else:
        save_file(tensors, path, about)
    return path


def _exported(backbone: Backbone) -> dict[str, str]:
    """What the tensors do not tell; `load` reads it again."""
    model = {name: getattr(backbone.model, name) for name in UNTOLD}
    about = {"preprocessing": dataclasses.asdict(backbone.preprocessing), "model": model}
    return {EXPORTED: json.dumps(about)}


def _write_pth(path: Path, tensors: dict[str, np.ndarray], about: dict[str, str]) -> None:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            'format pth is written by torch: pip install "dinov2_jax[torch]"; or use reference, '
            "the same tensors as safetensors"
        ) from error
    torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, path)
    write_json(path.with_suffix(".json"), about)


def _compare(backbone: Backbone, path: Path) -> dict[str, float]:
    """Loads `path` again; returns the difference of each tensor, each head and the features.

    Raises:
      WeightsError: the preprocessing, a tensor or a head is not exactly that of the source.
    """
    allow = ["mask_token"] if path.suffix == ".safetensors" else []
    again = load(path, heads=backbone.model.heads, allow=allow)
    if again.preprocessing != backbone.preprocessing:
        raise WeightsError(
            f"the export keeps {again.preprocessing} instead of {backbone.preprocessing}, so its "
            "features of a picture would differ; nothing was written"
        )
    exact = _compare_tensors(backbone, again) | _compare_heads(backbone, again)
    for name, value in exact.items():
        if value != 0:  # also nan
            raise WeightsError(
                f"the export differs from its source by {value:.2g} of the greatest value in "
                f"{name}, which must be equal bit for bit; nothing was written"
            )
    return exact | _compare_features(backbone, again)


def _compare_tensors(backbone: Backbone, again: Backbone) -> dict[str, float]:
    """Compares all tensors but those that timm does not keep: mask token, cls token, position."""
    lost = set()
    if again.layout == "timm":
        lost = {"mask_token"} | ({"cls_token", "pos_embed"} if again.model.registers else set())
    have, want = stablehlo.flat_weights(again), stablehlo.flat_weights(backbone)
    return {f"tensor {name}": difference(have, want, [name]) for name in want if name not in lost}


def _compare_heads(backbone: Backbone, again: Backbone) -> dict[str, float]:
    """Compares the linear heads that the format keeps; `_notes` names the others."""
    kept = linear_heads(again.heads)
    if again.layout == "huggingface" and kept:
        name = huggingface.classifier_of(backbone)
        kept = {name: kept["classifier"]} if name else {}
    return {
        f"head {name}": difference(head, backbone.heads[name], ("weight", "bias"))
        for name, head in kept.items()
    }


def _compare_features(backbone: Backbone, again: Backbone) -> dict[str, float]:
    """Compares features of noise, at the table's own size and at another one that is not square."""
    patch, own = backbone.model.patch_size, backbone.model.image_size
    compared = {}
    for size in ((own, own), (3 * patch, 5 * patch)):
        images = stablehlo.noise(backbone, 2, size)
        ours, theirs = (stablehlo.features_of(side, images) for side in (again, backbone))
        name = f"features at {size[0]} x {size[1]} px"
        compared[name] = difference(ours, theirs, stablehlo.OUTPUTS)
    return compared


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


def _write_report(backbone: Backbone, form: str, folder: Path, compared: dict[str, float]) -> None:
    files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    report = {
        "format": form,
        "source": backbone.source,
        "source_report": list(backbone.report),
        "preprocessing": dataclasses.asdict(backbone.preprocessing),
        "files_bytes": dict(sorted(files.items())),
        "greatest_difference": max(compared.values()),
        "compared": compared,
        "notes": _notes(backbone, form),
        "dinov2_jax": __version__,
        "jax": jax.__version__,
    }
    write_json(folder / "report.json", report)
