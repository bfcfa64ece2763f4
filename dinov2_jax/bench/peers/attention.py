"""scaled_dot_product_attention, forward and backward, in PyTorch's order of kernels or ours."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dinov2_jax.bench.draws import draw_images
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.peers.runtime import DTYPES, configure, side_of


def sdpa(settings: Settings) -> Side:
    """settings: as ours/attention.py, and "threads", "device". On a GPU cuDNN comes first."""
    device, dtype = configure(settings), DTYPES[settings["dtype"]]
    shape = (settings["batch"], settings["tokens"], settings["heads"], settings["head_dim"])
    drawn = torch.from_numpy(draw_images(settings["seed"], 4, *shape)).to(device, dtype)
    # Strided like the output of a fused projection, [B, N, H, d] seen as [B, H, N, d].
    q, k, v, cotangent = (x.transpose(1, 2) for x in drawn)
    inputs = [x.detach().requires_grad_(settings["backward"]) for x in (q, k, v)]

    def call() -> list[Tensor]:
        out = F.scaled_dot_product_attention(*inputs)
        if not settings["backward"]:
            return [out]
        return [out, *torch.autograd.grad(out, inputs, cotangent)]

    def check() -> Arrays:
        results = [x.detach().transpose(1, 2).float().cpu().numpy() for x in call()]
        return dict(zip(("out", "dq", "dk", "dv"), results, strict=False))

    return side_of(check, call, device)
