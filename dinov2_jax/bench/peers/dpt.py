"""Forward pass of the DPT head in PyTorch, from the weights of the released layout."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dinov2_jax.bench.draws import dpt_shapes, draw_levels, draw_weights
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.peers.runtime import DTYPES, compiled, configure, side_of

LOW = 0.001
Weights = dict[str, Tensor]


def _reassemble(weights: Weights, index: int, patches: Tensor, cls: Tensor) -> Tensor:
    """Patches [B, D, h, w] and cls [B, D] -> the map of a level [B, C, h', w']."""
    names = "readout_projects.{}.0", "projects.{}.conv", "resize_layers.{}"
    readout, project, resizing = (f"reassemble_blocks.{name.format(index)}" for name in names)
    batch, dim, rows, cols = patches.shape
    tokens = patches.flatten(2).transpose(1, 2)
    both = torch.cat([tokens, cls[:, None].expand_as(tokens)], dim=-1)
    tokens = F.gelu(F.linear(both, weights[f"{readout}.weight"], weights[f"{readout}.bias"]))
    x = tokens.transpose(1, 2).reshape(batch, dim, rows, cols)
    x = F.conv2d(x, weights[f"{project}.weight"], weights[f"{project}.bias"])
    if index == 2:
        return x
    resize = weights[f"{resizing}.weight"], weights[f"{resizing}.bias"]
    if index == 3:
        return F.conv2d(x, *resize, stride=2, padding=1)
    return F.conv_transpose2d(x, *resize, stride=4 if index == 0 else 2)


def _unit(weights: Weights, name: str, x: Tensor) -> Tensor:
    y = F.conv2d(F.relu(x), weights[f"{name}.conv1.conv.weight"], padding=1)
    return x + F.conv2d(F.relu(y), weights[f"{name}.conv2.conv.weight"], padding=1)


def _fuse(weights: Weights, index: int, x: Tensor, level: Tensor | None) -> Tensor:
    name = f"fusion_blocks.{index}"
    if level is not None:
        if level.shape != x.shape:
            level = F.interpolate(level, x.shape[2:], mode="bilinear")
        x = x + _unit(weights, f"{name}.res_conv_unit1", level)
    x = _unit(weights, f"{name}.res_conv_unit2", x)
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return F.conv2d(x, weights[f"{name}.project.conv.weight"], weights[f"{name}.project.conv.bias"])


def forward(weights: Weights, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Depth [B, 32 ceil(h/2), 32 ceil(w/2)]."""
    maps = [
        F.conv2d(_reassemble(weights, i, *level), weights[f"convs.{i}.conv.weight"], padding=1)
        for i, level in enumerate(levels)
    ]
    x = _fuse(weights, 0, maps[3], None)
    for i in (1, 2, 3):
        x = _fuse(weights, i, x, maps[3 - i])
    x = F.relu(F.conv2d(x, weights["project.conv.weight"], weights["project.conv.bias"], padding=1))
    name = "conv_depth.head"
    x = F.conv2d(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"], padding=1)
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    x = F.relu(F.conv2d(x, weights[f"{name}.2.weight"], weights[f"{name}.2.bias"], padding=1))
    x = F.relu(F.conv2d(x, weights[f"{name}.4.weight"], weights[f"{name}.4.bias"]))
    return x[:, 0] + LOW


def dpt(settings: Settings) -> Side:
    """settings: as ours/dpt.py, and "threads", "device", "channels_last", "compile"."""
    device, dtype, dim = configure(settings), DTYPES[settings["dtype"]], settings["dim"]
    layout = torch.channels_last if settings["channels_last"] else torch.contiguous_format

    def placed(x: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(x)).to(device, dtype)
        return tensor.contiguous(memory_format=layout) if tensor.ndim == 4 else tensor

    flat = draw_weights(dpt_shapes(dim, settings["channels"]), settings["seed"])
    weights = {name: placed(value) for name, value in flat.items()}
    drawn = draw_levels(settings["seed"], settings["batch"], *settings["grid"], dim)
    levels = [(placed(np.moveaxis(patches, -1, 1)), placed(cls)) for patches, cls in drawn]
    call = compiled(forward, device, inference=True) if settings["compile"] else forward

    def run() -> Tensor:
        with torch.inference_mode():
            return call(weights, levels)

    def check() -> Arrays:
        return {"depth": run().float().cpu().numpy()}

    return side_of(check, run, device)
