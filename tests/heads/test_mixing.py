"""Mixup and CutMix from the pixels: every picture has a colour that tells what it was made of."""

import jax
import numpy as np
import pytest

from dinov2_jax.heads.finetune.mixing import cut_box, mix, smooth_targets

GROUPS, IMAGES, CLASSES = 40, 4, 6


def make_batch():
    """Picture i of group g is all 10 g + i, of class (g + i) % 6."""
    number = 10.0 * np.arange(GROUPS)[:, None] + np.arange(IMAGES)
    images = np.broadcast_to(number[..., None, None, None], (GROUPS, IMAGES, 12, 16, 3))
    labels = (np.arange(GROUPS)[:, None] + np.arange(IMAGES)) % CLASSES
    return images.astype(np.float32), labels


def mixed(mixup, cutmix, smoothing=0.0):
    images, labels = make_batch()
    targets = smooth_targets(labels, CLASSES, smoothing)
    keys = jax.random.split(jax.random.key(3), GROUPS)
    out = jax.jit(lambda k, x, t: mix(k, x, t, mixup=mixup, cutmix=cutmix))(keys, images, targets)
    return images, labels, *(np.asarray(x) for x in out)


def partner(x):
    return x[:, ::-1]


def test_smoothed_targets_by_hand():
    found = np.asarray(smooth_targets(np.asarray([1, 0]), 4, 0.2))
    np.testing.assert_allclose(found, [[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_sum_to_one(mixup, cutmix):
    *_, targets = mixed(mixup, cutmix, smoothing=0.1)
    np.testing.assert_allclose(targets.sum(axis=-1), 1, rtol=1e-6)
    assert targets.min() >= 0.1 / CLASSES - 1e-6


def test_mixup_takes_the_same_share_of_pixels_and_targets():
    images, labels, out, targets = mixed(0.8, 0.0)
    pixel = out[:, :, 0, 0, 0]
    np.testing.assert_allclose(out, np.broadcast_to(pixel[..., None, None, None], out.shape))
    own, other = images[:, :, 0, 0, 0], partner(images)[:, :, 0, 0, 0]
    share = (pixel - other) / (own - other)
    np.testing.assert_allclose(share, share[:, :1].repeat(IMAGES, 1), atol=1e-3)  # one a group
    assert share[:, 0].std() > 0.2
    one_hot = np.eye(CLASSES)[labels]
    expected = share[..., None] * one_hot + (1 - share[..., None]) * partner(one_hot)
    np.testing.assert_allclose(targets, expected, atol=1e-4)


def test_cutmix_counts_the_pixels_it_pastes():
    images, labels, out, targets = mixed(0.0, 1.0)
    own = np.isclose(out, images, atol=1e-3).all(-1)
    other = np.isclose(out, partner(images), atol=1e-3).all(-1)
    assert (own ^ other).all()  # every pixel is of one of the two
    share = own.mean(axis=(2, 3))
    assert share.min() < 0.4 and share.max() > 0.9
    for group in range(GROUPS):
        rows, cols = np.nonzero(other[group, 0])
        if len(rows):  # what is pasted is a rectangle, the same for the whole group
            height, width = np.ptp(rows) + 1, np.ptp(cols) + 1
            assert height * width == len(rows)
            assert (other[group] == other[group, 0]).all()
    one_hot = np.eye(CLASSES)[labels]
    expected = share[..., None] * one_hot + (1 - share[..., None]) * partner(one_hot)
    np.testing.assert_allclose(targets, expected, atol=1e-5)


def test_groups_with_both_use_either():
    images, _, out, _ = mixed(0.8, 1.0)
    flat = np.ptp(out, axis=(2, 3, 4)).max(axis=1) < 1e-3
    assert 0.2 < flat.mean() < 0.8
    images, _, out, _ = mixed(0.0, 0.0)
    np.testing.assert_array_equal(images, out)


@pytest.mark.parametrize("share", [0.0, 0.36, 1.0])
def test_box_sides(share):
    """The side sqrt(1 - share) of the picture where no border cuts it."""
    keys = jax.random.split(jax.random.key(0), 200)
    boxes = np.asarray(jax.vmap(lambda k: cut_box(k, share, (20, 40)))(keys))
    sides = {(int(b.any(axis=1).sum()), int(b.any(axis=0).sum())) for b in boxes}
    greatest = max(h for h, _ in sides), max(w for _, w in sides)
    expected = {0.0: (20, 40), 0.36: (16, 32), 1.0: (0, 0)}[share]
    assert greatest == expected
