"""Released head files through `load_dense` and the path of `predict`, against the vectors."""

import re

import jax
import numpy as np
import pytest

from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.heads.dense_forward import of_images
from dinov2_jax.heads.dense_head import load_dense
from dinov2_jax.weights.load import Backbone
from tests.models import dense_vectors
from tests.models.dense_vectors import channels_last, close, read, sizes, under

torch = pytest.importorskip("torch")
# Name of the head in the vectors -> name of the file, which tells the range of depth.
FILES = {
    "seg_linear": "dinov2_vits14_ade20k_linear_head.pth",
    "seg_ms": "dinov2_vits14_voc2012_ms_head.pth",
    "depth_linear1": "dinov2_vits14_{}_linear_head.pth",
    "depth_linear4": "dinov2_vits14_{}_linear4_head.pth",
    "depth_dpt": "dinov2_vits14_{}_dpt_head.pth",
}


@pytest.fixture(scope="module")
def vectors(golden):
    return read(golden)


@pytest.fixture(scope="module")
def backbone(vectors):
    model, params = dense_vectors.backbone(vectors)
    given = Preprocessing(resize_px=56, image_px=56)
    return Backbone(model, params, given, {}, "vectors", "reference", ())


def write(vectors, name, path):
    """A file as mmcv's runner leaves it."""
    state = {k: torch.from_numpy(v) for k, v in under(vectors, f"{name}/params/").items()}
    steps = {i: {"step": 1, "exp_avg": x.float() * 0} for i, x in enumerate(state.values())}
    meta = {"iter": 40000, "hook_msgs": {"best_score": np.float64(0.5)}}
    torch.save(
        {"meta": meta, "state_dict": state, "optimizer": {"state": steps, "param_groups": []}}, path
    )
    return path


@pytest.mark.parametrize("name", ["seg_linear", "seg_ms"])
def test_segmentation_at_the_pictures_size(vectors, backbone, name, tmp_path):
    head = load_dense(write(vectors, name, tmp_path / FILES[name]), "segmentation")
    given = backbone.model, backbone.params, head.form, head.blocks_of(backbone.model), head.trained
    for size in sizes(vectors):
        image = channels_last(vectors[f"{size}/image"])
        expected = channels_last(vectors[f"{name}/{size}/logits"])
        close(of_images(*given, image), expected, 3e-6)


@pytest.mark.parametrize("name", ["depth_linear1", "depth_linear4", "depth_dpt"])
def test_depth_at_the_pictures_size(vectors, backbone, name, tmp_path):
    bound = 2e-5 if name == "depth_dpt" else 3e-6
    for data, high in (("nyu", 10), ("kitti", 80)):
        head = load_dense(write(vectors, name, tmp_path / FILES[name].format(data)), "depth")
        assert (head.low, head.high) == (0.001, high)
        blocks = head.blocks_of(backbone.model)
        given = backbone.model, backbone.params, head.form, blocks, head.trained
        for size in sizes(vectors):
            image = channels_last(vectors[f"{size}/image"])
            at = f"{name}/{size}/" + ("" if name == "depth_dpt" else f"max{high}/")
            expected = vectors[f"{at}depth"][:, 0]
            if name == "depth_dpt" and high == 80:  # the vectors are clamped at 10 m
                assert expected.max() < 10
            close(of_images(*given, image), expected, bound)


def test_pictures_give_what_normalised_images_give(vectors, backbone, tmp_path):
    """`predict` on uint8 pictures: the same numbers, argmax, and mirrored means."""
    rng = np.random.default_rng(0)
    shapes = [tuple(map(int, re.findall(r"\d+", size))) for size in sizes(vectors)[:2]]
    pictures = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    mean, std = map(np.float32, (backbone.preprocessing.mean, backbone.preprocessing.std))
    for name in ("seg_linear", "depth_linear4"):
        head = load_dense(write(vectors, name, tmp_path / FILES[name].format("nyu")))
        blocks = head.blocks_of(backbone.model)
        given = backbone.model, backbone.params, head.form, blocks, head.trained
        for flip in (False, True):
            found = head.predict(backbone, pictures, flip=flip)
            for picture, one in zip(pictures, found, strict=True):
                image = ((picture / np.float32(255) - mean) / std)[None]
                wanted = of_images(*given, image)
                mirrored = of_images(*given, image[:, :, ::-1])[:, :, ::-1]
                if head.is_depth:
                    wanted = (wanted + mirrored) / 2 if flip else wanted
                    assert one.dtype == np.float32
                    close(one, wanted[0], 3e-6)
                else:
                    both = jax.nn.softmax(wanted) + jax.nn.softmax(mirrored)
                    wanted = both if flip else wanted
                    assert one.dtype == np.uint8 and one.shape == picture.shape[:2]
                    assert (one == np.asarray(wanted).argmax(-1)[0]).mean() > 0.999
