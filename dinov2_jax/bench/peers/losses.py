"""DINOv2's losses in PyTorch: written plainly from their formulas, and lightly's."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dinov2_jax.bench.draws import draw_rows
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.peers.runtime import DTYPES, compiled, configure, side_of

STUDENT_TEMP, CENTER_MOMENTUM, SINKHORN_ITERATIONS = 0.1, 0.9, 3


def softmax_center(logits: Tensor, center: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    """Targets softmax((t - c) / temp) of logits [rows, K], and the next centre [K]."""
    logits = logits.float()
    targets = torch.softmax((logits - center) / temp, dim=-1)
    return targets, center.lerp(logits.mean(dim=0), 1 - CENTER_MOMENTUM)


def sinkhorn_knopp(logits: Tensor, center: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    """Sinkhorn-Knopp as alternating normalisations; the centre does not change."""
    q = torch.exp(logits.float() / temp).t()
    q = q / q.sum()
    prototypes, rows = q.shape
    for _ in range(SINKHORN_ITERATIONS):
        q = q / q.sum(dim=1, keepdim=True) / prototypes
        q = q / q.sum(dim=0, keepdim=True) / rows
    return (q * rows).t(), center


TARGETS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "centering": softmax_center,
    "sinkhorn_knopp": sinkhorn_knopp,
}


def ibot_loss(student: Tensor, targets: Tensor, weights: Tensor, crops: int) -> Tensor:
    """sum over rows of weight * cross-entropy / crops; student, targets [rows, K]."""
    log_probabilities = F.log_softmax(student.float() / STUDENT_TEMP, dim=-1)
    return -((targets * log_probabilities).sum(dim=-1) * weights).sum() / crops


def dino_loss(student: Tensor, targets: Tensor) -> Tensor:
    """Mean over all pairs of different crops; student [views, B, K], targets [2, B, K]."""
    log_probabilities = F.log_softmax(student.float() / STUDENT_TEMP, dim=-1)
    pairs = -torch.einsum("tbk,sbk->ts", targets, log_probabilities)
    same = pairs[0, 0] + pairs[1, 1]
    return (pairs.sum() - same) / ((pairs.numel() - 2) * student.shape[1])


def koleo_loss(features: Tensor) -> Tensor:
    """-mean log distance to the nearest neighbour; features [B, D]."""
    x = F.normalize(features.float(), dim=-1, eps=1e-8)
    with torch.no_grad():
        dots = x @ x.t()
        dots.fill_diagonal_(-2)
        nearest = dots.argmax(dim=1)
    return -torch.log(F.pairwise_distance(x, x[nearest], eps=1e-8) + 1e-8).mean()


class PlainLosses(torch.nn.Module):
    """DINO, KoLeo and iBOT losses of one step, with their centres."""

    def __init__(self, dino_prototypes: int, ibot_prototypes: int, centering: str) -> None:
        super().__init__()
        self.targets = TARGETS[centering]
        self.register_buffer("dino_center", torch.zeros(dino_prototypes))
        self.register_buffer("ibot_center", torch.zeros(ibot_prototypes))

    @torch.no_grad()
    def _targets(self, name: str, logits: Tensor, temp: float) -> Tensor:
        targets, center = self.targets(logits, getattr(self, name), temp)
        getattr(self, name).copy_(center)
        return targets

    def dino(self, student: Tensor, teacher: Tensor, temp: float) -> Tensor:
        """student [views, B, K], teacher [2, B, K], logits."""
        flat = self._targets("dino_center", teacher.flatten(0, 1), temp)
        return dino_loss(student, flat.view_as(teacher))

    def ibot(
        self, student: Tensor, teacher: Tensor, masks: Tensor, weights: Tensor, temp: float
    ) -> Tensor:
        """student, teacher [rows, K], logits; masks [2B, h, w]; weights [rows]."""
        targets = self._targets("ibot_center", teacher, temp)
        return ibot_loss(student, targets, weights, masks.shape[0])

    def koleo(self, features: Tensor) -> Tensor:
        return koleo_loss(features)


class LightlyLosses(torch.nn.Module):
    """The same through lightly's modules."""

    def __init__(self, dino_prototypes: int, ibot_prototypes: int, centering: str) -> None:
        super().__init__()
        if centering != "centering":
            raise ValueError(f"lightly's losses have no {centering}; use the peer torch")
        from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss

        self.dino_loss = DINOLoss(output_dim=dino_prototypes)
        self.ibot_loss = IBOTPatchLoss(output_dim=ibot_prototypes)
        self.koleo_loss = KoLeoLoss()

    def dino(self, student: Tensor, teacher: Tensor, temp: float) -> Tensor:
        return self.dino_loss(
            list(teacher.float().unbind(0)), list(student.float().unbind(0)), teacher_temp=temp
        )

    def ibot(
        self, student: Tensor, teacher: Tensor, masks: Tensor, weights: Tensor, temp: float
    ) -> Tensor:
        del weights  # it counts them from the masks
        return self.ibot_loss(teacher.float(), student.float(), masks, teacher_temp=temp)

    def koleo(self, features: Tensor) -> Tensor:
        return self.koleo_loss(features.float())


def block(settings: Settings) -> Side:
    """settings: as ours/losses.py, and "compile", "threads", "device"."""
    device, dtype = configure(settings), DTYPES[settings["dtype"]]
    drawn = draw_rows(settings["seed"], settings["rows"], settings["prototypes"])
    rows = {name: torch.from_numpy(value).to(device) for name, value in drawn.items()}
    teacher, student = rows["teacher"].to(dtype), rows["student"].to(dtype).requires_grad_()
    make_targets = TARGETS[settings["centering"]]

    def loss(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            targets, center = make_targets(teacher, rows["center"], settings["temp"])
        return ibot_loss(student, targets, rows["weights"], settings["crops"]), center

    forward = compiled(loss, device) if settings["compile"] else loss

    def call() -> tuple[Tensor, Tensor]:
        student.grad = None
        value, center = forward(student, teacher)
        value.backward()
        return value, center

    def check() -> Arrays:
        value, center = call()
        results = {"loss": value, "gradient": student.grad, "center": center}
        return {name: x.detach().float().cpu().numpy() for name, x in results.items()}

    return side_of(check, call, device)
