"""Our bundle: a directory with weights and all that is needed to use them, but no optimizer state.

<bundle>/params/                    the parameter tree
<bundle>/heads/<name>.safetensors   linear classifiers, if there are any
<bundle>/bundle.json                architecture, preprocessing, source, version
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dinov2_jax import __version__
from dinov2_jax.config.files import tuples
from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.heads import Head, write_heads

_CARD = "bundle.json"
# These fields define the architecture; the other fields of the module say how it runs.
FIELDS = (
    "dim", "depth", "heads", "patch_size", "image_size", "ffn", "mlp_ratio", "registers",
    "layerscale", "interpolate_offset", "interpolate_antialias", "qkv_bias", "proj_bias",
    "ffn_bias",
)  # fmt: skip


def is_bundle(path: Path) -> bool:
    """Whether `path` is a bundle's directory."""
    return (path / _CARD).is_file()


def architecture_fields(model: VisionTransformer) -> dict[str, Any]:
    return {name: getattr(model, name) for name in FIELDS}


def write_bundle(
    path: Path,
    model: VisionTransformer,
    params: Any,
    preprocessing: Preprocessing,
    source: str,
    heads: Mapping[str, Head] | None = None,
) -> None:
    """Writes a bundle; it appears under its name only when it is complete.

    With several processes, one of them calls this; it waits for none of the others.

    Args:
      source: where the weights come from, for the reader.

    Raises:
      WeightsError: there is something at `path` already.
    """
    card = {
        "dinov2_jax": __version__,
        "architecture": architecture_fields(model),
        "preprocessing": dataclasses.asdict(preprocessing),
        "source": source,
    }
    own = jax.process_index()  # by default Orbax waits for all processes
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix="bundle"
    )
    with new_folder(path) as folder:
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as writer:
            writer.save((folder / "params").resolve(), jax.tree.map(np.asarray, params))
        write_heads(folder, heads or {})
        (folder / _CARD).write_text(json.dumps(card, indent=2), encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder, which becomes `path` if the body ends without error.

    Raises:
      WeightsError: there is something at `path` already.
    """
    if path.exists():
        raise WeightsError(f"{path} exists already; give another place (--workdir), or remove it")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_bundle(path: Path) -> tuple[dict[str, Any], Any, Preprocessing]:
    """Architecture fields, parameters as numpy arrays, and the preprocessing.

    Raises:
      WeightsError: the bundle is damaged, or a later version wrote it.
    """
    try:
        card = json.loads((path / _CARD).read_text(encoding="utf-8"))
        fields: Mapping[str, Any] = card["architecture"]
        preprocessing = Preprocessing(**tuples(card["preprocessing"]))
        params = _restore((path / "params").resolve())
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(f"{path} is a damaged bundle ({reason}); export it again") from error
    unknown = set(fields) - set(FIELDS)
    if unknown:
        raise WeightsError(
            f"{path} was written by dinov2_jax {card.get('dinov2_jax')}, which knows "
            f"{', '.join(sorted(unknown))}; this is {__version__}"
        )
    return dict(fields), params, preprocessing


def _restore(folder: Path) -> Any:
    handler, place = ocp.PyTreeCheckpointHandler(), ocp.utils.epath.Path(folder)
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32)
    restore_args = jax.tree.map(lambda _: as_numpy, handler.metadata(place).tree)
    return handler.restore(place, args=ocp.args.PyTreeRestore(restore_args=restore_args))
