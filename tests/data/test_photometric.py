"""Colour augmentation against Pillow and numpy, and the statistics of its draws."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dinov2_jax.data import photometric
from dinov2_jax.data.photometric import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    SATURATION,
    ColourSpec,
    augment_batch,
    augment_crops,
)

augment = jax.jit(augment_batch, static_argnums=3)
NO_NORM = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def make_pictures(count: int, side_px: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures: like photographs, they hold flat, saturated and near-grey parts."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    big = [Image.fromarray(c).resize((side_px, side_px), Image.Resampling.BICUBIC) for c in coarse]
    return np.stack([np.asarray(image) for image in big])


def run_jitter(pictures, operation, factor=1.0, turn=0.0):
    """Jitter with one operation active and placed first; uint8 [n,H,W,3] to float [n,H,W,3]."""
    n = len(pictures)
    order = [operation, *(i for i in range(4) if i != operation)]
    factors = np.ones((n, 3), np.float32)
    if operation != HUE:
        factors[:, operation] = factor
    planes = photometric.to_planes(jnp.asarray(pictures))
    out = photometric.jitter(
        planes, jnp.tile(jnp.asarray([order]), (n, 1)), jnp.asarray(factors), jnp.full((n,), turn)
    )
    return np.moveaxis(np.asarray(out), 1, -1)


ENHANCERS = {
    BRIGHTNESS: ImageEnhance.Brightness,
    CONTRAST: ImageEnhance.Contrast,
    SATURATION: ImageEnhance.Color,
}


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
@pytest.mark.parametrize("factor", [0.6, 0.85, 1.0, 1.4])
def test_blends_equal_pillow(operation, factor):
    pictures = make_pictures(4, 24)
    ours = run_jitter(pictures, operation, factor)
    pillow = [
        np.asarray(ENHANCERS[operation](Image.fromarray(p)).enhance(factor)) for p in pictures
    ]
    # Pillow truncates the result (up to 1) and rounds the grey it blends with (0.5 * |1 - factor|).
    assert np.abs(ours - np.stack(pillow)).max() <= 1 + 0.5 * abs(1 - factor) + 1e-3


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("edge_px", [1, 4])
def test_reflected_as_a_sum_equals_numpy(edge_px, axis):
    """The form for GPUs; 5 px is the shortest side that 4 px can be reflected at."""
    planes = np.random.default_rng(6).normal(size=(2, 3, 5, 7)).astype(np.float32)
    widths = [(0, 0)] * 4
    widths[axis] = (edge_px, edge_px)
    want = np.pad(planes, widths, mode="reflect")
    got = photometric.reflected_as_sum(jnp.asarray(planes), edge_px, axis)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_two_passes_equal_one_place_after_the_other(channels):
    """The form for GPUs, in all 24 orders, with jitter and without."""
    rng = np.random.default_rng(5)
    planes = rng.integers(0, 256, (24, 1, channels, 8, 9)).astype(np.float32)
    order = photometric.ORDERS[:, None]
    factors = rng.uniform(0.3, 1.7, (24, 1, 4)).astype(np.float32)
    turn = rng.uniform(-0.4, 0.4, (24, 1)).astype(np.float32)
    for strength in (factors, np.ones_like(factors)):
        with jax.disable_jit():
            want = photometric.jitter_by_places(planes, order, strength, turn)
        got = photometric.jitter_in_two_passes(planes, order, strength, turn)
        assert np.abs(want - planes).max() > 20 or channels != 3
        np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
def test_blends_equal_float64_formula(operation):
    pictures = make_pictures(3, 24, seed=1)
    x = pictures.astype(np.float64)
    grey = x @ [0.299, 0.587, 0.114]
    target = {
        BRIGHTNESS: np.zeros_like(x),
        CONTRAST: np.broadcast_to(grey.mean((1, 2))[:, None, None, None], x.shape),
        SATURATION: np.broadcast_to(grey[..., None], x.shape),
    }[operation]
    expected = np.clip(1.37 * x - 0.37 * target, 0, 255)
    assert (expected == 255).any() or operation != BRIGHTNESS  # the clamp is exercised
    np.testing.assert_allclose(run_jitter(pictures, operation, 1.37), expected, atol=2e-3)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.03, 0.1, 0.5])
def test_hue_equals_colorsys(turn):
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (1, 12, 12, 3), dtype=np.uint8)
    pixels[0, 0] = pixels[0, 0, :, :1]  # grey
    pixels[0, 1, :, 1] = pixels[0, 1, :, 0]  # ties of two channels
    pixels[0, 2, :, 2] = pixels[0, 2, :, 1]
    pixels[0, 3, :3] = [[0, 0, 0], [255, 255, 255], [255, 0, 0]]
    ours = run_jitter(pixels, HUE, turn=turn)
    for got, rgb in zip(ours.reshape(-1, 3), pixels.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(rgb / 255.0))
        expected = 255 * np.asarray(colorsys.hsv_to_rgb((h + turn) % 1.0, s, v))
        np.testing.assert_allclose(got, expected, atol=1e-3)


def shift_hue_pillow(image: Image.Image, turn: float) -> Image.Image:
    """torchvision's 8-bit hue shift: a wrapping uint8 addition to H."""
    h, s, v = image.convert("HSV").split()
    shifted = (np.asarray(h).astype(np.int32) + int(turn * 255)) % 256
    channels = (Image.fromarray(shifted.astype(np.uint8)), s, v)
    return Image.merge("HSV", channels).convert("RGB")


def test_chain_in_random_order_stays_near_the_8_bit_chain():
    """Bounds the price of staying in float, which photometric.py states."""
    count, rng = 200, np.random.default_rng(3)
    pictures = make_pictures(count, 32, seed=3)
    order = np.argsort(rng.random((count, 4)), axis=1)
    factors = rng.uniform([0.6, 0.6, 0.8], [1.4, 1.4, 1.2], (count, 3)).astype(np.float32)
    turn = rng.uniform(-0.1, 0.1, count).astype(np.float32)
    planes = photometric.to_planes(jnp.asarray(pictures))
    ours = jax.jit(photometric.jitter)(planes, order, factors, turn)
    reference = []
    for i, picture in enumerate(pictures):
        image = Image.fromarray(picture)
        for operation in order[i]:
            if operation == HUE:
                image = shift_hue_pillow(image, float(turn[i]))
            else:
                image = ENHANCERS[int(operation)](image).enhance(float(factors[i, operation]))
        reference.append(np.asarray(image))
    difference = np.moveaxis(np.asarray(ours), 1, -1) - np.stack(reference)
    assert np.abs(difference).mean() < 2.0
    assert np.quantile(np.abs(difference), 0.99) < 8.0


def test_order_changes_the_result():
    pictures = make_pictures(1, 16)
    planes = jnp.tile(photometric.to_planes(jnp.asarray(pictures)), (24, 1, 1, 1))
    factors = jnp.tile(jnp.asarray([[1.4, 0.6, 1.2]]), (24, 1))
    out = photometric.jitter(planes, jnp.asarray(photometric.ORDERS), factors, jnp.full((24,), 0.1))
    assert len({np.asarray(o).round(2).tobytes() for o in out}) >= 12


def test_luma_equals_pillow():
    pictures = make_pictures(3, 20, seed=4)
    ours = np.asarray(photometric.luma(photometric.to_planes(jnp.asarray(pictures))))[:, 0]
    pillow = np.stack([np.asarray(Image.fromarray(p).convert("L")) for p in pictures])
    assert np.abs(ours - pillow).max() <= 0.5 + 1e-2


def test_solarize_equals_pillow():
    pictures = make_pictures(3, 20, seed=5)
    ours = photometric.solarize(jnp.asarray(pictures, jnp.float32), 128)
    pillow = np.stack([np.asarray(ImageOps.solarize(Image.fromarray(p), 128)) for p in pictures])
    np.testing.assert_array_equal(np.asarray(ours), pillow)
    assert (pictures == 128).any()


@pytest.mark.parametrize("side_px", [5, 16, 23])
def test_blur_equals_numpy(side_px):
    rng = np.random.default_rng(6)
    x = rng.uniform(0, 255, (3, 3, side_px, side_px + 2))
    sigmas = np.asarray([0.1, 0.9, 2.0])
    taps = photometric.blur_taps(jnp.asarray(sigmas, jnp.float32), jnp.ones(3, bool), 9)
    ours = photometric.blur(jnp.asarray(x, jnp.float32), taps)
    grid = np.linspace(-4, 4, 9)
    for i, sigma in enumerate(sigmas):
        kernel = np.exp(-(grid**2) / (2 * sigma**2))
        kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
        padded = np.pad(x[i], ((0, 0), (4, 4), (4, 4)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(1, 2))
        np.testing.assert_allclose(ours[i], np.einsum("chwij,ij->chw", windows, kernel), atol=1e-3)


def test_blur_not_chosen_is_exact():
    x = photometric.to_planes(jnp.asarray(make_pictures(2, 16)))
    taps = photometric.blur_taps(jnp.full((2,), 1.5), jnp.zeros(2, bool), 9)
    np.testing.assert_array_equal(photometric.blur(x, taps), x)


def test_blur_of_too_small_crops_is_refused():
    taps = photometric.blur_taps(jnp.ones(1), jnp.ones(1, bool), 9)
    with pytest.raises(ValueError, match=r"crop side of 4 px .* needs 5 px"):
        photometric.blur(jnp.zeros((1, 3, 4, 4)), taps)


def test_jitter_draws():
    spec = ColourSpec()
    n = 40_000
    uniforms = jax.random.uniform(jax.random.key(0), (n, 6))
    order, factors, turn = map(np.asarray, photometric.draw_jitter(uniforms, spec))
    tolerance = 5 * np.sqrt(0.25 / n)
    active = turn != 0
    assert abs(active.mean() - 0.8) < tolerance
    assert (factors[~active] == 1).all()
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    for operation in range(4):
        for place in range(4):
            assert abs((order[:, place] == operation).mean() - 0.25) < tolerance
    low, high = factors[active].min(0), factors[active].max(0)
    np.testing.assert_allclose(low, [0.6, 0.6, 0.8], atol=1e-3)
    np.testing.assert_allclose(high, [1.4, 1.4, 1.2], atol=1e-3)
    np.testing.assert_allclose(factors[active].mean(0), 1, atol=0.01)
    np.testing.assert_allclose([turn.min(), turn.max()], [-0.1, 0.1], atol=1e-3)
    correlation = np.corrcoef(np.concatenate([factors[active], turn[active, None]], 1).T)
    assert np.abs(correlation - np.eye(4)).max() < 0.03


def only(**changes) -> ColourSpec:
    """A spec in which nothing happens but what is named."""
    off = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "solarize_probability": 0.0}
    return ColourSpec(**{**off, "blur_probabilities": (0.0, 0.0, 0.0), **NO_NORM, **changes})


def changed(out, crops) -> np.ndarray:
    """Which crops [B, V] were altered."""
    return (np.abs(np.asarray(out) * 255 - np.asarray(crops)) > 0.01).any((2, 3, 4))


def make_batch(images: int, global_px: int = 8, local_px: int = 6, views: int = 2):
    rng = np.random.default_rng(7)
    global_crops = rng.integers(0, 256, (images, 2, global_px, global_px, 3), dtype=np.uint8)
    local_crops = rng.integers(0, 256, (images, views, local_px, local_px, 3), dtype=np.uint8)
    return jnp.asarray(global_crops), jnp.asarray(local_crops)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"blur_probabilities": (0.0, 0.9, 0.5), "blur_sigma": (1.0, 2.0)}, (0.0, 0.9, 0.5)),
        ({"blur_probabilities": (1.0, 0.1, 0.5), "blur_sigma": (1.0, 2.0)}, (1.0, 0.1, 0.5)),
        ({"grayscale_probability": 0.2}, (0.2, 0.2, 0.2)),
        ({"solarize_probability": 0.2}, (0.0, 0.2, 0.0)),
        ({}, (0.0, 0.0, 0.0)),
    ],
)
def test_rates_by_kind_of_view(changes, rates):
    global_crops, local_crops = make_batch(2000)
    spec = only(**changes)
    global_out, local_out = augment(jax.random.key(1), global_crops, local_crops, spec)
    global_rates = changed(global_out, global_crops).mean(0)
    local_rate = changed(local_out, local_crops).mean()
    for got, expected in zip((*global_rates, local_rate), rates, strict=True):
        # Five standard deviations of a binomial rate; rates 0 and 1 must be exact.
        assert abs(got - expected) <= 5 * np.sqrt(expected * (1 - expected) / 2000)


def test_released_blur_rates_are_the_default():
    assert ColourSpec().blur_probabilities == (0.0, 0.9, 0.5)


def test_order_of_operations_is_jitter_gray_blur_solarize():
    """One crop through all steps, recomputed with the single operations."""
    crops = jnp.asarray(make_pictures(1, 16))[None]
    # jitter yes, order 0, three factors, hue; gray yes; blur yes; sigma; solarize yes
    uniforms = jnp.asarray([0.0, 0.5, 0.9, 0.1, 0.8, 0.7, 0.0, 0.0, 0.5, 0.0]).reshape(1, 1, 10)
    spec = ColourSpec(**NO_NORM)
    out = augment_crops(uniforms, crops, spec, 0.5, 0.2)
    order, factors, turn = photometric.draw_jitter(uniforms[..., :6], spec)
    planes = photometric.jitter(photometric.to_planes(crops), order, factors, turn)
    planes = jnp.broadcast_to(photometric.luma(planes), planes.shape)
    taps = photometric.blur_taps(jnp.full((1, 1), 1.05), jnp.ones((1, 1), bool), 9)
    planes = photometric.solarize(photometric.blur(planes, taps), 128)
    np.testing.assert_allclose(
        np.asarray(out), np.moveaxis(np.asarray(planes), 2, -1) / 255, atol=1e-5
    )


def test_batch_is_deterministic_and_draws_differ():
    global_crops, local_crops = make_batch(4)
    same = jnp.broadcast_to(global_crops[:1, :1], global_crops.shape)
    first = augment(jax.random.key(0), same, local_crops, ColourSpec())
    again = augment(jax.random.key(0), same, local_crops, ColourSpec())
    other = augment(jax.random.key(1), same, local_crops, ColourSpec())
    for a, b, c in zip(first, again, other, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    flat = np.asarray(first[0]).reshape(8, -1)
    assert len(np.unique(flat, axis=0)) >= 7  # equal pictures, a draw of its own for each view


def test_batch_does_not_depend_on_sharding():
    if len(jax.devices()) < 2:
        pytest.skip("needs 2 devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)")
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    crops = make_batch(4)
    alone = augment(jax.random.key(0), *crops, ColourSpec())
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    spread = jax.device_put(crops, NamedSharding(mesh, PartitionSpec("data")))
    both = augment(jax.random.key(0), *spread, ColourSpec())
    for a, b in zip(alone, both, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_local_crops():
    global_crops, local_crops = make_batch(2, views=0)
    _, local_out = jax.eval_shape(
        lambda *crops: augment_batch(jax.random.key(0), *crops, ColourSpec()),
        global_crops,
        local_crops,
    )
    assert local_out.shape == (2, 0, 6, 6, 3)


def test_normalize():
    images = np.asarray([[[[0, 128, 255]]]], np.uint8)
    for mean, std in ((ColourSpec().mean, ColourSpec().std), ((0.5,) * 3, (0.25,) * 3)):
        expected = (images / 255 - np.asarray(mean)) / np.asarray(std)
        # Absolute: the difference from the mean cancels, an eps of 1.2e-7 is divided by std.
        got = photometric.normalize(jnp.asarray(images), mean, std)
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-7)


def test_spec_from_config():
    fields = {**ColourSpec().__dict__, "blur_sigma": [0.1, 2.0]}
    assert ColourSpec.from_config(fields) == ColourSpec()
    assert hash(ColourSpec.from_config(fields)) == hash(ColourSpec())


def test_no_operation_is_repeated_by_fusion():
    """XLA may fuse the jitter into each read of a blur; that once cost 25 times the time.

    The compiled program counts 162 operations a pixel, the body of the jitter's loop once; with
    the four places written out, and repeated for each tap, it was 1,753.
    """
    images = 4
    crops = (
        jax.ShapeDtypeStruct((images, 2, 32, 32, 3), jnp.uint8),
        jax.ShapeDtypeStruct((images, 8, 16, 16, 3), jnp.uint8),
    )
    compiled = augment.lower(jax.random.key(0), *crops, ColourSpec()).compile()
    pixels = images * (2 * 32**2 + 8 * 16**2)
    assert compiled.cost_analysis()["flops"] / pixels < 300
