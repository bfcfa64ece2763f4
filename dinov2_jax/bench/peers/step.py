"""A DINOv2 training step assembled in PyTorch from timm's ViT and lightly's losses.

What a careful user would do is done: SDPA, both crop sizes in one dense pass each, one call of the
head for all its rows, fused AdamW, EMA by foreach, autocast for bf16. The peer "torch" also skips
dropped residuals, as DINOv2 does, where timm computes them and multiplies them by 0.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dinov2_jax.bench.draws import Flat, ViTShape, draw_batch, draw_networks, shape_of
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.peers.features import timm_vit
from dinov2_jax.bench.peers.losses import LightlyLosses, PlainLosses
from dinov2_jax.bench.peers.runtime import (
    DTYPES,
    compiled,
    configure,
    fastest_attention,
    side_of,
)


class Head(nn.Module):
    """Linear layers with GELU between, L2 normalisation, prototypes with a trained gain."""

    def __init__(self, flat: Flat) -> None:
        super().__init__()
        names = [name for name in flat if name.startswith("mlp.") and name.endswith(".weight")]
        layers: list[nn.Module] = []
        for name in sorted(names, key=lambda name: int(name.split(".")[1])):
            out_dim, in_dim = flat[name].shape
            layers += [nn.Linear(in_dim, out_dim), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = nn.Module()
        for name in ("weight_g", "weight_v"):
            value = torch.empty(flat[f"last_layer.{name}"].shape)
            self.last_layer.register_parameter(name, nn.Parameter(value))
        self.load_state_dict({name: torch.from_numpy(value) for name, value in flat.items()})

    def forward(self, x: Tensor) -> Tensor:
        """[rows, D] -> [rows, K]."""
        x = F.normalize(self.mlp(x), dim=-1, eps=1e-12)
        weight = torch._weight_norm(self.last_layer.weight_v, self.last_layer.weight_g, 0)
        return F.linear(x, weight)


def skip_residuals(block: nn.Module, rate: float) -> None:
    """Makes a timm block compute each branch for a random fraction 1 - rate of its crops only."""

    def add(x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        kept = max(int(x.shape[0] * (1 - rate)), 1)
        index = torch.randperm(x.shape[0], device=x.device)[:kept]
        update = branch(x[index]).to(x.dtype)
        return torch.index_add(x, 0, index, update, alpha=x.shape[0] / kept)

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        x = add(x, lambda y: block.ls1(block.attn(block.norm1(y))))
        return add(x, lambda y: block.ls2(block.mlp(block.norm2(y))))

    block.forward = forward


class Backbone(nn.Module):
    """timm's ViT with DINOv2's mask token, resampled positions and stochastic depth."""

    def __init__(self, shape: ViTShape, flat: Flat, drop_rate: float, skip: bool) -> None:
        super().__init__()
        self.vit = timm_vit(shape, flat)
        self.mask_token = nn.Parameter(torch.from_numpy(flat["mask_token"]))
        self.patch_size = shape.patch_size
        from timm.layers import DropPath

        for block in self.vit.blocks if drop_rate else ():
            if skip:
                skip_residuals(block, drop_rate)
            else:
                block.drop_path1, block.drop_path2 = DropPath(drop_rate), DropPath(drop_rate)

    def _positions(self, rows: int) -> Tensor:
        table = self.vit.pos_embed
        side = round((table.shape[1] - 1) ** 0.5)
        if rows == side:
            return table
        grid = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        scale = (rows + 0.1) / side  # DINOv2's offset
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[n, 3, S, S], masks [n, P] -> cls [n, D], patches [n, P, D]."""
        x = self.vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
        if masks is not None:
            x = torch.where(masks[..., None], self.mask_token.to(x.dtype), x)
        cls = self.vit.cls_token.expand(x.shape[0], -1, -1)
        positions = self._positions(images.shape[-1] // self.patch_size)
        x = self.vit.norm(self.vit.blocks(torch.cat([cls, x], dim=1) + positions))
        return x[:, 0], x[:, 1:]


class Networks(nn.Module):
    """Backbone and heads of the student or the teacher."""

    def __init__(self, config: Settings, seed: int, drop_rate: float, skip: bool) -> None:
        super().__init__()
        flats = draw_networks(config, seed)
        self.backbone = Backbone(shape_of(config), flats["backbone"], drop_rate, skip)
        self.dino_head = Head(flats["dino_head"])
        self.ibot_head = Head(flats["ibot_head"]) if "ibot_head" in flats else None

    def logits(self, cls: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """cls [rows, D] and masked patches [rows, D] through their heads, or through one."""
        if self.ibot_head is not None:
            return self.dino_head(cls), self.ibot_head(patches)
        both = self.dino_head(torch.cat([cls, patches]))
        return both[: len(cls)], both[len(cls) :]


def parameter_groups(networks: Networks, config: Settings, hyper: Settings) -> list[dict[str, Any]]:
    """AdamW groups with DINOv2's multipliers of learning rate (by depth) and weight decay."""
    settings, depth = config["optimizer"], shape_of(config).depth
    embedding = ("cls_token", "pos_embed", "mask_token", "patch_embed")
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in networks.named_parameters():
        block = re.search(r"\.blocks\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else depth + 1
        factor = 1.0
        if "backbone" in name:
            layer = 0 if any(part in name for part in embedding) else layer
            factor = settings["layerwise_decay"] ** (depth + 1 - layer)
            if "patch_embed" in name:
                factor *= settings["patch_embed_lr_multiplier"]
        undecayed = name.endswith(("bias", "gamma")) or "norm" in name
        key = (factor, 0.0 if undecayed else 1.0, "last_layer" in name)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": factor * hyper["last_layer_lr" if last else "lr"],
            "weight_decay": decay * hyper["weight_decay"],
        }
        for (factor, decay, last), parameters in groups.items()
    ]


def masked_rows(masks: np.ndarray) -> dict[str, Tensor]:
    """Masks of the global crops [B, 2, P], reordered like the crops (view-major).

    Returns:
      "masks" [2B, P]; "rows" [n], the masked patches' places among all; "weights" [n].
    """
    masks = masks.swapaxes(0, 1).reshape(-1, masks.shape[-1])
    rows = np.flatnonzero(masks)
    weights = 1 / masks.sum(axis=1)[rows // masks.shape[1]]
    arrays = {"masks": masks, "rows": rows, "weights": weights.astype(np.float32)}
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


class Step:
    """State of the training step.

    Attributes:
      batch: crops of noise [views * B, 3, S, S], view-major, and what `masked_rows` gives.
    """

    def __init__(self, settings: Settings, library: str) -> None:
        config, hyper, seed = settings["config"], settings["hyper"], settings["seed"]
        self.config, self.hyper = config, hyper
        self.device = configure(settings)
        self.dtype = DTYPES[config["compute_dtype"]]
        rate, skip = config["model"]["drop_path_rate"], library == "torch"
        self.student = Networks(config, seed, rate, skip).to(self.device).train()
        self.teacher = Networks(config, seed + 100, 0.0, skip).to(self.device).requires_grad_(False)
        prototypes = [
            config[name]["head_prototypes"]
            for name in ("dino", "ibot" if config["ibot"]["separate_head"] else "dino")
        ]
        losses = PlainLosses if library == "torch" else LightlyLosses
        self.losses = losses(*prototypes, config["centering"]).to(self.device)
        beta = (config["optimizer"]["beta1"], config["optimizer"]["beta2"])
        groups = parameter_groups(self.student, config, hyper)
        self.optimizer = torch.optim.AdamW(groups, betas=beta, eps=1e-8, fused=True)
        self.batch = self._batch(draw_batch(config, seed))
        self.objective: Any = self.loss
        if settings["compile"]:
            self.objective = compiled(self.loss, self.device)

    def _batch(self, drawn: Flat) -> dict[str, Tensor]:
        batch = masked_rows(drawn["masks"])
        for name in ("global_crops", "local_crops"):
            crops = drawn[name].transpose(1, 0, 4, 2, 3)
            batch[name] = torch.from_numpy(np.ascontiguousarray(crops)).flatten(0, 1)
        return {name: value.to(self.device) for name, value in batch.items()}

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss and its parts before weighting."""
        config, temp = self.config, self.hyper["teacher_temp"]
        images = batch["global_crops"].shape[0] // 2
        side = round(batch["masks"].shape[1] ** 0.5)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32):
            with torch.no_grad():
                cls, patches = self.teacher.backbone(batch["global_crops"])
                masked = patches.flatten(0, 1)[batch["rows"]]
                teacher_dino, teacher_ibot = self.teacher.logits(cls, masked)
            cls, patches = self.student.backbone(batch["global_crops"], batch["masks"])
            local_cls, _ = self.student.backbone(batch["local_crops"])
            masked = patches.flatten(0, 1)[batch["rows"]]
            dino, ibot = self.student.logits(torch.cat([cls, local_cls]), masked)
        parts = {
            "dino": self.losses.dino(
                dino.unflatten(0, (-1, images)), teacher_dino.unflatten(0, (2, images)), temp
            ),
            "koleo": self.losses.koleo(cls[:images]) + self.losses.koleo(cls[images:]),
            "ibot": self.losses.ibot(
                ibot, teacher_ibot, batch["masks"].view(-1, side, side), batch["weights"], temp
            ),
        }
        total = (
            config["dino"]["loss_weight"] * parts["dino"]
            + config["dino"]["koleo_loss_weight"] * parts["koleo"]
            + config["ibot"]["loss_weight"] * parts["ibot"]
        )
        return total, parts

    def backward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fills the gradients; returns the parts of the loss."""
        with fastest_attention(self.device):
            total, parts = self.objective(batch)
            total.backward()
        return parts

    @torch.no_grad()
    def update(self) -> None:
        """Clips each sub-module, then AdamW and the EMA."""
        clip_norm = self.config["optimizer"]["clip_norm"]
        for module in self.student.children():
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(
            list(self.teacher.parameters()),
            list(self.student.parameters()),
            1 - self.hyper["momentum"],
        )

    def __call__(self, batch: dict[str, Tensor] | None = None) -> None:
        """One step on `batch`, by default on noise."""
        self.backward(self.batch if batch is None else batch)
        self.update()


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Norm in fp64, because torch's norm of a million fp32 values on a CPU is off by 1e-4."""
    return torch.stack([x.detach().double().norm() for x in tensors]).norm()


def two_steps(step: Step) -> Arrays:
    """Losses and gradient norms of two steps, and the norms of the weights after each."""
    numbers = {}
    for number in (1, 2):
        figures = step.backward(step.batch)
        for name, module in step.student.named_children():
            figures[f"grad_norm/{name}"] = _norm(p.grad for p in module.parameters())
        step.update()
        figures["student_norm"] = _norm(step.student.parameters())
        figures["teacher_norm"] = _norm(step.teacher.parameters())
        numbers |= {f"step {number} {k}": v.detach().cpu().numpy() for k, v in figures.items()}
    return numbers


def _side(settings: Settings, library: str) -> Side:
    step = Step(settings, library)
    return side_of(lambda: two_steps(step), step, step.device)


def lightly(settings: Settings) -> Side:
    """timm and lightly as shipped. settings: as ours/step.py, "compile", "threads", "device"."""
    return _side(settings, "lightly")


def plain(settings: Settings) -> Side:
    """As `lightly`, with losses written here and stochastic depth that skips."""
    return _side(settings, "torch")
