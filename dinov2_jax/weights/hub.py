"""The released models: their names, architectures and files."""

import dataclasses
import re
from pathlib import Path

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
