"""`extract`: equal to the model run on one picture, whatever the batch, the devices, the policy."""

import operator
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
from dinov2_jax.features.forward import forward, place_weights, shorten
from dinov2_jax.features.request import make_request
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
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


def test_public_name(tiny, pictures):
    paths = [str(path) for path in sorted(pictures.iterdir())[:2]]
    public = dinov2_jax.extract(tiny, paths)
    np.testing.assert_array_equal(public["cls"], extract(tiny, paths)["cls"])


def test_every_kind_equals_the_model_on_one_picture(tiny, pictures):
    with pytest.warns(UserWarning, match="2 of 21 pictures cannot be read, such as 00004.jpeg"):
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
    options = {"features": KINDS, "policy": policy, "size": size, "on_error": "nan"}
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
    exact = extract(tiny, pictures, on_error="nan")["cls"]
    rough = extract(tiny, pictures, dtype=jnp.bfloat16, on_error="nan")["cls"]
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
    by_path = extract(tiny, [*files[:2], tmp_path / "nowhere.png"], on_error="nan")
    np.testing.assert_allclose(extract(tiny, images)["cls"], by_path["cls"][:2], atol=ATOL)
    assert list(by_path.unreadable) == [2] and "No such file" in by_path.unreadable[2]


def test_one_array_is_one_picture(tiny):
    image = np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    one = extract(tiny, image)
    assert one["cls"].shape == (1, 24) and one.names == ["[0]"]
    np.testing.assert_allclose(one["cls"], extract(tiny, [image])["cls"], atol=ATOL)
    several = extract(tiny, np.stack([image, image[::-1]]))
    np.testing.assert_allclose(several["cls"][0], one["cls"][0], atol=ATOL)
    gray = extract(tiny, image[..., 0])
    assert gray["cls"].shape == (1, 24)
    np.testing.assert_allclose(gray["cls"], extract(tiny, image[..., :1])["cls"], atol=ATOL)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "1"])
def test_pillow_pictures_are_decoded_as_files_are(tiny, mode, tmp_path):
    pixels = np.random.default_rng(4).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        picture = picture if mode == "RGBA" else picture.convert("RGB").convert(mode)
    picture.save(tmp_path / "one.png")
    expected = extract(tiny, tmp_path / "one.png")["cls"]
    np.testing.assert_array_equal(extract(tiny, picture)["cls"], expected)
    np.testing.assert_array_equal(extract(tiny, [picture, picture])["cls"][1:], expected)


def test_a_pillow_picture_is_turned_upright_and_stays_as_it_is(tiny, tmp_path):
    pixels = np.random.default_rng(4).integers(0, 256, (8, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        found = extract(tiny, picture)
        assert picture.size == (30, 8) and found.names == [str(tmp_path / "turned.png")]
    expected = extract(tiny, np.rot90(pixels, -1).copy())["cls"]
    np.testing.assert_allclose(found["cls"], expected, atol=ATOL)


def test_missing_files_are_named(tiny, pictures):
    files = sorted(map(str, pictures.iterdir()))
    with pytest.raises(FileNotFoundError, match=r"^no1.jpg, no2.jpg do not exist$"):
        extract(tiny, [files[0], "no1.jpg", "no2.jpg"])
    with pytest.raises(FileNotFoundError, match=r"no1, no2, no3 and 2 more do not exist"):
        extract(tiny, [f"no{i}" for i in range(1, 6)])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        extract(tiny, "nowhere/picture.jpg")


def test_an_unreadable_picture_raises_or_is_nan(tiny, pictures):
    files = sorted(map(str, pictures.iterdir()))
    with pytest.raises(SourceError, match=r'1 of 2 .*00004.jpeg \(.+\); .* on_error="nan"'):
        extract(tiny, files[3:5])
    with pytest.raises(SourceError, match="1 of 1"):
        extract(tiny, files[4])
    with pytest.raises(SourceError, match="2 of 21"):
        extract(tiny, pictures, on_error="raise")
    found = extract(tiny, files[3:5], on_error="nan")
    assert list(found.unreadable) == [1] and np.isnan(found["cls"][1]).all()
    with pytest.raises(ConfigError, match="did you mean 'raise'"):
        extract(tiny, files[:1], on_error="rais")


def lowered(action):
    """How many programs `action` makes."""
    names = []

    def listen(event, seconds, **rest):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    action()
    return len(names)


def test_the_second_call_compiles_nothing(tiny):
    first, second = np.random.default_rng(5).integers(0, 256, (2, 3, 40, 40, 3), dtype=np.uint8)
    options = {"features": KINDS, "layers": (0, 2), "batch_size": 16}
    assert lowered(lambda: extract(tiny, first, **options)) > 0
    assert lowered(lambda: extract(tiny, second, **options)) == 0
    other = backbone(seed=1)  # other weights, same architecture
    assert lowered(lambda: extract(other, second, **options)) == 0


def test_the_second_call_copies_no_weights(tiny):
    image = np.zeros((16, 16, 3), np.uint8)
    extract(tiny, image)
    request = make_request(tiny, ("cls",), (-1,), True, "center_crop", ())
    mesh = make_mesh(devices=jax.local_devices())
    placed = place_weights(tiny, request, mesh)
    extract(tiny, image)
    assert all(
        map(operator.is_, *map(jax.tree.leaves, (place_weights(tiny, request, mesh), placed)))
    )


def test_devices_divide_the_work(tiny):
    """A device of n computes the nth part of what one alone would."""
    request = make_request(tiny, ("cls",), (-1,), True, "center_crop", ())
    flops = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(devices=devices)
        batch = {"images": np.zeros((16, 16, 16, 3), np.uint8), "readable": np.ones(16, bool)}
        with jax.set_mesh(mesh):
            program = forward.lower(
                place_weights(tiny, request, mesh),
                **put_batch(batch, mesh),
                model=shorten(tiny.model, request, jnp.float32),
                preprocessing=tiny.preprocessing,
                request=request,
                copy_to_all=False,
            )
        flops.append(program.compile().cost_analysis()["flops"])
    assert flops[0] / flops[1] > 0.8 * len(jax.devices()) > 1


def test_weights_by_path(tiny, tmp_path):
    path = write_weights(tmp_path / "bundle")
    image = np.zeros((16, 16, 3), np.uint8)
    np.testing.assert_array_equal(extract(path, [image])["cls"], extract(tiny, [image])["cls"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": ("cls", "patch")}, "did you mean 'patches'"),
        ({"features": ()}, "of cls, registers"),
        ({"layers": (3,)}, r"^layers=\(3,\) .* depth 3; valid: 0 to 2, or -1 \(the last\) to -3$"),
        ({"layers": (0, -4)}, r"^layers=\(0, -4\) .* depth 3; valid: 0 to 2"),
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
        (np.zeros((8, 8, 4), np.uint8), r"uint8 \[8, 8, 4\], but must be uint8 \[H, W, 3\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "the array of pictures is empty"),
        (np.zeros((8, 8, 3)), r"float64 \[8, 8, 3\]"),
        ("https://example.org/a.jpg", "a.jpg is a URL; download"),
        (["s3://bucket/a.jpg"], "is a URL"),
        (["a.jpg", np.zeros((8, 8, 3), np.uint8)], "mixes paths and arrays"),
        ([Image.new("RGB", (8, 8)), "a.jpg"], "mixes PIL pictures and paths"),
    ],
)
def test_pictures_that_are_none(tiny, pictures, message):
    with pytest.raises(SourceError, match=message):
        extract(tiny, pictures)
