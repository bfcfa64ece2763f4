"""Logistic regression against scikit-learn's optimum, and the protocol around it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dinov2_jax.heads.logistic import fit as fits
from dinov2_jax.heads.logistic import newton
from dinov2_jax.heads.logistic import regression as logreg
from dinov2_jax.heads.logistic.fit import C_VALUES, Fitter
from dinov2_jax.heads.logistic.newton import place, solve_path
from dinov2_jax.heads.logistic.regression import evaluate, split
from dinov2_jax.metrics.classification import mean_average_precision, top_accuracy
from dinov2_jax.parallel.mesh import make_mesh


def draw(rows=200, dim=16, classes=5, seed=0, apart=0.7):
    """Overlapping clusters whose directions differ in spread, as those of features do."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, dim + 1) ** -0.5
    centres = apart * np.random.default_rng(99).normal(size=(classes, dim))
    labels = rng.integers(0, classes, rows)
    return ((centres[labels] + rng.normal(size=(rows, dim))) * spread).astype(np.float32), labels


def fit(features, labels, classes, C, **options):
    return fits.fit(Fitter(features, labels, classes), C, **options)


def sweep(train, val, classes, **options):
    return logreg.sweep(Fitter(*train, classes), val, **options)


def objective(features, labels, weight, bias, C):
    """The formula, in fp64: labels [n] by softmax or, with one row of weights, by a sigmoid."""
    z = features.astype(np.float64) @ weight.T + bias
    if len(weight) == 1:
        loss = np.logaddexp(0, np.where(labels == labels.max(), -1, 1) * z[:, 0])
    else:
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), labels]
    return 0.5 * (weight**2).sum() + C * loss.sum()


def judge(features, labels, C):
    model = LogisticRegression(C=C, tol=1e-10, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its line search ends where rounding does
        model.fit(features.astype(np.float64), labels)
    _, numbers = np.unique(labels, return_inverse=True)
    return model, objective(features, numbers, model.coef_, model.intercept_, C)


def adversarial(name):
    """Features, labels, and the number of classes, of which some may be empty."""
    x, y = draw()
    constant = x.copy()
    constant[:, 7] = 7
    rng = np.random.default_rng(1)
    return {  # mostly of one shape, which is compiled once
        "plain": (x, y, 5),
        "separable": (x + 4 * np.eye(16, dtype=np.float32)[y], y, 5),
        "duplicated": (np.repeat(x[:50], 4, axis=0), np.repeat(y[:50], 4), 5),
        "contradictory": (np.repeat(x[:100], 2, axis=0), rng.integers(0, 5, 200), 5),
        "constant feature": (constant, y, 5),
        "single example": (x, np.append(y[:199] % 4, 4), 5),
        "two classes": (x, y % 2, 5),
        "empty class": (x, np.where(y == 2, 3, y), 7),
        "more features than rows": (*draw(20, 50, 4), 4),
        "zeros": (np.zeros_like(x), y, 5),
    }[name]


NAMES = (
    "plain", "separable", "duplicated", "contradictory", "constant feature", "single example",
    "two classes", "empty class", "more features than rows", "zeros",
)  # fmt: skip


# ------------------------------------------------------------------------------------------- fit
@pytest.mark.parametrize("C", [1e-6, 0.1, 100.0])
@pytest.mark.parametrize("name", NAMES)
def test_objective_equals_scikit_learns(name, C):
    x, y, classes = adversarial(name)
    model = fit(x, y, classes, C)
    peer, expected = judge(x, y, C)
    assert model.objective == pytest.approx(expected, rel=1e-6)
    assert model.gap < 1e-6
    # The weights that are returned have the objective that is reported.
    present = np.unique(y)
    weight, bias = model.weight[present], model.bias[present]
    if len(present) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    numbers = np.searchsorted(present, y)
    assert objective(x, numbers, weight, bias, C) == pytest.approx(model.objective, rel=1e-9)
    # Where rounding does not decide, the predictions are the same.
    scores = model.scores(x)
    best = np.sort(scores, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-3 * (np.ptp(scores[:, present]) + 1e-9)
    assert (scores.argmax(axis=1) == peer.predict(x.astype(np.float64)))[clear].all()


@pytest.mark.parametrize("C", [1e-4, 1.0])
def test_scale_of_features_is_a_scale_of_c(C):
    # 1/2 |W|^2 + C loss(100 x, W), W = V / 100: a 10,000th of 1/2 |V|^2 + 10,000 C loss(x, V).
    # scikit-learn itself stops far from the optimum on the scaled features.
    x, y = draw()
    _, expected = judge(x, y, 1e4 * C)
    assert fit(100 * x, y, 5, C).objective == pytest.approx(1e-4 * expected, rel=1e-6)
    _, expected = judge(x, y, 1e-4 * C)
    assert fit(x / 100, y, 5, C).objective == pytest.approx(1e4 * expected, rel=1e-6)


def test_a_common_offset_changes_the_intercept_only():
    x, y = draw()
    x = np.round(x * 64) / 64  # so that adding 1024 is exact
    near, far = fit(x, y, 5, 10.0), fit(x + 1024, y, 5, 10.0)
    assert far.objective == pytest.approx(near.objective, rel=1e-9)
    np.testing.assert_allclose(far.weight, near.weight, atol=1e-4 * np.abs(near.weight).max())
    bias = far.bias + 1024 * far.weight.sum(axis=1)
    np.testing.assert_allclose(bias, near.bias, atol=1e-3 * np.abs(near.bias).max())


def test_the_optimum_has_no_gradient_and_does_not_depend_on_the_start():
    x, y = draw()
    cold = fit(x, y, 5, 3.0, tol=1e-12)
    z = cold.scores(x)
    p = np.exp(z - np.logaddexp.reduce(z, axis=1)[:, None])
    residual = p - np.eye(5)[y]
    gradient = cold.weight + 3.0 * residual.T @ x
    # The penalty makes the objective 1-strongly convex: |gradient|^2 / 2 bounds the distance.
    assert (gradient**2).sum() / 2 < 1e-9 * cold.objective
    assert np.abs(residual.sum(axis=0)).max() < 1e-3
    far = fits.Model(5 * cold.weight[::-1], cold.bias - 3, 1.0, 0.0, 0, 0.0)
    warm = fit(x, y, 5, 3.0, init=far)
    assert warm.objective == pytest.approx(cold.objective, rel=1e-8)
    again = fit(x, y, 5, 3.0, init=cold)
    assert again.iterations == 1 and again.objective <= cold.objective * (1 + 1e-12)


def test_a_model_becomes_a_linear_head_of_cls_tokens():
    x, y, _ = adversarial("empty class")
    model = fit(x, y, 7, 1.0)
    head = model.as_head("abcdefg", "these")
    assert (head.blocks, head.avgpool, head.class_names) == (1, False, tuple("abcdefg"))
    np.testing.assert_allclose(head.logits([x]), model.scores(x), rtol=1e-4, atol=1e-4)
    assert head.metadata["C"] == 1.0 and head.identity == "these"


def test_empty_classes_are_never_predicted():
    x, y, _ = adversarial("empty class")
    model = fit(x, y, 7, 1.0)
    assert np.isneginf(model.bias[[2, 5, 6]]).all() and not model.weight[[2, 5, 6]].any()
    assert set(model.scores(x).argmax(axis=1)) <= {0, 1, 3, 4}


def test_several_labels_are_one_sigmoid_a_class_without_the_unknown():
    x, y = draw(seed=2)
    labels = (np.eye(5, dtype=int) | np.roll(np.eye(5, dtype=int), 2, axis=1))[y]
    labels[np.random.default_rng(3).random(labels.shape) < 0.2] = -1
    labels[:, 3] = np.where(labels[:, 3] == 1, -1, labels[:, 3])  # no positives are left
    labels[:, 4] = np.where(labels[:, 4] == 0, 1, labels[:, 4])  # no negatives
    model = fit(x, labels, 5, 2.0)
    total = 0.0
    for k in range(3):
        known = labels[:, k] >= 0
        peer, value = judge(x[known], labels[known, k], 2.0)
        total += value
        mine = objective(x[known], labels[known, k], model.weight[k : k + 1], model.bias[k], 2.0)
        assert mine == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(model.weight[k], peer.coef_[0], atol=1e-3)
    assert model.objective == pytest.approx(total, rel=1e-6)
    assert list(model.bias[3:]) == [-np.inf, np.inf] and not model.weight[3:].any()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_fp32_gradients_reach_the_optimum_too(kind):
    # What TPUs use. Separable data and a large C: probabilities so near 1 that fp32 cannot tell
    # them from it.
    x, y, classes = adversarial("separable")
    data = x, y[None] == np.arange(classes)[:, None], np.ones((1, len(y)))
    values = (1e-4, 1e-2, 1.0, 100.0, 1e4)
    narrow = solve_path(place(*data, np.float32), values, kind=kind, tol=1e-7, max_iter=100)
    narrow = [solution.objective for solution in narrow]
    with jax.enable_x64(True):
        exact = solve_path(place(*data), values, kind=kind, tol=1e-10, max_iter=100)
        exact = [solution.objective for solution in exact]
    np.testing.assert_allclose(narrow, exact, rtol=5e-7)


@pytest.mark.parametrize("devices", [2, 8])
def test_rows_split_over_a_mesh_give_the_same_model(devices):
    x, y = draw(rows=203)  # no multiple of 2 or 8
    alone = fit(x, y, 5, 5.0, tol=1e-10)
    with jax.set_mesh(make_mesh(data=2, fsdp=devices // 2, devices=jax.devices()[:devices])):
        split_up = fit(x, y, 5, 5.0, tol=1e-10)
    assert split_up.objective == pytest.approx(alone.objective, rel=1e-12)
    np.testing.assert_allclose(split_up.weight, alone.weight, atol=1e-5)


def test_the_rest_of_the_program_stays_32_bit():
    x, y = draw()
    fit(x, y, 5, 1.0)
    assert jnp.ones(3).dtype == jnp.float32 and not jax.config.jax_enable_x64


def test_what_cannot_be_fitted_is_refused():
    x, y = draw()
    with pytest.raises(ValueError, match="2 of 200 rows of features hold nan"):
        bad = x.copy()
        bad[[3, 5], 2] = np.nan, np.inf
        fit(bad, y, 5, 1.0)
    with pytest.raises(ValueError, match="from 0 to 4, but there are 4 classes"):
        fit(x, y, 4, 1.0)
    with pytest.raises(ValueError, match="all 200 training rows are of class 1"):
        fit(x, np.ones(200, int), 5, 1.0)
    with pytest.raises(ValueError, match=r"one row of features for each label"):
        fit(x, y[:-1], 5, 1.0)
    with pytest.raises(ValueError, match="one of -1, 0, 1 for each of the 5 classes"):
        fit(x, 2 * np.eye(5, dtype=int)[y], 5, 1.0)
    with pytest.raises(ValueError, match="C must be positive"):
        fit(x, y, 5, 0.0)


# ---------------------------------------------------------------------------------------- protocol
def test_the_values_of_c():
    assert len(C_VALUES) == 45
    np.testing.assert_allclose([C_VALUES[0], C_VALUES[4], C_VALUES[-1]], [1e-6, 1e-5, 1e5])


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_sweep_chooses_what_scikit_learn_chooses(metric):
    train, val = draw(apart=0.4), draw(seed=1, apart=0.4)
    values = C_VALUES[8:40:3]
    model, trials = sweep(train, val, 5, values=values[::-1], metric=metric)
    expected = []
    for C, trial in zip(values, trials, strict=True):
        peer, least = judge(*train, C)
        assert trial.objective == pytest.approx(least, rel=1e-6)
        scores = peer.decision_function(val[0].astype(np.float64))
        expected.append(logreg.METRICS[metric](scores, val[1]))
    assert [trial.value for trial in trials] == pytest.approx(expected, abs=1e-9)
    assert len(set(expected)) > 3
    best = int(np.argmax(expected))
    assert values[best] == model.C


def test_sweep_takes_the_smallest_of_equally_good_values(capsys):
    train = draw(apart=30)
    model, trials = sweep(train, train, 5, values=(10.0, 1.0, 0.1), show=True)
    assert [t.value for t in trials] == [100, 100, 100] and [t.C for t in trials] == [0.1, 1, 10]
    assert model.C == 0.1


def test_evaluate_holds_out_a_tenth_and_fits_all_again():
    train, test = draw(apart=0.5), draw(150, seed=1, apart=0.5)
    kept, held = split(train, 0)
    assert (len(kept[1]), len(held[1])) == (180, 20)
    rows = {row.tobytes() for part in (kept, held) for row in part[0]}
    assert rows == {row.tobytes() for row in train[0]}
    values = (1e-3, 1e-1, 10.0)
    report = evaluate(train, test, 5, values=values)
    chosen, trials = sweep(kept, held, 5, values=values)
    assert (report.C, report.trials) == (chosen.C, trials)
    whole = fit(*train, 5, report.C)
    assert report.model.objective == pytest.approx(whole.objective, rel=1e-8)
    assert report.results["top1"] == top_accuracy(whole.scores(test[0]), test[1], 1)
    assert set(report.results) == {"top1", "mean_per_class"}
    assert evaluate(train, test, 5, values=values, seed=7).trials != trials


def test_evaluate_with_a_validation_set():
    train, val, test = (draw(seed=s, apart=0.5) for s in range(3))
    values = (1e-2, 1.0, 100.0)
    model, trials = sweep(train, val, 5, values=values)
    merged = evaluate(train, test, 5, val=val, values=values)
    both = (np.concatenate([a, b]) for a, b in zip(train, val, strict=True))
    assert merged.trials == trials
    assert merged.model.objective == pytest.approx(fit(*both, 5, model.C).objective, rel=1e-8)


def test_evaluate_several_labels_by_average_precision():
    (x, y), (tx, ty) = draw(200, apart=0.5), draw(150, seed=1, apart=0.5)
    several = np.eye(5, dtype=int) | np.roll(np.eye(5, dtype=int), 1, axis=1)
    report = evaluate((x, several[y]), (tx, several[ty]), 5, values=(0.01, 1.0), metric="mAP")
    expected = mean_average_precision(report.model.scores(tx), several[ty])[0]
    assert report.results == {"mAP": expected} and 60 < expected < 100


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("rows", "dim", "classes"), [(20_000, 32, 60), (20_000, 256, 5)])
def test_the_estimate_of_device_memory_holds_for_the_compiled_fit(rows, dim, classes, several):
    with jax.enable_x64(True):
        arrays = {"x": (rows, dim), "wide": (rows, dim), "targets": (classes, rows)}
        kinds = {"x": np.float32, "wide": np.float64, "targets": bool}
        known = jax.ShapeDtypeStruct((classes if several else 1, rows), np.float32)
        data = newton.Problem(
            **{n: jax.ShapeDtypeStruct(s, kinds[n]) for n, s in arrays.items()},
            weights=known,
            mean=jax.ShapeDtypeStruct((dim,), np.float64),
        )
        at = tuple(jax.ShapeDtypeStruct(s, np.float64) for s in ((classes, dim), (classes,)))
        C = jax.ShapeDtypeStruct((), np.float64)
        kind = "sigmoid" if several else "softmax"
        used = newton._evaluate.lower(data, at, C, kind).compile().memory_analysis()
    points = 4 * 4 * rows * classes  # that are kept beside the new one
    held = used.argument_size_in_bytes + used.temp_size_in_bytes + used.output_size_in_bytes
    sizes = {"rows": rows, "dim": dim, "classes": classes}
    told = logreg.device_bytes_of_fit(**sizes, devices=1, several=several)
    assert held + points <= told < 1.5 * (held + points)
    assert logreg.device_bytes_of_fit(**sizes, devices=4, several=several) < 0.4 * told


def test_protocols_that_do_not_fit_are_refused():
    train = draw()
    with pytest.raises(ValueError, match="'top5' is unknown; use one of top1, mean_per_class, mAP"):
        evaluate(train, train, 5, metric="top5")
    with pytest.raises(ValueError, match=r"'mAP' does not fit labels of shape \(200,\)"):
        evaluate(train, train, 5, metric="mAP")
    with pytest.raises(ValueError, match="9 training rows leave none"):
        evaluate((train[0][:9], train[1][:9]), train, 5)
