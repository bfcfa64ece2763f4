"""The released models and heads: their names, architectures and files."""

import dataclasses
import os
import re
import urllib.request
from pathlib import Path

from dinov2_jax.config.files import user_cache
from dinov2_jax.run.files import replacing
from dinov2_jax.run.progress import Progress
from dinov2_jax.weights.files import WeightsError

_META = "https://dl.fbaipublicfiles.com/dinov2"


@dataclasses.dataclass(frozen=True)
class Released:
    """A released backbone: its architecture, its Hugging Face repository and its file."""

    variant: str  # of models/vit.py VARIANTS
    ffn: str
    registers: int
    huggingface: str
    url: str


RELEASED = {
    f"dinov2_vit{letter}14{suffix}": Released(
        variant,
        ffn,
        registers,
        f"facebook/dinov2-{repository}{size}",
        f"{_META}/dinov2_vit{letter}14/dinov2_vit{letter}14{file}_pretrain.pth",
    )
    for registers, suffix, repository, file in (
        (0, "", "", ""),
        (4, "_reg", "with-registers-", "_reg4"),
    )
    for letter, size, variant, ffn in (
        ("s", "small", "vit_small", "mlp"),
        ("b", "base", "vit_base", "mlp"),
        ("l", "large", "vit_large", "mlp"),
        ("g", "giant", "vit_giant2", "swiglu"),
    )
}

# Least and greatest depth in metres of the sets that released heads learned from.
DEPTHS = {"nyu": (0.001, 10.0), "kitti": (0.001, 80.0)}
_SEGMENTATION_SETS = ("ade20k", "voc2012")
_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60
# Names of the released heads, without "_head.pth" -> their file. There are no dense heads for
# backbones with registers.
RELEASED_HEADS = {
    f"dinov2_vit{letter}14{kind}": (
        f"{_META}/dinov2_vit{letter}14/dinov2_vit{letter}14{kind}_head.pth"
    )
    for letter in "sblg"
    for kind in (
        *("_linear", "_linear4", "_reg4_linear", "_reg4_linear4"),
        *(f"_{data}_{kind}" for data in _SEGMENTATION_SETS for kind in ("linear", "ms")),
        *(f"_{data}_{kind}" for data in DEPTHS for kind in ("linear", "linear4", "dpt")),
    )
}


def released_name(name: str) -> str:
    """The name in RELEASED of a released model, by any of the names that libraries give it.

    Known are our own (and torch.hub's), Hugging Face's "facebook/dinov2-base", and timm's
    "vit_base_patch14_dinov2.lvd142m", also as "timm/..." or "hf_hub:timm/...". "" for others.
    """
    name = re.sub(r"^(hf[-_]hub:)?(timm/)?|^facebookresearch/dinov2:", "", name.strip().rstrip("/"))
    return known_names().get(name.removesuffix(".lvd142m"), "")


def known_names() -> dict[str, str]:
    """The names in RELEASED by themselves, and by those of Hugging Face and timm."""
    names = {key: key for key in RELEASED}
    names |= {released.huggingface: key for key, released in RELEASED.items()}
    for key, released in RELEASED.items():
        size = released.huggingface.rsplit("-", 1)[1]
        names[f"vit_{size}_patch14_{'reg4_' if released.registers else ''}dinov2"] = key
    return names


def find(name: str) -> Path:
    """Finds a released model in the Hugging Face cache, or downloads it there.

    Returns:
      Its directory.

    Raises:
      WeightsError: huggingface-hub is missing, or the download fails; names the file to fetch.
    """
    released = RELEASED[name]
    by_hand = (
        f"fetch {released.url} (or the files of https://huggingface.co/{released.huggingface}) and "
        "give the path of the file in place of the name"
    )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise WeightsError(
            f'{name} is fetched by huggingface-hub: pip install "dinov2_jax[hub]"; or {by_hand}'
        ) from error
    wanted = ["config.json", "model*.safetensors", "model.safetensors.index.json"]
    try:
        return Path(snapshot_download(released.huggingface, allow_patterns=wanted))
    except Exception as error:  # no network, no such revision, a proxy's page: many types
        reason = " ".join(str(error).split())[:100]
        raise WeightsError(f"{name} could not be downloaded ({reason}); {by_hand}") from error


def head_name(name: str) -> str:
    """The name in RELEASED_HEADS, which may also end as the file does; "" for others."""
    name = name.strip().removesuffix(".pth").removesuffix("_head").replace("_reg_", "_reg4_")
    return name if name in RELEASED_HEADS else ""


def head_set(file: str) -> str:
    """The set that a head's file names: ade20k, voc2012, nyu or kitti; "" for none of them."""
    words = set(re.split(r"[^a-z0-9]+", file.lower()))
    found = [data for data in (*_SEGMENTATION_SETS, *DEPTHS) if data in words]
    return found[0] if len(found) == 1 else ""


def find_head(name: str) -> Path:
    """Finds a released head among the downloads of torch and ours, or downloads it.

    Raises:
      WeightsError: the download fails; names the file to fetch.
    """
    url = RELEASED_HEADS[name]
    file = url.rsplit("/", 1)[1]
    own = user_cache() / "heads" / file
    for known in (_torch_downloads() / file, own):
        if known.is_file():
            return known
    try:
        _download(url, own)
    except Exception as error:  # no network, a proxy's page, a full disk: many types
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise WeightsError(
            f"{name} could not be downloaded ({reason}); fetch {url} and give the path of the file "
            "in place of the name"
        ) from error
    return own


def _torch_downloads() -> Path:
    """Where torch.hub keeps files that it fetched."""
    home = os.environ.get("TORCH_HOME")
    return (Path(home) if home else user_cache().parent / "torch") / "hub" / "checkpoints"


def _download(url: str, path: Path) -> None:
    """Writes the whole file, or none; shows progress."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, replacing(path) as temporary:
        size = int(response.headers.get("Content-Length") or 0)
        progress, done = Progress(-(-size // _BLOCK_BYTES), unit="MiB"), 0
        with temporary.open("wb") as file:
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                done += len(block)
                progress.update(done // _BLOCK_BYTES)
        progress.close()
        if size and done != size:
            raise OSError(f"{done:,} of {size:,} bytes came")
