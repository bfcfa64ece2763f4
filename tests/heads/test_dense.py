"""Training of heads on patches: optimizer and schedules against torch, resuming, device counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.data.depth_crops import DepthCrops
from dinov2_jax.heads import dense
from dinov2_jax.heads.dense import DenseSettings, first_decay_at, rate_at, train_dense
from dinov2_jax.heads.dense_forward import Form
from dinov2_jax.heads.depth_recipes import depth_loss, first_params
from dinov2_jax.models.maps import Level, resize
from dinov2_jax.models.segmentation import SegmentationHead, Statistics, initial_statistics
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.run.resume import StateFile
from tests.data.test_dense_loader import Pictures, Split
from tests.features.tiny import backbone

SETTINGS = DenseSettings(
    iterations=200, batch_size=4, rates=(1e-2,), weight_decay=1e-2, warmup_iterations=20
)


# ------------------------------------------------------------------------------------- schedules
def test_poly_with_warm_up():
    settings = DenseSettings(40_000, 16, (1e-3,), 1e-4, 1500)
    assert rate_at(settings, 0) == pytest.approx(1e-6)
    # mmcv: the scheduled rate, times 1 - (1 - i / 1500) (1 - 1e-6)
    assert rate_at(settings, 750) == pytest.approx((1 - 750 / 40_000) * (1 - 0.5 * (1 - 1e-6)))
    assert rate_at(settings, 1500) == pytest.approx(1 - 1500 / 40_000)
    assert rate_at(settings, 39_999) == pytest.approx(1 / 40_000)


def test_cosine_and_cycle_against_torch():
    torch = pytest.importorskip("torch")
    settings = DenseSettings(
        100, 16, (1e-4,), 0.01, 0, schedule="cosine", warmup_ratio=1e-3, cycle=True
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    cosine = torch.optim.AdamW([weight], lr=1.0)
    annealed = torch.optim.lr_scheduler.CosineAnnealingLR(cosine, 100, eta_min=1e-8)
    adam = torch.optim.AdamW([weight], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 1.0, total_steps=100)
    for i in range(100):
        assert rate_at(settings, i) == pytest.approx(annealed.get_last_lr()[0], rel=1e-6)
        assert first_decay_at(settings, i) == pytest.approx(adam.param_groups[0]["betas"][0])
        for optimizer, schedule in ((cosine, annealed), (adam, cycle)):
            optimizer.step()
            schedule.step()
    warm = dataclasses.replace(settings, warmup_iterations=10)
    assert rate_at(warm, 5) / rate_at(settings, 5) == pytest.approx(1 - 0.5 * (1 - 1e-3))
    assert first_decay_at(dataclasses.replace(settings, cycle=False), 5) == 0.9


# ----------------------------------------------------------------------------- against a torch loop
def fixed_batches(count=5):
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((count, 4, 3, 5, 6)).astype(np.float32)
    labels = rng.integers(0, 4, (count, 4, 9, 15))
    labels[rng.random(labels.shape) < 0.2] = 255
    return maps, labels


def segmentation_loss(trained, levels, targets, iteration):
    module = SegmentationHead(4)
    logits, seen = module.apply(
        {"params": trained["params"]}, [levels[0].patches], trained["statistics"], train=True
    )
    log = jax.nn.log_softmax(resize(logits, targets.shape[1:3]))
    picked = jnp.take_along_axis(log, jnp.where(targets == 255, 0, targets)[..., None], -1)[..., 0]
    return -jnp.where(targets == 255, 0, picked).mean(), {**trained, "statistics": seen}


def begin():
    levels = [jnp.zeros((1, 2, 2, 6))]
    params = SegmentationHead(4).init(jax.random.key(1), levels, initial_statistics(6))["params"]
    return {"params": params, "statistics": initial_statistics(6)}


def ours(settings):
    """All heads after 200 steps on fixed batches."""
    maps, labels = fixed_batches()
    state = dense.begin(begin(), len(settings.rates))

    def read(frozen, images):
        return [Level(images, images[:, 0, 0])]

    @jax.jit
    def step(state, batch, now):
        return dense._train_step(read, segmentation_loss, settings, state, None, batch, now)

    for i in range(settings.iterations):
        batch = {"images": maps[i % 5], "targets": labels[i % 5]}
        state, _ = step(state, batch, dense._now(settings, i))
    return state["trained"]


def torchs(settings):
    """The same loop in torch: batch norm, 1 x 1 convolution, cross-entropy over all pixels."""
    import torch
    from torch.nn import functional as F

    maps, labels = fixed_batches()
    norm, conv = torch.nn.BatchNorm2d(6), torch.nn.Conv2d(6, 4, 1)
    start = begin()["params"]
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(np.array(start["kernel"]).T[..., None, None]))
        conv.bias.zero_()
    both = [*norm.parameters(), *conv.parameters()]
    optimizer = torch.optim.AdamW(both, lr=1.0, weight_decay=settings.weight_decay)
    for i in range(settings.iterations):
        optimizer.param_groups[0]["lr"] = settings.rates[0] * rate_at(settings, i)
        x = torch.from_numpy(maps[i % 5]).permute(0, 3, 1, 2)
        logits = F.interpolate(conv(norm(x)), (9, 15), mode="bilinear")
        y = torch.from_numpy(labels[i % 5])
        loss = F.cross_entropy(logits, y, ignore_index=255, reduction="none").mean()
        optimizer.zero_grad()
        loss.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(both, settings.clip)
        optimizer.step()
    found = {
        "bn": {"scale": norm.weight, "bias": norm.bias},
        "kernel": conv.weight[:, :, 0, 0].T,
        "bias": conv.bias,
    }
    statistics = Statistics(norm.running_mean, norm.running_var, norm.num_batches_tracked)
    found = {"params": found, "statistics": statistics}
    return jax.tree.map(lambda x: x.detach().numpy(), found)


@pytest.mark.parametrize("clip", [0.0, 0.02])
def test_two_hundred_steps_equal_a_torch_loop(clip):
    """Two heads of different rates side by side; each equals torch's with its rate."""
    pytest.importorskip("torch")
    settings = dataclasses.replace(SETTINGS, rates=(1e-2, 3e-3), clip=clip)
    found = ours(settings)
    alone = ours(dataclasses.replace(settings, rates=(1e-2,)))
    for place, rate in enumerate(settings.rates):
        expected = torchs(dataclasses.replace(settings, rates=(rate,)))
        mine = jax.tree.map(lambda x, i=place: x[i], found)
        jax.tree.map(lambda x, y: close(x, y, 1e-4), mine, expected)
        if place == 0:
            jax.tree.map(lambda x, y: close(x[0], y, 1e-4), alone, expected)
            moved = np.abs(np.asarray(mine["params"]["kernel"] - begin()["params"]["kernel"]))
            assert moved.mean() > 0.03


def close(found, expected, bound):
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


# ----------------------------------------------------------------------- whole, with the backbone
class Stop(Exception):
    pass


class StoppedFile(StateFile):
    """As if the process were killed after the first state was stored."""

    def save(self, tree, iteration):
        super().save(tree, iteration)
        raise Stop


FORM = Form("depth_linear", 0.001, 20.0)
TRAINING = DenseSettings(
    iterations=8, batch_size=8, rates=(1e-3,), weight_decay=0.01, warmup_iterations=2,
    schedule="cosine", warmup_ratio=1e-3, cycle=True, clip=35.0, save_every=4,
)  # fmt: skip


def train(file, mesh=None, form=FORM):
    found, split = backbone(), Split(Pictures(12))
    params = first_params(form, found.model.dim, 1, seed=0)
    heads, losses, _ = train_dense(
        found.model, found.params, found.preprocessing, (2,), False, depth_loss(form),
        {"params": params, "statistics": None}, split, DepthCrops(8, 12), (8, 12), TRAINING,
        file=file, max_pixels=10_000, mesh=mesh,
    )  # fmt: skip
    return heads[0]["params"], losses, params


def test_a_killed_training_continues_bit_for_bit(tmp_path):
    one = make_mesh(devices=jax.devices()[:1])
    whole, losses, begun = train(StateFile(None, {}), one)
    assert np.abs(whole["kernel"] - begun["kernel"]).max() > 1e-4
    assert np.isfinite(losses).sum() == 8 and len(losses) == dense.CURVE_POINTS
    with pytest.raises(Stop):
        train(StoppedFile(tmp_path / "state.safetensors", {"a": 1}), one)
    continued, curve, _ = train(StateFile(tmp_path / "state.safetensors", {"a": 1}), one)
    jax.tree.map(np.testing.assert_array_equal, continued, whole)
    np.testing.assert_array_equal(curve, losses)


def test_device_counts_give_the_same_head():
    found = [train(StateFile(None, {}), make_mesh(devices=jax.devices()[:n]))[0] for n in (1, 2, 8)]
    for other in found[1:]:
        jax.tree.map(lambda x, y: close(x, y, 1e-6), other, found[0])
