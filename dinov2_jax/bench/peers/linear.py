"""The reference's 52 linear classifiers in PyTorch, trained together or one after another."""

import math
from collections.abc import Callable

import numpy as np
import torch

from dinov2_jax.bench.draws import draw_probe
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.peers.runtime import configure, side_of

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
KINDS = ((1, False), (1, True), (4, False), (4, True))


class Classifier(torch.nn.Module):
    """cls of the last blocks, perhaps the mean patch, and a linear layer."""

    def __init__(self, weight: np.ndarray, blocks: int, avgpool: bool) -> None:
        super().__init__()
        self.blocks, self.avgpool = blocks, avgpool
        self.linear = torch.nn.Linear(*weight.shape)
        self.linear.weight.data = torch.from_numpy(np.ascontiguousarray(weight.T))
        self.linear.bias.data.zero_()

    def forward(self, columns: list[torch.Tensor]) -> torch.Tensor:
        parts = columns[4 - self.blocks : 4 + self.avgpool]
        return self.linear(torch.cat(parts, dim=-1))


class Probe:
    """All classifiers, with one SGD for all or one SGD for each."""

    def __init__(self, settings: Settings, weights: list[np.ndarray], together: bool) -> None:
        self.heads = torch.nn.ModuleList(
            Classifier(weight[:, place], *kind)
            for kind, weight in zip(KINDS, weights, strict=True)
            for place in range(len(RATES))
        )
        scale = settings["batch"] / 256
        groups = [
            {"params": list(head.parameters()), "lr": scale * RATES[i % len(RATES)]}
            for i, head in enumerate(self.heads)
        ]
        parts = [groups] if together else [[group] for group in groups]
        self._heads = [list(self.heads)] if together else [[head] for head in self.heads]
        self._optimizers = [torch.optim.SGD(p, momentum=0.9, weight_decay=0) for p in parts]
        # As torch's CosineAnnealingLR in closed form, so that it can go on for ever.
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda i: (1 + math.cos(math.pi * i / settings["iterations"])) / 2
            )
            for optimizer in self._optimizers
        ]

    def step(self, columns: list[torch.Tensor], labels: torch.Tensor) -> None:
        parts = zip(self._heads, self._optimizers, self._schedules, strict=True)
        for heads, optimizer, schedule in parts:
            losses = [torch.nn.functional.cross_entropy(head(columns), labels) for head in heads]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()


def _side(settings: Settings, together: bool) -> Side:
    device = configure(settings)
    shape = settings["check_steps"], settings["batch"]
    sizes = settings["rows"], settings["dim"], settings["classes"], len(RATES)
    drawn = draw_probe(settings["seed"], *sizes, shape)
    columns = [torch.from_numpy(column).to(device) for column in drawn.columns]
    labels = torch.from_numpy(drawn.labels).to(device)

    def begin() -> Probe:
        probe = Probe(settings, [weight.copy() for weight in drawn.weights], together)
        probe.heads.to(device)
        return probe

    def step(probe: Probe, rows: torch.Tensor) -> None:
        probe.step([column[rows] for column in columns], labels[rows])

    def check() -> Arrays:
        probe = begin()
        for rows in drawn.order:
            step(probe, torch.from_numpy(rows).to(device))
        tensors = {}
        for place, kind in enumerate(KINDS):
            heads = probe.heads[place * len(RATES) : (place + 1) * len(RATES)]
            weights = [head.linear.weight.detach().cpu().numpy().T for head in heads]
            biases = [head.linear.bias.detach().cpu().numpy() for head in heads]
            tensors[f"weight {kind[0]} {kind[1]}"] = np.stack(weights, axis=1)
            tensors[f"bias {kind[0]} {kind[1]}"] = np.stack(biases)
        return tensors

    probe = begin()
    call: Callable[[], None] = lambda: step(  # noqa: E731
        probe, torch.randint(len(labels), (settings["batch"],), device=device)
    )
    return side_of(check, call, device)


def together(settings: Settings) -> Side:
    """settings: as ours/linear.py."""
    return _side(settings, together=True)


def alone(settings: Settings) -> Side:
    """As `together`; a step is one step of each of the 52."""
    return _side(settings, together=False)
