"""Reads tensors by name from safetensors, .pth files and Hugging Face directories.

Nothing here knows what a tensor means. Safetensors are read without torch; a .pth needs torch (an
optional extra) and is read with `weights_only`, which refuses pickles that would run code.
"""

import contextlib
import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dinov2_jax.errors import UserError
from dinov2_jax.weights.nesting import find_state_dicts

# What our exports know beyond tensors, as JSON: a key of safetensors metadata, and of the JSON file
# beside a .pth.
EXPORTED = "dinov2_jax"
_UNPACK = "unpack it, and give the file in it"
# By their first bytes: files that are met under the name of weights, and what to do.
_OTHER_KINDS = {
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"\xfd7zXZ": ("an xz archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a rar archive", _UNPACK),
    b"\x89HDF": ("an HDF5 file of Keras", "export it from there as safetensors"),
    b"\x93NUMPY": ("a single array of numpy", "give a .pth or .safetensors with all tensors"),
    b"GGUF": ("a GGUF file", "give the weights that it was made from"),
    b"\x89PNG": ("a picture", "give the weights"),
    b"\xff\xd8\xff": ("a picture", "give the weights"),
}
PICKLES = (".pth", ".pt", ".bin", ".ckpt")
# Index and single file of a Hugging Face directory; the safe format comes first.
_MODEL_FILES = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)


class WeightsError(UserError):
    """Weights that cannot be used; the message is one sentence with the file and the remedy."""


@contextlib.contextmanager
def blamed_on(path: str | Path) -> Iterator[None]:
    """Takes what goes wrong in the block, except OSErrors, for damage of the file.

    Raises:
      WeightsError: instead of any error that values of the wrong type or size cause.
    """
    try:
        yield
    except UserError:
        raise
    except (
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
        RecursionError, MemoryError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(
            f"{path} is damaged, or holds something else than its name says ({reason}); download "
            "it again"
        ) from error


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The content of a file or directory."""

    tensors: dict[str, np.ndarray]  # by the file's own names, in its order
    # config.json of a directory, the metadata of a safetensors file, the JSON file beside a .pth.
    settings: Mapping[str, Any]
    path: Path
    folder: Path | None = None  # that of save_pretrained, where further settings may lie


def read_tensors(path: str | Path, which: str = "teacher") -> Tensors:
    """Reads a file, or a directory as `save_pretrained` writes it (also in several files).

    Args:
      which: "teacher" or "student" of a training checkpoint in a .pth.

    Raises:
      WeightsError: no such file, an unknown format, a damaged file, or a pickle that would run
        code.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _read_directory(path, which)
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}; give a file, a directory, or a name of list_models()"
        )
    stored = _read_file(path, which)
    if path.name in {single for _, single in _MODEL_FILES} and EXPORTED not in stored.settings:
        config = read_settings(path.parent / "config.json")
        return dataclasses.replace(stored, settings=config, folder=path.parent)
    return stored


def _read_file(path: Path, which: str) -> Tensors:
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        return Tensors(tensors, metadata, path)
    if path.suffix in PICKLES:
        settings = read_settings(path.with_suffix(".json"))
        return Tensors(_read_pickle(path, which), settings, path)
    known = ", ".join((".safetensors", *PICKLES))
    raise WeightsError(f"{path} is none of {known}, nor a directory that holds such files")


def _read_directory(folder: Path, which: str) -> Tensors:
    for index, single in _MODEL_FILES:
        if (folder / index).is_file():
            files = _files_of_index(folder / index)
        elif (folder / single).is_file():
            files = [single]
        else:
            continue
        tensors: dict[str, np.ndarray] = {}
        for name in files:
            if not (folder / name).is_file():
                raise WeightsError(f"{folder / name} is missing; download the directory again")
            tensors |= _read_file(folder / name, which).tensors
        return Tensors(tensors, read_settings(folder / "config.json"), folder, folder)
    wanted = " or ".join(single for _, single in _MODEL_FILES)
    files = sorted(x.name for x in folder.iterdir() if x.suffix in (".safetensors", *PICKLES))
    other = f"; give one of its files: {', '.join(files[:5])}" if files else ""
    raise WeightsError(f"{folder} holds no {wanted}, nor an index of several such files{other}")


def _files_of_index(path: Path) -> list[str]:
    with blamed_on(path):
        files = sorted({str(name) for name in read_settings(path)["weight_map"].values()})
    outside = [name for name in files if Path(name).name != name]
    if outside or not files:
        named = f"{outside[0]!r}, which is no file beside it" if outside else "no file"
        raise WeightsError(f"{path} names {named}; download it again")
    return files


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file. Raises WeightsError for another."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(stored, dict):
        raise WeightsError(f"{path} holds no JSON object; download it again")
    return stored


def is_allowed(name: str, allow: Sequence[str]) -> bool:
    """Whether `allow` has this name or a module that holds it, such as "neck" for "neck.bias"."""
    parents = (entry.rstrip("*.") for entry in allow)
    return any(name == entry or name.startswith(f"{entry}.") for entry in parents if entry)


def permission(allow: Sequence[str], names: Sequence[str]) -> str:
    """What to add to a command or a call, so that `names` are allowed too."""
    wanted = [*filter(None, allow), *names]
    return f"--config.allow={','.join(wanted)}, or in Python load(..., allow={wanted})"


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    _refuse_others(path, of_torch=False)
    try:
        # numpy knows no bf16; jax's arrays do.
        with safe_open(path, framework="numpy") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            if "BF16" in kinds.values():
                return _read_bf16(path, names), metadata
            return {name: file.get_tensor(name) for name in names}, metadata
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is damaged or no safetensors file ({error}); download it again"
        ) from error


def _read_bf16(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    import jax

    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu), safe_open(path, framework="flax") as file:
        return {name: np.asarray(file.get_tensor(name)) for name in names}


def _refuse_others(path: Path, of_torch: bool) -> None:
    """Refuses a file whose first bytes are of another kind than its name says.

    Raises:
      WeightsError: naming the kind, and what to do.
    """
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    # The length of its header comes first, which may begin as anything.
    tensors = len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32
    pickled = not tensors and (start.startswith((b"PK\x03\x04", b"\x80")) or b"ustar" in start)
    if not start:
        raise WeightsError(f"{path} is empty; download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<error")):
        raise WeightsError(
            f"{path} is a web page, not weights: the download failed; its text says why; download "
            "it again"
        )
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a pointer of Git LFS, not the weights; fetch them: git lfs pull, in its "
            "folder"
        )
    for magic, (kind, remedy) in _OTHER_KINDS.items():
        if start.startswith(magic) and not tensors:
            raise WeightsError(f"{path} is {kind}, not weights; {remedy}")
    if pickled and not of_torch:
        raise WeightsError(f"{path} is a file of torch.save; name it .pth")
    if tensors and of_torch:
        raise WeightsError(f"{path} is a safetensors file; name it .safetensors")
    if not tensors and not pickled and _is_text(start):
        shown = " ".join(start.decode(errors="replace").split())[:60]
        raise WeightsError(f"{path} is text, not weights (it says {shown!r}); download it again")
    if of_torch and not pickled:
        raise WeightsError(
            f"{path} is no file that torch.save wrote (it begins with {start[:8]!r}); download it "
            "again, or give it the ending of its kind"
        )


def _torch_wrote(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())


def _is_text(start: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\n\r" for byte in start)


def _read_pickle(path: Path, which: str) -> dict[str, np.ndarray]:
    _refuse_others(path, of_torch=True)
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f'{path} is read by torch: pip install "dinov2_jax[torch]", or use a .safetensors file'
        ) from error
    try:
        with torch.serialization.safe_globals(_numbers_of_numpy()):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly any type on broken files
        if "TorchScript" in str(error):
            raise WeightsError(
                f"{path} is a TorchScript program; save the state dict of the module in it"
            ) from error
        if zipfile.is_zipfile(path) and not _torch_wrote(path):
            raise WeightsError(
                f"{path} is a zip archive, not weights; unpack it, and give the file in it"
            ) from error
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise WeightsError(
                f"{path} is a pickle that holds more than tensors, so reading it could run code: "
                "refused; ask its author for safetensors, or save only the state dict"
            ) from error
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(
            f"{path} is damaged or truncated ({reason}); download it again"
        ) from error
    found = find_state_dicts(stored, which) if isinstance(stored, dict) else {}
    if not found:
        held = ", ".join(map(str, list(stored)[:5])) if isinstance(stored, dict) else type(stored)
        raise WeightsError(
            f"{path} holds no tensors by name (it holds: {held}); expected a state dict, alone or "
            f"inside another one, as {which!r}, 'model' or 'state_dict'"
        )
    if len(found) > 1:
        raise WeightsError(
            f"{path} holds {len(found)} backbones: {', '.join(found)}; save the wanted one alone"
        )
    (tensors,) = found.values()
    return {name: _to_numpy(x) for name, x in tensors.items()}


def _numbers_of_numpy() -> list[Any]:
    """What a pickle needs for a single number of numpy, such as a score beside the weights.

    They build values and run nothing. Files name the function as numpy 1 or 2 does.
    """
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    old, new = (f"numpy.{core}.multiarray.scalar" for core in ("core", "_core"))
    return [(scalar, old), (scalar, new), np.dtype, *kinds]


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
