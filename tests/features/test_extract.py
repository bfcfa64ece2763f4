"""`extract`: equal to the model run on one picture, whatever the batch, the devices, the policy."""

import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import dinov2_jax
from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.crops import center_crop
from dinov2_jax.data.decode import decode
from dinov2_jax.data.photometric import normalize
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.features.extract import as_source, extract
from tests.features.tiny import PATCH, PREPROCESSING, backbone, write_pictures, write_weights

KINDS = ("cls", "registers", "mean_patch", "patches")
ATOL = 1e-5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("extract") / "pictures", 21, broken=(4, 13))


@pytest.fixture(scope="module")
def tiny():
    return backbone()


def alone(tiny, image, layer=2, norm=True):
    """All tokens [N, D] of one picture, straight from the model."""

    @jax.jit
    def blocks(image):
        normed = normalize(image[None], PREPROCESSING.mean, PREPROCESSING.std)
        return tiny.model.apply({"params": tiny.params}, normed, intermediate=(0, 1, 2))["blocks"]

    return np.asarray(blocks(jnp.asarray(image))[layer][norm][0])


def decoded(pictures, row):
    source = open_source("folder", str(pictures))
    return decode(source[row])


def test_public_name():
    assert dinov2_jax.extract is extract


def test_every_kind_equals_the_model_on_one_picture(tiny, pictures):
    found = extract(tiny, pictures, features=KINDS)
    assert set(found.arrays) == set(KINDS) and found.grid == (4, 4)
    assert found.names == sorted(found.names) and len(found.names) == 21
    assert set(found.unreadable) == {4, 13} and all(found.unreadable.values())
    for name in KINDS:
        assert np.isnan(found[name][[4, 13]]).all() and found[name].dtype == np.float32
        assert np.isfinite(np.delete(found[name], (4, 13), 0)).all()
    for row in (0, 7, 20):
        tokens = alone(tiny, center_crop(decoded(pictures, row), 20, 16))
        np.testing.assert_allclose(found["cls"][row], tokens[0], atol=ATOL)
        np.testing.assert_allclose(found["registers"][row], tokens[1:3], atol=ATOL)
        np.testing.assert_allclose(found["patches"][row], tokens[3:], atol=ATOL)
        np.testing.assert_allclose(found["mean_patch"][row], tokens[3:].mean(0), atol=ATOL)


@pytest.mark.parametrize(("policy", "size"), [("center_crop", (16,)), ("pad", (8,))])
def test_batch_size_devices_and_workers_change_nothing(tiny, pictures, policy, size):
    options = {"features": KINDS, "policy": policy, "size": size}
    reference = extract(tiny, pictures, batch_size=16, workers=2, **options)
    for changes in (
        {"batch_size": 1, "devices": jax.devices()[:1]},
        {"batch_size": 5, "devices": jax.devices()[:2]},
    ):
        again = extract(tiny, pictures, **options, **changes)
        for name, values in reference.arrays.items():
            np.testing.assert_allclose(again[name], values, atol=ATOL, err_msg=name)


@pytest.mark.parametrize("norm", [True, False])
def test_blocks_before_and_after_the_norm(tiny, norm):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    found = extract(
        tiny,
        [image],
        features=("cls", "patches"),
        layers=(0, -2),
        norm=norm,
        size=(16,),
        policy="pad",
    )
    assert set(found.arrays) == {
        *("cls_block_0", "cls_block_1", "patches_block_0", "patches_block_1", "mask"),
    }
    for layer in (0, 1):
        tokens = alone(tiny, image, layer, norm)
        np.testing.assert_allclose(found[f"cls_block_{layer}"][0], tokens[0], atol=ATOL)
        np.testing.assert_allclose(found[f"patches_block_{layer}"][0], tokens[3:], atol=ATOL)
    assert found["mask"].all()


def test_pad_gives_what_the_picture_alone_gives(tiny):
    image = np.random.default_rng(1).integers(0, 256, (9, 24, 3), dtype=np.uint8)
    found = extract(tiny, [image], features=KINDS, policy="pad", size=(24,))
    assert found.grid == (6, 6) and found["patches"].shape == (1, 36, 24)
    padded = np.empty((12, 24, 3), np.uint8)
    padded[:] = [round(255 * value) for value in PREPROCESSING.mean]
    padded[:9] = image
    tokens = alone(tiny, padded)
    mask = found["mask"][0].reshape(6, 6)
    assert mask[:3].all() and not mask[3:].any()
    np.testing.assert_allclose(found["patches"][0][found["mask"][0]], tokens[3:], atol=ATOL)
    assert np.isnan(found["patches"][0][~found["mask"][0]]).all()
    np.testing.assert_allclose(found["mean_patch"][0], tokens[3:].mean(0), atol=ATOL)


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        ((8, 12), (30, 30), (8, 12)),
        ((), (30, 31), (16, 16)),
        ((8,), (20, 30), (8, 12)),
        ((8,), (30, 20), (12, 8)),
        ((8,), (20, 90), (8, 16)),  # no longer than 2:1
    ],
)
def test_resize(tiny, size, shape, expected):
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = extract(tiny, [image], features=("patches",), policy="resize", size=size)
    cut = image[:, 25:65] if shape == (20, 90) else image
    resized = Image.fromarray(cut).resize(expected[::-1], Image.Resampling.BICUBIC)
    mask = found.arrays.get("mask", np.ones((1, found["patches"].shape[1]), bool))[0]
    want = np.zeros(found.grid, bool)
    want[: expected[0] // PATCH, : expected[1] // PATCH] = True
    np.testing.assert_array_equal(mask.reshape(found.grid), want)
    tokens = alone(tiny, np.asarray(resized))
    np.testing.assert_allclose(found["patches"][0][mask], tokens[3:], atol=ATOL)


def test_bfloat16_is_close_and_another(tiny, pictures):
    exact = extract(tiny, pictures)["cls"]
    rough = extract(tiny, pictures, dtype=jnp.bfloat16)["cls"]
    difference = np.nanmax(np.abs(exact - rough))
    assert 1e-4 < difference < 0.2 and rough.dtype == np.float32


def test_what_pictures_may_be(pictures, tmp_path):
    files = sorted(pictures.iterdir())
    (tmp_path / "list.txt").write_text("\n".join(map(str, files)))
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for file in files:
            archive.add(file, file.name)
    folder = open_source("folder", str(pictures))
    for given in (str(pictures), pictures, files, tmp_path / "list.txt", folder):
        source = as_source(given)
        assert len(source) == 21 and source[5] == files[5].read_bytes()
    assert as_source(tmp_path / "all.tar")[5] == files[5].read_bytes()
    assert as_source(files[1])[0] == files[1].read_bytes()


def test_arrays_and_paths_that_lead_nowhere(tiny, pictures, tmp_path):
    files = sorted(pictures.iterdir())
    images = [decode(file.read_bytes()) for file in files[:2]]
    by_path = extract(tiny, [*files[:2], tmp_path / "nowhere.png"])
    np.testing.assert_allclose(extract(tiny, images)["cls"], by_path["cls"][:2], atol=ATOL)
    assert list(by_path.unreadable) == [2] and "No such file" in by_path.unreadable[2]


def test_weights_by_path(tiny, tmp_path):
    path = write_weights(tmp_path / "bundle")
    image = np.zeros((16, 16, 3), np.uint8)
    np.testing.assert_array_equal(extract(path, [image])["cls"], extract(tiny, [image])["cls"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ("cls", "patch")}, "did you mean 'patches'"),
        ({"features": ()}, "of cls, registers"),
        ({"layers": (3,)}, "depth 3; valid: 0 to 2"),
        ({"layers": ()}, "valid: 0 to 2"),
        ({"policy": "crop"}, "did you mean 'center_crop'"),
        ({"size": (18,)}, r"nearest valid: size=\(16,\)"),
        ({"size": (16, 16)}, "takes one side"),
        ({"policy": "resize", "size": (16, 2)}, r"nearest valid: size=\(16, 4\)"),
    ],
)
def test_what_cannot_be_given_is_refused(tiny, changes, message):
    with pytest.raises(ConfigError, match=message):
        extract(tiny, [np.zeros((8, 8, 3), np.uint8)], **changes)


def test_registers_of_a_backbone_without_any():
    with pytest.raises(ConfigError, match="no register tokens"):
        extract(backbone(registers=0), [np.zeros((8, 8, 3), np.uint8)], features=("registers",))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "empty"),
        ([np.zeros((8, 8, 3))], r"float64 \[8, 8, 3\], but must be uint8"),
        (3, "type int"),
    ],
)
def test_pictures_that_are_none(tiny, pictures, message):
    with pytest.raises(SourceError, match=message):
        extract(tiny, pictures)
