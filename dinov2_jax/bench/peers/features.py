"""Forward passes of timm's and transformers' DINOv2 backbones."""

from collections.abc import Callable
from typing import Any

import torch

from dinov2_jax.bench.draws import (
    Flat,
    ViTShape,
    backbone_shapes,
    draw_images,
    draw_weights,
    hidden_dim,
)
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.peers.runtime import (
    DTYPES,
    compiled,
    configure,
    import_torchvision,
    side_of,
)


def timm_weights(flat: Flat) -> dict[str, torch.Tensor]:
    """The reference's names -> timm's: the packed SwiGLU is fc1 and fc2, there is no mask token."""
    renamed = {
        name.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2."): torch.from_numpy(value)
        for name, value in flat.items()
    }
    del renamed["mask_token"]
    return renamed


def timm_vit(shape: ViTShape, flat: Flat, **options: Any) -> torch.nn.Module:
    """timm's VisionTransformer as its vit_*_patch14_dinov2 entries build it, with these weights.

    The table of positions has the size of the images, so nothing is resampled on any side.
    """
    import_torchvision()
    from timm.layers import SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer

    if shape.ffn == "swiglu":
        ratio = 2 * hidden_dim(shape) / shape.dim
        options |= {"mlp_ratio": ratio, "mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    model = VisionTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=shape.dim,
        depth=shape.depth,
        num_heads=shape.heads,
        init_values=1.0,
        num_classes=0,
        weight_init="skip",
        **options,
    )
    model.load_state_dict(timm_weights(flat))
    return model


def _huggingface_name(name: str) -> str:
    """One of the reference's names -> Dinov2Model's (transformers 5)."""
    for theirs, ours in (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("cls_token", "embeddings.cls_token"),
        ("mask_token", "embeddings.mask_token"),
        ("attn.proj", "attention.o_proj"),
        ("ls1.gamma", "layer_scale1.lambda1"),
        ("ls2.gamma", "layer_scale2.lambda1"),
        ("mlp.w3", "mlp.down_proj"),
    ):
        name = name.replace(theirs, ours)
    if name.startswith("norm."):
        return f"layernorm.{name.removeprefix('norm.')}"
    return name


def huggingface_weights(flat: Flat) -> dict[str, torch.Tensor]:
    """The reference's names -> Dinov2Model's, whose projections are split."""
    split = {
        "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
    }
    out = {}
    for name, value in flat.items():
        tensor = torch.from_numpy(value)
        for joined, parts in split.items():
            if joined in name:
                for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
                    out[name.replace(joined, part)] = piece
                break
        else:
            out[_huggingface_name(name)] = tensor
    return out


def huggingface_vit(shape: ViTShape, flat: Flat) -> torch.nn.Module:
    """transformers' Dinov2Model with SDPA attention and these weights."""
    import_torchvision()
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=shape.dim,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        use_swiglu_ffn=shape.ffn == "swiglu",
        attn_implementation="sdpa",
    )
    model = Dinov2Model(config)
    weights = huggingface_weights(flat)
    blocks = next(k for k in model.state_dict() if k.endswith("norm1.weight")).split(".0.")[0]
    weights = {
        f"{blocks}.{k.removeprefix('blocks.')}" if k.startswith("blocks.") else k: v
        for k, v in weights.items()
    }
    model.load_state_dict(weights)
    return model


def _side(settings: Settings, library: str) -> Side:
    device = configure(settings)
    shape, dtype = ViTShape(*settings["shape"]), DTYPES[settings["dtype"]]
    flat = draw_weights(backbone_shapes(shape), settings["seed"])
    if library == "timm":
        model = timm_vit(shape, flat)
        forward: Callable[..., Any] = model.forward_features
    else:
        model = huggingface_vit(shape, flat)
        forward = lambda images: model(images).last_hidden_state  # noqa: E731
    model.eval().to(device, dtype)
    if settings["compile"]:
        backend = settings.get("backend", "inductor")
        forward = compiled(forward, device, inference=True, backend=backend)
    pixels = draw_images(settings["seed"], settings["batch"], 3, *(shape.image_size,) * 2)
    images = torch.from_numpy(pixels).to(device, dtype)

    @torch.inference_mode(mode=not settings["compile"])
    @torch.no_grad()
    def call() -> torch.Tensor:
        return forward(images)

    def check() -> Arrays:
        tokens = call().float().cpu().numpy()
        return {"cls": tokens[:, 0], "patches": tokens[:, 1:]}

    return side_of(check, call, device)


def timm(settings: Settings) -> Side:
    """settings: as ours/features.py, and "compile"[, "backend"], "threads", "device"."""
    return _side(settings, "timm")


def huggingface(settings: Settings) -> Side:
    """As `timm`."""
    return _side(settings, "transformers")
