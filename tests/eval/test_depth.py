"""The protocols depth and depth_dpt, whole: miniature sets to figures."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from configs.eval import default as eval_config
from dinov2_jax.data.decode import WHOLE_RGB
from dinov2_jax.data.sources.given import Arrays
from dinov2_jax.datasets.dense import DenseSplit
from dinov2_jax.datasets.depth import open_depth
from dinov2_jax.errors import EvaluationError, UserError
from dinov2_jax.eval.published import dense_value
from dinov2_jax.eval.runner import evaluate
from dinov2_jax.eval.task import Context
from dinov2_jax.heads.dense_forward import Form, Trained
from dinov2_jax.heads.dense_head import DenseHead, load_dense
from dinov2_jax.heads.depth_judge import DepthReader, judge, judged_pair
from dinov2_jax.heads.depth_recipes import RECIPES, first_params
from dinov2_jax.metrics.depth import NAMES, depth_metrics, mean_metrics
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.weights.load import load
from tests.eval.found import entry, values
from tests.features.tiny import backbone, write_weights

RNG = np.random.default_rng(0)
SIZE = 32, 40


def pair(folder, name, size=SIZE, near=1000):
    """Colour tells depth: red is near and blue is far."""
    rows = np.linspace(0, 1, size[0])[:, None] + RNG.uniform(0, 0.2, size)
    depth = (near + 2000 * rows).astype(np.uint16)
    depth[:2] = 0
    colours = np.stack([220 - 180 * rows, np.full(size, 90), 40 + 180 * rows], axis=-1)
    colours += RNG.uniform(-5, 5, colours.shape)
    for part in ("", "_depth"):
        folder.with_name(folder.name + part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(depth).save(folder.with_name(f"{folder.name}_depth") / f"{name}.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "bundle")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "rooms"
    for split, count in (("train", 6), ("test", 4)):
        for i in range(count):
            pair(root / split, f"{i}", near=1000 + 100 * i)
    return root


def ask(weights, path, protocols="depth", **changes):
    config = eval_config.get_config()
    config.update_from_flattened_dict(
        {
            "checkpoint": str(weights),
            "protocols": (protocols,),
            "data.set": "folder",
            "data.path": str(path),
            "depth.iterations": 200,
            "depth.batch_size": 4,
            "depth.train_px": (24, 32),
            "depth.lr": 1e-2,
            "depth.pictures": 2,
        }
        | changes
    )
    return config


def test_a_head_is_trained_judged_and_judged_again(weights, rooms, tmp_path, one_device):
    found = evaluate(ask(weights, rooms), str(tmp_path / "a"))
    result, metrics = entry(found, "depth"), values(found, "depth")
    assert tuple(metrics) == (
        "rmse",
        "abs_rel",
        *(n for n in NAMES if n not in ("rmse", "abs_rel")),
    )
    # The best constant, judged likewise, is what a head must beat.
    trues = [load_depth(rooms, i) for i in range(4)]
    middle = float(np.median(np.concatenate([t[t > 0] for t in trues])))
    constant = mean_metrics([depth_metrics(np.full(SIZE, middle), t, t > 0) for t in trues])
    assert metrics["abs_rel"] < 0.5 * constant["abs_rel"]
    assert result["metrics"]["rmse"]["unit"] == "m" and result["metrics"]["a1"]["higher_is_better"]
    assert not result["metrics"]["rmse"]["higher_is_better"]
    assert result["metrics"]["rmse"]["n"] == 4 and result["metrics"]["rmse"]["published"] is None
    assert len(result["curves"]) == 1 and len(result["pictures"]) == 2
    assert all((tmp_path / "a" / picture["file"]).is_file() for picture in result["pictures"])
    folder = tmp_path / "a/depth/rooms"
    assert not (folder / "depth_state.safetensors").exists()

    head = load_dense(folder / "head.safetensors")
    assert (head.kind, head.blocks, head.low, head.high) == ("depth_linear", (2,), 0.001, 10)
    given = ask(weights, rooms, head=str(folder / "head.safetensors"))
    again = values(evaluate(given, str(tmp_path / "b")), "depth")
    assert again == pytest.approx(metrics, rel=1e-6)
    with pytest.raises(EvaluationError, match=r"evaluate it with --config\.protocols=depth$"):
        evaluate(ask(weights, rooms, "depth_dpt", head=given.head), str(tmp_path / "c"))
    other = write_weights(tmp_path / "other", seed=1)
    with pytest.raises(EvaluationError, match="trained on features of other weights"):
        evaluate(ask(other, rooms, head=given.head), str(tmp_path / "d"))


def load_depth(root, i, split="test"):
    values = np.asarray(Image.open(root / f"{split}_depth" / f"{i}.png"))
    return values.astype(np.float32) / 1000


def test_metrics_are_those_of_single_predictions(weights, tmp_path, one_device):
    """`DenseHead.predict` and `depth_metrics` judge the same, whatever sizes and batches."""
    root = tmp_path / "rooms"
    for split in ("train", "test"):
        for i, size in enumerate([SIZE, (28, 44), SIZE]):
            pair(root / split, f"{i}", size)
    (root / "test" / "3.png").write_bytes(b"no picture")
    Image.fromarray(np.full(SIZE, 1500, np.uint16)).save(root / "test_depth" / "3.png")
    params = first_params(Form("depth_linear", 0.001, 10), 24, 1, seed=0)
    head = DenseHead("depth_linear", params, blocks=(2,), low=0.001, high=10.0)
    head.save(tmp_path / "head.safetensors")
    asked = {"head": str(tmp_path / "head.safetensors"), "data.max_bad": 1}
    found = evaluate(ask(weights, root, **asked), str(tmp_path / "a"))
    rows = []
    for i in range(3):
        true = load_depth(root, i)
        depth = head.predict(load(str(weights)), str(root / "test" / f"{i}.png"), flip=True)
        rows.append(depth_metrics(depth, true, true > 0.001))
    assert values(found, "depth") == pytest.approx(mean_metrics(rows), rel=1e-5)
    notes = entry(found, "depth")["notes"]
    assert notes["unreadable"] == 1 and not notes["trained_here"]


def test_sizes_and_frames_of_test_pictures():
    """KITTI keeps 352 x 1216 px of picture and truth; SUN RGB-D resizes the picture alone."""
    true = np.arange(375 * 1242, dtype=np.float32).reshape(375, 1242)
    image = np.zeros((375, 1242, 3), np.uint8)
    split = DenseSplit(Arrays([image]), ("x",), lambda _: true)
    _, picture, depth = judged_pair(split, 0, RECIPES["kitti"], WHOLE_RGB)
    assert picture.shape == (352, 1216, 3)
    np.testing.assert_array_equal(depth, true[23:375, 13:1229])
    _, picture, depth = judged_pair(split, 0, RECIPES["sunrgbd"], WHOLE_RGB)
    assert picture.shape == (480, 640, 3) and depth.shape == true.shape
    assert judged_pair(split, 0, RECIPES["nyu"], WHOLE_RGB)[1].shape == image.shape


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data.set": ""}, "depth needs --config.data.set="),
        ({"data.set": "cifar10"}, "depth needs --config.data.set="),
        ({"data.set": "sunrgbd"}, "SUN RGB-D has no pictures to train on"),
        ({"depth.blocks": 2}, "reads 1 or 4 blocks"),
        ({"depth.blocks": 4}, "reads 4 blocks, but the backbone has 3"),
        ({"depth.low": 11.0}, "is not below"),
        ({"depth.train_px": (8,)}, "is not a height and a width"),
        ({"depth.warmup_iterations": 201}, "more than the 200"),
        ({"depth.crop": "nyu_eigen"}, "add --config.depth.crop=none"),
        ({"depth.units_per_metre": 1.0}, "set --config.depth.units_per_metre"),
    ],
)
def test_what_does_not_fit_is_said_at_once(weights, rooms, tmp_path, changes, text):
    with pytest.raises(UserError, match=text):
        evaluate(ask(weights, rooms, **changes), str(tmp_path))


def test_other_units_are_a_warning_in_the_result(weights, rooms, tmp_path, capsys, one_device):
    asked = {"depth.units_per_metre": 20_000.0, "depth.iterations": 1}
    found = evaluate(ask(weights, rooms, **asked), str(tmp_path))
    warning = entry(found, "depth")["notes"]["warning"]
    assert "which is unlikely" in warning and "units_per_metre" in warning
    assert "which is unlikely" in capsys.readouterr().out


def test_device_counts_judge_alike(rooms):
    found, recipe = backbone(), dataclasses.replace(RECIPES["folder"], batch_size=8)
    form = Form("depth_linear", 0.001, 10)
    params = first_params(form, 24, 1, seed=0)
    split = open_depth("folder", str(rooms)).splits["test"]
    tables = []
    for count in (1, 2, 8):
        mesh = make_mesh(devices=jax.devices()[:count])
        how = form, Trained(params), (2,)
        reader = DepthReader(
            found.model, found.params, found.preprocessing, *how, flip=True, mesh=mesh
        )
        tables.append(judge(reader, split, recipe, batch_size=8, decoding=WHOLE_RGB).metrics)
    for other in tables[1:]:
        np.testing.assert_allclose(other, tables[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "counts", "value"),
    [
        ({}, {"train": 24231, "test": 654}, 0.317),
        ({}, {"train": 24230, "test": 654}, None),
        ({}, {"train": 24231, "test": 653}, None),
        ({}, {"train": None, "test": 654}, 0.317),
        ({"depth.flip": False}, {"train": 24231, "test": 654}, None),
        ({"depth.channels": 64}, {"train": 24231, "test": 654}, None),
        ({"data.max_bad": 1}, {"train": 24231, "test": 654}, None),
    ],
)
def test_the_papers_value_belongs_to_its_settings(changes, counts, value):
    config = eval_config.get_config()
    config.update_from_flattened_dict(changes)
    model = VisionTransformer(dim=768, depth=12, heads=12, patch_size=14, image_size=518)
    for registers, expected in ((0, value), (4, None)):
        loaded = dataclasses.replace(backbone(), model=model.clone(registers=registers))
        context = Context(loaded, config, None)
        assert dense_value(context, "depth_dpt", "nyu", "rmse", **counts) == expected
        assert dense_value(context, "depth_dpt", "nyu", "a1", **counts) is None
