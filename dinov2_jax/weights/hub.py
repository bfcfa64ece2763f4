"""The released models: their names, architectures and files."""

import dataclasses
from pathlib import Path

from dinov2_jax.weights.files import WeightsError

_META = "https://dl.fbaipublicfiles.com/dinov2"


@dataclasses.dataclass(frozen=True)
class Released:
    """A released backbone.

    Attributes:
      variant: of models/vit.py VARIANTS.
      huggingface: repository on the Hugging Face hub.
      timm: model name there.
    """

    variant: str
    ffn: str
    registers: int
    huggingface: str
    timm: str
    url: str


def _released(letter: str, size: str, variant: str, ffn: str, registers: int) -> Released:
    middle = "_reg4" if registers else ""
    base = f"dinov2_vit{letter}14"
    return Released(
        variant=variant,
        ffn=ffn,
        registers=registers,
        huggingface=f"facebook/dinov2-{'with-registers-' if registers else ''}{size}",
        timm=f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2.lvd142m",
        url=f"{_META}/{base}/{base}{middle}_pretrain.pth",
    )


_SIZES = (
    ("s", "small", "vit_small", "mlp"),
    ("b", "base", "vit_base", "mlp"),
    ("l", "large", "vit_large", "mlp"),
    ("g", "giant", "vit_giant2", "swiglu"),
)
RELEASED = {
    f"dinov2_vit{letter}14{suffix}": _released(letter, size, variant, ffn, registers)
    for suffix, registers in (("", 0), ("_reg", 4))
    for letter, size, variant, ffn in _SIZES
}


def released_name(name: str) -> str:
    """The name in RELEASED of a released model or of its Hugging Face repository, else ""."""
    repositories = {released.huggingface: key for key, released in RELEASED.items()}
    return name if name in RELEASED else repositories.get(name, "")


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
