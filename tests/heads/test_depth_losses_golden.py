"""Losses of depth heads against the reference's vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.heads.depth_losses import gradient_loss, grouped_sig_loss, sig_loss

BOUND = 3e-7  # relative, of losses; gradients agree to 3e-7 before, so 1e-6


@pytest.fixture(scope="module")
def cases(golden):
    vectors = np.load(golden / "dense_heads.npz")
    found = {}
    for key in vectors.files:
        if key.startswith("depth_loss/"):
            _, case, name = key.split("/")
            found.setdefault(case, {})[name] = vectors[key]
    assert found
    return found


def close(found, expected, bound=BOUND):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


def test_sig_loss(cases):
    for case in cases.values():
        loss, gradient = jax.value_and_grad(sig_loss)(case["pred"], case["gt"])
        close(loss, case["sig"])
        close(gradient, case["sig_grad"], 9e-7)
        nearer = np.where(case["gt"] <= 4, case["gt"], 0)  # what max_depth 4 leaves
        close(sig_loss(case["pred"], nearer), case["sig_max4"])


def test_warm_up(cases):
    for case in cases.values():
        warm = jax.jit(sig_loss)
        found = [warm(case["pred"], case["gt"], call < 2) for call in range(4)]
        close(jnp.stack(found), case["sig_warm_calls"])
        gradient = jax.grad(sig_loss)(case["pred"], case["gt"], True)
        close(gradient, case["sig_warm_grad"], 9e-7)


def test_gradient_loss(cases):
    for case in cases.values():
        found = gradient_loss(case["pred"], case["gt"], axes=(0, 1))
        close(found, case["gradient"])


def test_gradient_loss_along_rows_and_columns(cases):
    """The same law on transposed axes: what the reference would give for pictures as batches."""
    case = cases["B4"]
    turned = [np.moveaxis(case[name], (0, 1), (2, 3)) for name in ("pred", "gt")]
    close(gradient_loss(*turned), case["gradient"])


def test_groups(cases):
    pred, gt = (cases["B4"][name][:, 0] for name in ("pred", "gt"))
    expected = np.mean([sig_loss(pred[i : i + 2], gt[i : i + 2]) for i in (0, 2)])
    np.testing.assert_allclose(grouped_sig_loss(pred, gt, 2, False), expected, rtol=1e-6)
    assert abs(float(sig_loss(pred, gt)) - expected) > 1e-4  # a loss of all four is another one


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("valid", [0, 1])
def test_few_values(warm, valid):
    """No valid pixel, or one, gives a finite gradient."""
    gt = np.zeros((1, 2, 2), np.float32)
    gt[0, 0, :valid] = 2
    loss, gradient = jax.value_and_grad(sig_loss)(np.full_like(gt, 3), gt, warm)
    assert np.isfinite(gradient).all() and (gradient != 0).sum() == valid
    assert (loss > 0) == (valid > 0)
    exact = jax.grad(sig_loss)(gt, gt)
    assert np.isfinite(exact).all()
