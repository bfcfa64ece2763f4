"""Models of transformers and timm with random weights, saved as those libraries save them."""

from pathlib import Path
from typing import Any

import numpy as np

# Small stand-ins of the released sizes: the names and the arithmetic are the same.
SIZES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6},
    "base": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 12},
    "large": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    "giant": {
        **{"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3},
        "use_swiglu_ffn": True,
    },
}


def randomize(model: Any, seed: int) -> Any:
    """Random everywhere, also where the initial value is 0 or 1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def transformers_model(size: str, registers: int, image_px: int = 518) -> Any:
    """A Dinov2Model or Dinov2WithRegistersModel."""
    import transformers

    options = SIZES[size] | {"image_size": image_px, "patch_size": 14}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **options)
        return randomize(transformers.Dinov2WithRegistersModel(config), registers)
    return randomize(transformers.Dinov2Model(transformers.Dinov2Config(**options)), registers)


def transformers_features(model: Any, images: np.ndarray) -> np.ndarray:
    """All tokens after the final norm, [B, N, D], of images [B, H, W, 3]."""
    import torch

    with torch.no_grad():
        out = model(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    return out.last_hidden_state.numpy()


def save_safetensors(tensors: dict[str, Any], path: Path) -> Path:
    """As timm writes its files."""
    from safetensors.torch import save_file

    save_file({name: x.contiguous() for name, x in tensors.items()}, path)
    return path


def random_images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """One normalised image [1, H, W, 3] of each size."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, *size, 3)).astype(np.float32) for size in sizes]
