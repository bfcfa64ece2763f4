"""What a dense head refuses, which blocks it reads, and what `predict` takes."""

import jax
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads import dense_predict
from dinov2_jax.heads.dense_forward import classes_at, module_of, read_blocks
from dinov2_jax.heads.dense_head import DenseHead
from dinov2_jax.models.depth import DPT, LinearDepth
from dinov2_jax.models.maps import Level, resize
from dinov2_jax.models.segmentation import initial_statistics
from tests.features import tiny

WIDTH, CLASSES = 24, 4


def segmentation(width=WIDTH, classes=CLASSES, **more):
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.standard_normal((width, classes)).astype(np.float32),
        "bias": np.zeros(classes, np.float32),
        "bn": {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)},
    }
    return DenseHead("segmentation", params, initial_statistics(width), **more)


def linear_depth(width=2 * WIDTH, **more):
    rng = np.random.default_rng(1)
    params = {
        "kernel": rng.standard_normal((width, 16)).astype(np.float32),
        "bias": rng.standard_normal(16).astype(np.float32),
    }
    return DenseHead("depth_linear", params, low=0.1, high=9.0, **more)


def dpt(dim=WIDTH):
    level = Level(np.zeros((1, 2, 2, dim), np.float32), np.zeros((1, dim), np.float32))
    shapes = jax.eval_shape(DPT(0.1, channels=8).init, jax.random.key(0), [level] * 4)["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    return DenseHead("depth_dpt", params, low=0.1, high=9.0)


@pytest.fixture(scope="module")
def backbone():
    return tiny.backbone()


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(3)
    return np.asarray(Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).resize((30, 21)))


def test_blocks_are_those_of_the_reference():
    depths = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39), 4: (0, 1, 2, 3)}
    for depth, blocks in depths.items():
        assert read_blocks("depth_dpt", 4, depth) == read_blocks("depth_linear", 4, depth) == blocks
        assert read_blocks("depth_linear", 1, depth) == (depth - 1,)
        assert read_blocks("segmentation", 4, depth) == tuple(range(depth - 4, depth))
        assert read_blocks("segmentation", 1, depth) == (depth - 1,)


def test_a_backbone_of_another_size_is_refused(backbone):
    model = backbone.model  # depth 3
    assert segmentation().blocks_of(model) == (2,)
    assert segmentation(48, blocks=(0, 2)).blocks_of(model) == (0, 2)
    assert linear_depth().blocks_of(model) == (2,)
    deep = model.clone(depth=12)
    assert dpt().blocks_of(deep) == (2, 5, 8, 11) and segmentation(96).blocks_of(deep)[0] == 8
    for head in (
        segmentation(25), segmentation(48), segmentation(96), segmentation(blocks=(3,)),
        segmentation(48, blocks=(1, 1)), linear_depth(24), linear_depth(192), dpt(), dpt(16),
    ):  # fmt: skip
        with pytest.raises(EvaluationError, match="a backbone of width 24 and depth 3 does not"):
            head.blocks_of(model)


def test_what_is_no_head_is_refused():
    with pytest.raises(EvaluationError, match="3 class names for 4 classes"):
        segmentation(class_names=tuple("abc"))
    with pytest.raises(EvaluationError, match="kind 'depth' is not one of"):
        DenseHead("depth", {})
    with pytest.raises(EvaluationError, match=r"from 0\.0 to 0\.0 m"):
        DenseHead("depth_linear", linear_depth().params)
    assert "4 classes, reads 24 values" in repr(segmentation())
    assert "0.1 to 9 m, reads 192 values" in repr(dpt())


def test_module_follows_from_the_shapes():
    head = dpt()
    module = module_of(head.form, head.params)
    assert (module.channels, module.widths, module.low) == (8, (3, 6, 12, 24), 0.1)
    assert module_of(linear_depth().form, linear_depth().params).bins == 16


# Parameters of the released heads for S, B, L and g.
COUNTS = {
    384: (196_864, 786_688, 13_961_377),
    768: (393_472, 1_573_120, 24_193_921),
    1024: (524_544, 2_097_408, 34_190_017),
    1536: (786_688, 3_145_984, 61_800_769),
}


@pytest.mark.parametrize("dim", list(COUNTS))
def test_heads_of_released_widths_have_the_released_parameters(dim):
    level = Level(np.zeros((1, 1, 1, dim), np.float32), np.zeros((1, dim), np.float32))
    modules = (LinearDepth(0.001, 10), [level]), (LinearDepth(0.001, 10), [level] * 4)
    for (module, levels), count in zip(
        (*modules, (DPT(0.001), [level] * 4)), COUNTS[dim], strict=True
    ):
        shapes = jax.eval_shape(module.init, jax.random.key(0), levels)
        assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_all_kinds_of_pictures_give_the_same(backbone, picture, tmp_path):
    head = segmentation()
    expected = head.predict(backbone, picture)
    assert expected.shape == (21, 30) and expected.dtype == np.uint8
    assert len(np.unique(expected)) > 1
    Image.fromarray(picture).save(tmp_path / "one.png")
    for one in (tmp_path / "one.png", str(tmp_path / "one.png"), Image.fromarray(picture)):
        np.testing.assert_array_equal(head.predict(backbone, one), expected)
    for several in ([picture, picture], np.stack([picture] * 2), [tmp_path / "one.png"] * 2):
        found = head.predict(backbone, several)
        assert isinstance(found, list) and len(found) == 2
        np.testing.assert_array_equal(found[1], expected)
    for listed in ([picture], picture[None], tmp_path):
        assert [x.shape for x in head.predict(backbone, listed)] == [(21, 30)]
    gray = head.predict(backbone, picture[:, :, 0])
    assert gray.shape == (21, 30)


def test_depth_is_in_metres_at_the_pictures_size(backbone, picture):
    for head in (linear_depth(), linear_depth(blocks=(1,))):
        found = head.predict(backbone, picture)
        assert found.shape == (21, 30) and found.dtype == np.float32
        assert 0.1 <= found.min() < found.max() <= 9
    mirrored = head.predict(backbone, picture[:, ::-1].copy())[:, ::-1]
    both = head.predict(backbone, picture, flip=True)
    np.testing.assert_allclose(both, (found + mirrored) / 2, atol=1e-5)


def test_short_side_resizes_before_and_gives_the_pictures_size(backbone, picture):
    head = linear_depth()
    larger = head.predict(backbone, picture, short_side=42)
    assert larger.shape == (21, 30)
    assert np.abs(larger - head.predict(backbone, picture)).max() > 1e-3
    np.testing.assert_array_equal(
        head.predict(backbone, picture, short_side=21), head.predict(backbone, picture)
    )


def test_windows_cover_the_picture(backbone, picture):
    head = segmentation()
    whole = head.predict(backbone, picture)
    np.testing.assert_array_equal(head.predict(backbone, picture, window=30), whole)
    found = head.predict(backbone, picture, window=12)
    assert found.shape == whole.shape and found.dtype == np.uint8
    assert 0.3 < (found == whole).mean() < 1
    mirrored = head.predict(backbone, picture[:, ::-1].copy(), window=12, flip=True)[:, ::-1]
    assert (mirrored == head.predict(backbone, picture, window=12, flip=True)).mean() > 0.99


def test_pictures_that_cannot_be_used_are_one_sentence(backbone, picture, tmp_path, monkeypatch):
    head = segmentation()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\0 no picture")
    with pytest.raises(SourceError, match=r"broken.png cannot be read"):
        head.predict(backbone, tmp_path / "broken.png")
    with pytest.raises(SourceError, match="must be uint8"):
        head.predict(backbone, picture.astype(np.float32))
    with pytest.raises(SourceError, match="pictures of type int are not known"):
        head.predict(backbone, 5)
    with pytest.raises(SourceError, match="list of pictures is empty"):
        head.predict(backbone, [])
    with pytest.raises(FileNotFoundError, match="nothing"):
        head.predict(backbone, tmp_path / "nothing.png")
    monkeypatch.setattr(dense_predict, "MAX_PATCHES", 40)
    with pytest.raises(EvaluationError, match=r"has 30 x 21 px at once, that is 48 patches"):
        head.predict(backbone, picture)
    assert head.predict(backbone, picture, window=12).shape == (21, 30)
    with pytest.raises(EvaluationError, match="predicted for a picture as a whole"):
        linear_depth().predict(backbone, picture, window=8)
    with pytest.raises(EvaluationError, match="short_side is -1 px"):
        head.predict(backbone, picture, short_side=-1)


def test_strips_join_to_the_whole_picture():
    logits = jax.random.normal(jax.random.key(0), (1, 5, 7, 300))
    found = np.asarray(classes_at([logits], (290, 11)))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, resize(logits, (290, 11)).argmax(-1)[0])
    other = jax.random.normal(jax.random.key(1), (1, 5, 7, 300))
    both = sum(jax.nn.softmax(resize(x, (290, 11))) for x in (logits, other))
    np.testing.assert_array_equal(classes_at([logits, other], (290, 11)), both.argmax(-1)[0])
