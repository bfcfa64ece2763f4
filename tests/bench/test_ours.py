"""Our sides of the benchmarks do the work that they are timed for."""

import io

import numpy as np
import pytest
from PIL import Image

from dinov2_jax.bench import pipeline, step
from dinov2_jax.bench.draws import draw_images, draw_probe, draw_rows
from dinov2_jax.bench.ours import attention as ours_attention
from dinov2_jax.bench.ours import dpt as ours_dpt
from dinov2_jax.bench.ours import linear as ours_linear
from dinov2_jax.bench.ours import losses as ours_losses
from dinov2_jax.bench.ours import pipeline as ours_pipeline
from dinov2_jax.bench.ours import step as ours_step
from tests.bench.test_draws import arguments


@pytest.fixture(autouse=True)
def default_precision():
    import jax

    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def test_attention_is_softmax_of_products():
    settings = {"batch": 2, "tokens": 5, "heads": 3, "head_dim": 8, "dtype": "float32"}
    q, k, v, _ = draw_images(0, 4, 2, 5, 3, 8).astype(np.float64)
    weights = softmax(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(8))
    want = np.einsum("bhnm,bmhd->bnhd", weights, v)
    for backend in ("ours", "xla"):
        side = ours_attention.side(settings | {"seed": 0, "backend": backend, "backward": True})
        found = side.check()
        assert sorted(found) == ["dk", "dq", "dv", "out"]
        np.testing.assert_allclose(found["out"], want, atol=1e-5)
        side.run(2)


def test_depth_head_against_its_peer():
    """The peer is written from the formulas in PyTorch, and so judges ours."""
    pytest.importorskip("torch")
    from dinov2_jax.bench.peers import dpt as peer

    settings = {"dim": 16, "channels": 8, "grid": (3, 2), "batch": 2, "dtype": "float32", "seed": 0}
    found = ours_dpt.side(settings).check()["depth"]
    for channels_last in (False, True):
        more = {"device": "cpu", "threads": 1, "channels_last": channels_last, "compile": False}
        want = peer.dpt(settings | more).check()["depth"]
        assert want.shape == (2, 64, 32) and want.std() > 0
        np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("centering", ["centering", "sinkhorn_knopp"])
def test_loss_block_and_its_gradient(centering):
    settings = {"rows": 6, "prototypes": 16, "centering": centering, "dtype": "float32"}
    found = ours_losses.side(settings | {"crops": 4, "temp": 0.5, "seed": 0}).check()
    drawn = {name: x.astype(np.float64) for name, x in draw_rows(0, 6, 16).items()}
    if centering == "centering":
        goals = softmax((drawn["teacher"] - drawn["center"]) / 0.5)
    else:
        q = np.exp(drawn["teacher"] / 0.5)
        for _ in range(3):
            q /= q.sum(axis=0, keepdims=True) * 16
            q /= q.sum(axis=1, keepdims=True) * 6
        goals = 6 * q
    student = softmax(drawn["student"] / 0.1)
    loss = -(drawn["weights"] * (goals * np.log(student)).sum(axis=1)).sum() / 4
    gradient = drawn["weights"][:, None] * (student - goals) / 0.1 / 4
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["gradient"], gradient, atol=1e-6)


def test_probe_makes_steps_of_sgd_from_the_drawn_weights():
    settings = {"rows": 30, "dim": 4, "classes": 3, "batch": 8, "iterations": 10}
    side = ours_linear.side(settings | {"check_steps": 3, "seed": 0, "dtype": "float32"})
    found = side.check()
    drawn = draw_probe(0, 30, 4, 3, 13, (3, 8))
    kinds = {"1 False": [3], "1 True": [3, 4], "4 False": [0, 1, 2, 3], "4 True": [0, 1, 2, 3, 4]}
    assert set(found) == {f"{part} {kind}" for part in ("weight", "bias") for kind in kinds}
    for (kind, columns), weights in zip(kinds.items(), drawn.weights, strict=True):
        x = np.concatenate([drawn.columns[i] for i in columns], axis=1).astype(np.float64)
        weight, momentum = weights[:, 12].astype(np.float64), 0.0  # the rate 0.1 x 8 / 256
        bias, bias_momentum = np.zeros(3), 0.0
        for step_number, rows in enumerate(drawn.order):
            gradient = softmax(x[rows] @ weight + bias)
            gradient[np.arange(8), drawn.labels[rows]] -= 1
            momentum = 0.9 * momentum + x[rows].T @ gradient / 8
            bias_momentum = 0.9 * bias_momentum + gradient.mean(axis=0)
            lr = 0.1 * 8 / 256 * (1 + np.cos(np.pi * step_number / 10)) / 2
            weight, bias = weight - lr * momentum, bias - lr * bias_momentum
        np.testing.assert_allclose(found[f"weight {kind}"][:, 12], weight, atol=1e-6)
        np.testing.assert_allclose(found[f"bias {kind}"][12], bias, atol=1e-6)
        assert np.abs(weight - weights[:, 12]).max() > 1e-3
    side.run(side.multiple)


def test_step_trains_from_the_drawn_weights():
    config = step.for_check(
        step.recipe(arguments(batch=2, depth=1, global_size=32, local_size=16, prototypes=32))
    )
    for name in ("head_hidden_dim", "head_bottleneck_dim"):
        config["dino"][name] = 16
    side = ours_step.side({"config": config, "hyper": step.CHECK_HYPER, "seed": 0})
    found = side.check()
    names = {"dino", "koleo", "ibot", "student_norm", "teacher_norm"}
    names |= {"grad_norm/backbone", "grad_norm/dino_head"}
    assert set(found) == {f"step {n} {name}" for n in (1, 2) for name in names}
    assert all(np.isfinite(value) for value in found.values())
    assert found["step 2 dino"] < found["step 1 dino"]  # the same batch twice
    assert found["step 2 teacher_norm"] != found["step 1 teacher_norm"]


def test_host_side_makes_the_crops_of_the_recipe(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 320, 3), dtype=np.uint8)
    file = tmp_path / "photo.jpg"
    with io.BytesIO() as out:
        Image.fromarray(pixels).resize((640, 600)).save(out, "JPEG")
        file.write_bytes(out.getvalue())
    settings = {"photos": [str(file)], "batch": 2, "seed": 0, "box": pipeline.BOX}
    globals_, locals_ = ours_pipeline._Host(settings).next_batch(2)
    assert globals_.shape == (2, 2, 224, 224, 3) and globals_.dtype == np.uint8
    assert locals_.shape == (2, 8, 96, 96, 3)
    box = pipeline.BOX
    with Image.open(file) as image:
        corner = (box["left"], box["top"])
        crop = image.crop((*corner, corner[0] + box["width"], corner[1] + box["height"]))
        want = np.asarray(crop.resize((224, 224), Image.Resampling.BICUBIC))
    found = ours_pipeline.host(settings).check()
    assert pipeline.crops_agree(found, {"photo 0": want})["photo 0"] < 0.5


def test_search_of_a_bank():
    from dinov2_jax.bench import knn
    from dinov2_jax.bench.draws import draw_unit_vectors
    from dinov2_jax.bench.harness import BenchError
    from dinov2_jax.bench.ours import knn as ours_knn

    settings = {"bank": 300, "queries": 20, "dim": 8, "k": 6, "dtype": "float32", "seed": 0}
    side = ours_knn.side(settings)
    found = side.check()
    bank, queries = draw_unit_vectors(settings)
    order = np.argsort(-(queries @ bank.T), axis=1)[:, :6]
    np.testing.assert_array_equal(found["rows"], order)
    side.run(2)
    knn.same_neighbours(found, found)
    with pytest.raises(BenchError, match="parity of rows"):
        knn.same_neighbours(found, found | {"rows": found["rows"] + 1})


def test_step_of_k_means():
    from dinov2_jax.bench import curation
    from dinov2_jax.bench.draws import draw_unit_vectors
    from dinov2_jax.bench.harness import BenchError
    from dinov2_jax.bench.ours import curation as ours_curation

    settings = {"bank": 400, "queries": 0, "dim": 8, "k": 20, "dtype": "float32", "seed": 0}
    side = ours_curation.side(settings)
    found = side.check()
    rows, _ = draw_unit_vectors(settings)

    def distances(centroids):
        return ((rows[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)

    label = distances(rows[:20]).argmin(axis=1)
    means = np.stack([rows[label == cluster].mean(axis=0) for cluster in range(20)])
    want = {"centroids": means, "objective": distances(means).min(axis=1).sum(keepdims=True)}
    side.run(2)
    curation.same_step(found, want)
    with pytest.raises(BenchError, match="parity of step"):
        curation.same_step(found, want | {"objective": want["objective"] * 1.00001})


def test_sweep_of_logistic_regression():
    from dinov2_jax.bench import logreg
    from dinov2_jax.bench.harness import BenchError
    from dinov2_jax.bench.ours import logreg as ours_logreg
    from dinov2_jax.bench.peers import logreg as peers_logreg

    settings = {"rows": 60, "dim": 5, "classes": 3, "apart": 0.5, "values": 4, "seed": 0}
    settings |= {"dtype": "float32", "features": "float64", "peer_tol": 1e-9, "peer_iter": 5000}
    side = ours_logreg.side(settings)
    ours, theirs = side.check(), peers_logreg.sklearn(settings).check()
    np.testing.assert_allclose(ours["objectives"], theirs["objectives"], rtol=1e-6)
    side.run(1)
    logreg.no_worse(ours, theirs)
    with pytest.raises(BenchError, match="above"):
        logreg.no_worse(ours | {"objectives": ours["objectives"] * (1 + 1e-5)}, theirs)
