"""Fine-tuning of a tiny backbone: it learns, continues, and its rates are those worked by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.given import Arrays
from dinov2_jax.heads.finetune import train
from dinov2_jax.heads.finetune.classifier import predict
from dinov2_jax.heads.finetune.lora import Lora
from dinov2_jax.heads.finetune.optimizer import (
    FinetuneSettings,
    is_decayed,
    layerwise_adamw,
    lr_multipliers,
)
from dinov2_jax.heads.finetune.train import STATE_FILE, at_resolution, finetune, first_params
from dinov2_jax.heads.grid import Grid, best
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.heads.probe import ProbeSettings, train_cached
from dinov2_jax.models.positions import resize_positions
from dinov2_jax.parallel.mesh import make_mesh, state_shardings
from dinov2_jax.run import resume
from tests.features.tiny import PREPROCESSING, backbone

SETTINGS = FinetuneSettings(
    iterations=40,
    batch_size=16,
    group_size=8,
    lr=3e-3,
    warmup_iterations=5,
    layerwise_decay=0.8,
    drop_path=0.1,
    mixup=0.2,
    cutmix=0.2,
    ema=0.9,
    save_every=3,
    seed=2,
)
SHORT = dataclasses.replace(SETTINGS, iterations=8, warmup_iterations=0)


def colours(count, seed):
    """Three classes: the greatest channel, among noise and any brightness."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pictures = rng.integers(0, 120, (count, 20, 20, 3)) + rng.integers(0, 80, (count, 1, 1, 1))
    pictures[np.arange(count), :, :, labels] += 50
    return Arrays(list(pictures.astype(np.uint8))), labels


@pytest.fixture(scope="module")
def weights():
    return backbone(registers=1)


def run(weights, settings, preprocessing=PREPROCESSING, seed=0, **options):
    source, labels = colours(30, seed)
    how = weights.model, weights.params, preprocessing, source, labels, 3, settings
    return finetune(*how, **options)


def accuracy(found, preprocessing=PREPROCESSING):
    source, labels = colours(30, seed=9)
    logits, rows = predict(found, preprocessing, source, np.arange(30), batch_size=16)
    return np.mean(logits.argmax(axis=1) == labels[rows])


def leaves(found):
    return jax.tree.leaves((found.params, found.head.weight, found.head.bias))


@pytest.mark.usefixtures("one_device")
def test_learns_a_separable_set(weights):
    untrained = run(
        weights, dataclasses.replace(SETTINGS, lr=0.0, iterations=6, warmup_iterations=1)
    )
    assert accuracy(untrained) < 0.7
    found = run(weights, SETTINGS)
    assert accuracy(found) > 0.95
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found.params, weights.params)
    assert moved.pop("mask_token") < 1e-7  # nothing is masked; the average rounds
    assert min(jax.tree.leaves(moved)) > 1e-5  # all else is trained


@pytest.mark.usefixtures("one_device")
def test_lora_learns_and_leaves_the_rest_alone(weights):
    lora = Lora(rank=4, targets=("attn/qkv", "attn/proj"))
    settings = dataclasses.replace(SETTINGS, lora=lora, lr=2e-2, avgpool=True)
    found = run(weights, settings)
    assert accuracy(found) > 0.9
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), found.params, weights.params)
    blocks = changed["blocks"]
    assert blocks["attn"]["qkv"]["kernel"] and blocks["attn"]["proj"]["kernel"]
    assert sum(jax.tree.leaves(changed)) == 2


@pytest.mark.usefixtures("one_device")
def test_resume_equals_a_straight_run(weights, monkeypatch, tmp_path):
    class Killed(resume.Progress):
        def update(self, step, **shown):
            if step == 5:
                raise KeyboardInterrupt

    straight = run(weights, SHORT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resume, "Progress", Killed)
        run(weights, SHORT, folder=tmp_path)
    assert (tmp_path / STATE_FILE).exists()
    resumed = run(weights, SHORT, folder=tmp_path)
    for a, b in zip(leaves(straight), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"written with lr 0\.003, but now it is 0\.1"):
        run(weights, dataclasses.replace(SHORT, lr=0.1), folder=tmp_path)


def test_device_count_does_not_matter(weights, monkeypatch):
    """But for the biases of keys, whose gradient is 0: Adam makes steps of its rounding."""
    # Adam's first step is the rate itself, however small the gradient: a warm-up begins it at 0.
    settings = dataclasses.replace(SHORT, iterations=4, warmup_iterations=1)
    one = run(weights, settings, mesh=make_mesh(devices=jax.devices()[:1]))
    split_all = functools.partial(state_shardings, min_bytes=0)
    monkeypatch.setattr(train, "state_shardings", split_all)
    many = run(weights, settings, mesh=make_mesh(data=4, fsdp=2))
    for found in (one, many):
        bias = found.params["blocks"]["attn"]["qkv"]["bias"]
        found.params["blocks"]["attn"]["qkv"]["bias"] = np.delete(bias, np.s_[24:48], axis=1)
    for a, b in zip(leaves(one), leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.usefixtures("one_device")
def test_higher_resolution_resamples_the_positions_once(weights):
    larger = Preprocessing(28, 24, PREPROCESSING.mean, PREPROCESSING.std)
    model, params = at_resolution(weights.model, weights.params, 24)
    table = resize_positions(jnp.asarray(weights.params["pos_embed"]), (6, 6), 0.0, True)
    np.testing.assert_array_equal(params["pos_embed"], table)
    images = np.random.default_rng(0).normal(size=(1, 24, 24, 3)).astype(np.float32)
    by_forward = weights.model.apply({"params": weights.params}, images)["cls"]
    np.testing.assert_allclose(
        model.apply({"params": params}, images)["cls"], by_forward, rtol=1e-5, atol=1e-5
    )
    found = run(weights, dataclasses.replace(SHORT, iterations=2), larger)
    assert found.params["pos_embed"].shape == (1, 37, 24)
    assert 0 <= accuracy(found, larger) <= 1
    with pytest.raises(ValueError, match="26 px are not whole patches of 4 px; nearest valid: 24"):
        at_resolution(weights.model, weights.params, 26)


@pytest.mark.usefixtures("one_device")
def test_begins_with_a_head_of_the_probe(weights):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 24)).astype(np.float32), np.ones(3, np.float32)
    head = LinearHead(weight, bias, blocks=1, avgpool=False, metadata={"name": "probe"})
    found = first_params(weights.model, weights.params, 3, SHORT, head)
    np.testing.assert_array_equal(found["head"]["kernel"], weight.T)
    np.testing.assert_array_equal(found["head"]["bias"], bias)
    both = dataclasses.replace(SHORT, avgpool=True)
    settings = ProbeSettings(Grid((0.1,), (1,), (True,)), batch_size=8, iterations=2)
    columns, labels = [rng.normal(size=(9, 24)).astype(np.float32) for _ in range(2)], np.arange(9)
    probed = best(train_cached(columns, labels % 3, 3, settings), columns, labels % 3)
    found = first_params(weights.model, weights.params, 3, both, probed)
    np.testing.assert_array_equal(found["head"]["kernel"], probed.weight.T)
    with pytest.raises(
        ValueError,
        match=r"read 1 block with avgpool=True and have 3 classes; train one .*avgpool=\(True,\)",
    ):
        run(weights, both, head=head)


@pytest.mark.usefixtures("one_device")
def test_a_state_that_began_with_another_head_is_refused(weights, tmp_path):
    """Also one of the same name: probes on other data name their heads alike."""
    weight, bias = np.eye(3, 24, dtype=np.float32), np.ones(3, np.float32)
    head, other = (
        LinearHead(factor * weight, bias, blocks=1, avgpool=False, metadata={"name": "probe"})
        for factor in (1, 2)
    )
    short = dataclasses.replace(SHORT, iterations=1)
    run(weights, short, head=head, folder=tmp_path)
    with pytest.raises(ValueError, match="written with head probe"):
        run(weights, short, head=other, folder=tmp_path)


def test_layerwise_multipliers_by_hand(weights):
    params = {
        "backbone": weights.params,
        "lora": {"attn/qkv": {"a": np.zeros((3, 24, 2))}},
        "head": {"kernel": np.zeros((24, 3)), "bias": np.zeros(3)},
    }
    found = lr_multipliers(params, 3, 0.5)
    backbone = found["backbone"]
    for name in ("cls_token", "pos_embed", "register_tokens", "mask_token"):
        assert backbone[name] == 0.5**4
    assert backbone["patch_embed"] == {"kernel": 0.5**4, "bias": 0.5**4}
    kernel, scale = backbone["blocks"]["mlp"]["fc1"]["kernel"], backbone["blocks"]["norm1"]["scale"]
    np.testing.assert_array_equal(kernel, np.asarray([1 / 8, 1 / 4, 1 / 2]).reshape(3, 1, 1))
    assert scale.shape == (3, 1)
    assert backbone["norm"] == {"scale": 1.0, "bias": 1.0}
    assert found["head"] == {"kernel": 1.0, "bias": 1.0}
    assert found["lora"]["attn/qkv"]["a"].shape == (3, 1, 1)
    decayed = is_decayed(params)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, yes in jax.tree_util.tree_flatten_with_path(decayed)[0]
        if yes
    }
    blocks = [
        f"backbone/blocks/{n}/kernel" for n in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
    ]
    others = ["backbone/patch_embed/kernel", "head/kernel", "lora/attn/qkv/a"]
    assert names == {*blocks, *others}


def test_steps_of_the_optimizer_by_hand():
    """AdamW with decoupled decay on one kernel of two blocks, in float64."""
    rng = np.random.default_rng(0)
    value, gradients = rng.normal(size=(2, 3, 3)), rng.normal(size=(6, 2, 3, 3))
    tree = lambda x: {"backbone": {"blocks": {"fc": {"kernel": jnp.asarray(x, jnp.float32)}}}}  # noqa: E731
    rates = dict(lr=0.1, min_lr=0.01, warmup_iterations=2, iterations=6)
    settings = FinetuneSettings(layerwise_decay=0.5, weight_decay=0.3, **rates)
    adamw = layerwise_adamw(tree(value), 2, settings)
    params, state = tree(value), adamw.init(tree(value))
    m, v = np.zeros_like(value), np.zeros_like(value)
    for step, gradient in enumerate(gradients):
        updates, state = adamw.update(tree(gradient), state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        direction = m / (1 - 0.9 ** (step + 1))
        direction /= np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8
        if step < 2:
            lr = 1e-6 + (0.1 - 1e-6) * step / 2
        else:
            lr = 0.01 + 0.09 * (1 + np.cos(np.pi * (step - 2) / 4)) / 2
        factors = np.asarray([0.25, 0.5]).reshape(2, 1, 1)
        value = value - lr * factors * (direction + 0.3 * value)
    found = params["backbone"]["blocks"]["fc"]["kernel"]
    np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("one_device")
def test_wrong_inputs_are_one_sentence(weights):
    with pytest.raises(ValueError, match="batch_size 16 is no multiple of group_size 6"):
        run(weights, dataclasses.replace(SHORT, group_size=6))
    with pytest.raises(ValueError, match="warmup_iterations 8 leave nothing of 8 iterations"):
        run(weights, dataclasses.replace(SHORT, warmup_iterations=8))
    source, labels = colours(30, 0)
    how = weights.model, weights.params, PREPROCESSING, source
    with pytest.raises(ValueError, match="29 labels for 30 pictures"):
        finetune(*how, labels[1:], 3, SHORT)
    with pytest.raises(ValueError, match="class 3 has no picture"):
        finetune(*how, labels, 4, SHORT)
