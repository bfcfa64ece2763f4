"""The linear probe against SGD written by hand in numpy, one head at a time, and torch's."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from dinov2_jax.heads import probe as linear
from dinov2_jax.heads.grid import RATES, Grid, accuracies, best
from dinov2_jax.heads.linear import LinearHead, load_head
from dinov2_jax.heads.probe import ProbeSettings, epochs, initial_state, train_cached
from dinov2_jax.heads.probe_data import draw_examples
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.run import resume

DIM, ROWS = 6, 70
SETTINGS = ProbeSettings(batch_size=32, iterations=20, save_every=6, seed=3)


def make_columns(rows=ROWS, classes=5, seed=0, columns=5):
    """Overlapping classes, every one of them present; later columns tell more."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % classes)
    centres = np.random.default_rng(77).normal(size=(columns, classes, DIM))
    found = [
        (0.3 * (i + 1) * centres[i][labels] + rng.normal(size=(rows, DIM))).astype(np.float32)
        for i in range(columns)
    ]
    return found, labels


def inputs(columns, blocks, avgpool):
    """cls of the last `blocks` of four blocks, and the mean patch, which is the fifth column."""
    return np.concatenate(columns[4 - blocks : 4 + avgpool], axis=1).astype(np.float64)


def plain_sgd(x, labels, weight, rate, settings, batches):
    """One classifier, float64: cross-entropy, momentum, cosine. weight [d, K] -> weight, bias."""
    weight, bias = weight.astype(np.float64), np.zeros(weight.shape[1])
    v_weight, v_bias = np.zeros_like(weight), np.zeros_like(bias)
    for step, rows in enumerate(batches):
        logits = x[rows] @ weight + bias
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(rows)), labels[rows]] -= 1
        v_weight = 0.9 * v_weight + x[rows].T @ p / len(rows)
        v_bias = 0.9 * v_bias + p.mean(axis=0)
        lr = rate * settings.batch_size / 256 * (1 + np.cos(np.pi * step / settings.iterations)) / 2
        weight, bias = weight - lr * v_weight, bias - lr * v_bias
    return weight, bias


def first_batches(settings, rows=ROWS):
    order = epochs(rows, settings.batch_size, settings.seed)
    return list(itertools.islice(order, settings.iterations))


def all_heads(heads):
    """(weight [d, K], bias [K]) of every head, in the order of its names."""
    return [
        (np.asarray(weight)[:, i], np.asarray(bias)[i])
        for weight, bias in zip(heads.weights, heads.biases, strict=True)
        for i in range(weight.shape[1])
    ]


def assert_close(ours, theirs, tolerance=1e-5):
    for (weight, bias), (other, other_bias) in zip(all_heads(ours), theirs, strict=True):
        np.testing.assert_allclose(weight, other, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(bias, other_bias, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def trained():
    columns, labels = make_columns()
    return train_cached(columns, labels, 5, SETTINGS)


@pytest.fixture(scope="module")
def by_hand():
    columns, labels = make_columns()
    start = initial_state(SETTINGS, DIM, 5)["weights"]
    found = []
    kinds = [(1, False), (1, True), (4, False), (4, True)]
    for (blocks, avgpool), weights in zip(kinds, start, strict=True):
        x = inputs(columns, blocks, avgpool)
        for place, rate in enumerate(RATES["code"]):
            batches = first_batches(SETTINGS)
            found.append(plain_sgd(x, labels, weights[:, place], rate, SETTINGS, batches))
    return found


def test_the_grid_is_the_references():
    names = Grid().names(1024)
    assert len(names) == len(set(names)) == 52
    assert names[0] == "classifier_1_blocks_avgpool_False_lr_0_00004"
    assert names[-1] == "classifier_4_blocks_avgpool_True_lr_0_4"
    assert len(set(Grid().names(4))) == 52  # the reference's decimals would make one of several
    assert len(RATES["code"]) == len(RATES["paper"]) == 13
    assert RATES["code"][-1] == 0.1 and RATES["paper"][-1] == 0.5


def test_equals_sgd_by_hand(trained, by_hand):
    assert_close(trained, by_hand)
    moved = np.abs(by_hand[12][0] - initial_state(SETTINGS, DIM, 5)["weights"][0][:, 12]).max()
    assert moved > 0.05  # otherwise equality would say nothing


def test_52_together_equal_52_alone(trained):
    columns, labels = make_columns()
    alone = []
    for kind, rate in itertools.product(Grid().kinds, RATES["code"]):
        grid = Grid((rate,), (kind.blocks,), (kind.avgpool,))
        single = ProbeSettings(grid, batch_size=32, iterations=20, seed=3)
        heads = train_cached(columns[4 - kind.blocks :], labels, 5, single)
        alone += all_heads(heads)
    assert len(alone) == 52
    assert_close(trained, alone)


@pytest.mark.parity
def test_equals_torch():
    torch = pytest.importorskip("torch")
    columns, labels = make_columns()
    start = initial_state(SETTINGS, DIM, 5)["weights"]
    layers, groups = [], []
    for kind, weights in zip(Grid().kinds, start, strict=True):
        x = torch.tensor(inputs(columns, *kind), dtype=torch.float32)
        for place, rate in enumerate(RATES["code"]):
            layer = torch.nn.Linear(*weights[:, place].shape)
            layer.weight.data = torch.tensor(weights[:, place].T.copy())
            layer.bias.data.zero_()
            layers.append((x, layer))
            lr = rate * SETTINGS.batch_size / 256
            groups.append({"params": list(layer.parameters()), "lr": lr})
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SETTINGS.iterations, eta_min=0)
    target = torch.tensor(labels)
    for rows in first_batches(SETTINGS):
        rows = torch.tensor(rows)
        losses = [
            torch.nn.functional.cross_entropy(layer(x[rows]), target[rows]) for x, layer in layers
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        schedule.step()
    theirs = [(x.weight.detach().numpy().T, x.bias.detach().numpy()) for _, x in layers]
    assert_close(train_cached(columns, labels, 5, SETTINGS), theirs)


@pytest.mark.parametrize("classes", [8, 5])  # those split over the devices, and images instead
def test_device_count_does_not_matter(classes):
    columns, labels = make_columns(classes=classes)
    one = train_cached(
        columns, labels, classes, SETTINGS, mesh=make_mesh(devices=jax.devices()[:1])
    )
    for mesh in (make_mesh(), make_mesh(fsdp=4)):
        eight = train_cached(columns, labels, classes, SETTINGS, mesh=mesh)
        assert_close(eight, all_heads(one), 1e-6)
        spread = len({str(shard.index) for shard in eight.weights[0].addressable_shards})
        assert spread == (8 if classes == 8 else 1)


def test_features_on_the_host_give_the_same(trained, tmp_path):
    columns, labels = make_columns()
    mapped = []
    for i, column in enumerate(columns):
        np.save(tmp_path / f"{i}.npy", column)
        mapped.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    heads = train_cached(mapped, labels, 5, SETTINGS, device_bytes=0)
    assert_close(heads, all_heads(trained), 1e-6)


class Killed(Exception):
    pass


def kill_at(monkeypatch, iteration, seen):
    class Progress(resume.Progress):
        def update(self, step, **shown):
            seen.append(step)
            if iteration is not None and step >= iteration:
                raise Killed

    monkeypatch.setattr(resume, "Progress", Progress)


@pytest.mark.parametrize("device_bytes", [2**31, 0])
def test_a_killed_run_continues_bit_for_bit(monkeypatch, tmp_path, device_bytes):
    columns, labels = make_columns()
    options = {"folder": tmp_path, "device_bytes": device_bytes}
    straight = train_cached(columns, labels, 5, SETTINGS, device_bytes=device_bytes)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 12 if device_bytes else 14, [])
        train_cached(columns, labels, 5, SETTINGS, **options)
    seen = []
    kill_at(monkeypatch, None, seen)
    resumed = train_cached(columns, labels, 5, SETTINGS, **options)
    # From the state of iteration 12; what lies on the device goes on to the next state at once.
    assert seen == ([18, 20] if device_bytes else list(range(13, 21)))
    for (weight, bias), (other, other_bias) in zip(
        all_heads(straight), all_heads(resumed), strict=True
    ):
        np.testing.assert_array_equal(weight, other)
        np.testing.assert_array_equal(bias, other_bias)
    assert [path.name for path in tmp_path.iterdir()] == [linear.STATE_FILE]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 16}, "batch_size 32, but now it is 16"),
        ({"iterations": 30}, "iterations 20, but now it is 30"),
        ({"grid": Grid(RATES["paper"])}, "written with grid"),
        ({"seed": 4}, "seed 3, but now it is 4"),
    ],
)
def test_a_state_of_other_settings_is_refused(tmp_path, change, named):
    columns, labels = make_columns()
    train_cached(columns, labels, 5, SETTINGS, folder=tmp_path)
    with pytest.raises(ValueError, match=named):
        other = dataclasses.replace(SETTINGS, **change)
        train_cached(columns, labels, 5, other, folder=tmp_path)


def test_a_state_of_other_features_is_refused(tmp_path):
    columns, labels = make_columns()
    train_cached(columns, labels, 5, SETTINGS, folder=tmp_path)
    with pytest.raises(ValueError, match="was written with features"):
        train_cached(make_columns(seed=1)[0], labels, 5, SETTINGS, folder=tmp_path)
    with pytest.raises(ValueError, match="was written with labels"):
        train_cached(columns, np.roll(labels, 1), 5, SETTINGS, folder=tmp_path)


def test_wrong_inputs_are_one_sentence():
    columns, labels = make_columns()

    def refused(match, columns=columns, labels=labels, classes=5):
        with pytest.raises(ValueError, match=match):
            train_cached(columns, labels, classes, SETTINGS)

    refused("shape \\(70, 6\\), but there are 69 labels", labels=labels[:-1])
    refused(
        "column 2 of the features has shape \\(69, 6\\)",
        [*columns[:2], columns[2][1:], *columns[3:]],
    )
    refused("4 columns of features, but the classifiers read 5", columns[:4])
    refused("class 5 has no picture in the training set \\(2 of 7", classes=7)
    refused("label 4 is not one of 4 classes", classes=4)
    refused("label -1 is not one of 5 classes", labels=np.where(np.arange(70) == 3, -1, labels))
    broken = [column.copy() for column in columns]
    broken[3][41, 2] = np.nan
    refused("row 41 in column 3 of the features is not finite", broken)


def test_epochs_are_permutations_and_start_anywhere():
    rows = np.concatenate(list(itertools.islice(epochs(10, 4, 7), 10)))
    for epoch in range(4):
        np.testing.assert_array_equal(np.sort(rows[10 * epoch : 10 * epoch + 10]), np.arange(10))
    assert not np.array_equal(rows[:10], rows[10:20])
    assert not np.array_equal(rows[:10], next(epochs(10, 10, 8)))
    for start in range(10):
        later = np.concatenate(list(itertools.islice(epochs(10, 4, 7, start), 10 - start)))
        np.testing.assert_array_equal(later, rows[4 * start :])
    few = next(epochs(3, 8, 0))  # a batch of more than there is
    assert np.bincount(few[:6]).tolist() == [2, 2, 2]


def plain_logits(heads, columns):
    kinds = itertools.product(Grid().kinds, range(13))
    return np.stack(
        [
            inputs(columns, *kind) @ weight.astype(np.float64) + bias
            for (kind, _), (weight, bias) in zip(kinds, all_heads(heads), strict=True)
        ],
        axis=1,
    )


def test_scores_and_accuracies_of_every_head(trained):
    columns, labels = make_columns(53, seed=5)
    expected = plain_logits(trained, columns)
    kinds = itertools.product(Grid().kinds, range(13))
    for place, ((kind, _), (weight, bias)) in enumerate(
        zip(kinds, all_heads(trained), strict=True)
    ):
        logits = LinearHead(weight.T, bias, *kind).logits(columns, rows=20)
        np.testing.assert_allclose(logits, expected[:, place], rtol=1e-5, atol=1e-5)
    right = 100 * np.mean(expected.argmax(axis=2) == labels[:, None], axis=0)
    for rows in (1024, 20):
        found = accuracies(trained, columns, labels, rows=rows)
        assert list(found) == Grid().names(32)
        np.testing.assert_allclose(list(found.values()), right, atol=1e-9)
    assert right.max() - right.min() > 10


def test_best_is_the_first_of_the_highest(trained, tmp_path):
    columns, labels = make_columns(53, seed=5)
    expected = plain_logits(trained, columns)
    right = (expected.argmax(axis=2) == labels[:, None]).mean(axis=0)
    chosen = best(trained, columns, labels, "vwxyz", "of these")
    place = int(np.argmax(right))
    assert chosen.name == Grid().names(32)[place]
    assert (chosen.blocks, chosen.avgpool) == Grid().kinds[place // 13]
    assert chosen.metadata["rate"] == RATES["code"][place % 13]
    assert list(chosen.metadata["accuracy"]) == Grid().names(32)
    test, _ = make_columns(31, seed=6)
    logits = plain_logits(trained, test)[:, place]
    np.testing.assert_allclose(chosen.logits(test), logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(chosen.logits(test, rows=7), logits, rtol=1e-5, atol=1e-5)
    subset = chosen.logits(test, classes=[4, 1])
    np.testing.assert_allclose(subset, logits[:, [4, 1]], rtol=1e-5, atol=1e-5)
    chosen.save(tmp_path / "new" / "head.safetensors")
    again = load_head(tmp_path / "new" / "head.safetensors")
    np.testing.assert_array_equal(again.logits(test), chosen.logits(test))
    assert again.metadata == chosen.metadata and again.name == chosen.name
    assert (again.class_names, again.identity) == (tuple("vwxyz"), "of these")
    resume.StateFile(tmp_path / "state.safetensors", {}).save({"x": np.zeros(2)}, 1)
    with pytest.raises(ValueError, match="is no linear head: it holds x"):
        load_head(tmp_path / "state.safetensors")


def test_ties_go_to_the_first_and_diverged_heads_never_win(trained):
    columns, labels = make_columns(40, seed=8)
    twins = [
        weight.at[:].set(trained.weights[i][:, 9:10]) for i, weight in enumerate(trained.weights)
    ]
    twins = [twins[0], *(0 * w for w in twins[1:])]
    biases = [bias.at[:].set(bias[9]) for bias in trained.biases]
    heads = type(trained)(Grid(), 32, twins, biases)
    assert best(heads, columns, labels).name == Grid().names(32)[0]
    heads.weights[0] = twins[0].at[0, :4].set(np.nan)
    zeros = np.zeros(40, np.int64)  # argmax of NaN is class 0, too
    found = accuracies(heads, columns, zeros)
    assert list(found.values())[:4] == [0, 0, 0, 0]
    assert best(heads, columns, labels).name == Grid().names(32)[4]
    chosen = best(heads, columns, labels)
    assert (chosen.blocks, chosen.avgpool) == (1, False)


def test_examples_of_a_try_are_drawn_from_its_number():
    _, labels = make_columns(200)
    drawn = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        rows = [rng.permutation(np.flatnonzero(labels == c))[:3] for c in range(5)]
        drawn.append(draw_examples(labels, 3, seed))
        np.testing.assert_array_equal(drawn[-1], np.concatenate(rows))
    assert not np.array_equal(*drawn)
