"""Forward passes against the reference's vectors and its worked values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models.positions import resize_positions
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.convert import from_reference, to_reference

MODELS = {
    "mlp_offset": {"ffn": "mlp", "registers": 0, "interpolate_offset": 0.1},
    "reg_swiglu_antialias": {
        "ffn": "swiglu",
        "registers": 4,
        "interpolate_offset": 0.0,
        "interpolate_antialias": True,
    },
}
SIZES = ["70x70", "28x28", "14x14", "28x56", "91x63"]


def golden_model(name: str, params: dict, **changes) -> VisionTransformer:
    dim = params["cls_token"].shape[-1]
    options = {
        "dim": dim,
        "depth": params["blocks"]["norm1"]["scale"].shape[0],
        "heads": 3,
        "patch_size": 7,
        "image_size": 70,
    }
    return VisionTransformer(**options | MODELS[name] | changes)


@pytest.fixture(scope="module")
def forward(golden):
    return dict(np.load(golden / "forward.npz"))


def load(forward, name):
    prefix = f"{name}/params/"
    flat = {k.removeprefix(prefix): v for k, v in forward.items() if k.startswith(prefix)}
    return flat, from_reference(flat)


def tokens_after(model, params, images, blocks, norm=True):
    """(patches as maps [B, h, w, D], cls [B, D]) of each block, as the reference gives them."""
    pairs = model.apply({"params": params}, images, intermediate=blocks)["blocks"]
    rows, cols = (side // model.patch_size for side in images.shape[1:3])
    tokens = [pair[norm] for pair in pairs]
    first = 1 + model.registers
    return [(x[:, first:].reshape(-1, rows, cols, model.dim), x[:, 0]) for x in tokens]


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_forward(forward, name, size, scan):
    _, params = load(forward, name)
    model = golden_model(name, params, scan_blocks=scan)
    case = {
        k.removeprefix(f"{name}/{size}/"): v
        for k, v in forward.items()
        if k.startswith(f"{name}/{size}/")
    }
    image = jnp.asarray(case["image"]).transpose(0, 2, 3, 1)
    out = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, image)
    names = {
        "cls": "x_norm_clstoken",
        "patches": "x_norm_patchtokens",
        "registers": "x_norm_regtokens",
        "prenorm": "x_prenorm",
    }
    for ours, theirs in names.items():
        np.testing.assert_allclose(out[ours], case[theirs], rtol=0, atol=2e-5)
    grid = image.shape[1] // 7, image.shape[2] // 7
    positions = resize_positions(
        jnp.asarray(params["pos_embed"]),
        grid,
        model.interpolate_offset,
        model.interpolate_antialias,
    )
    np.testing.assert_allclose(positions, case["pos_embed"], rtol=0, atol=2e-5)
    layers = jax.jit(lambda p, x: tokens_after(model, p, x, (1, 3)))(params, image)
    for block, (patches, cls) in zip([1, 3], layers, strict=True):
        want = case[f"intermediate{block}/patch"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(patches, want, rtol=0, atol=2e-5)
        np.testing.assert_allclose(cls, case[f"intermediate{block}/cls"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_of_weights(forward, name):
    flat, params = load(forward, name)
    back = to_reference(params, patch_size=7)
    assert back.keys() == flat.keys()
    assert all(np.array_equal(back[key], flat[key]) for key in flat)


# --- worked values: weights from a formula, 14 px patches


def formula_params(registers: int, swiglu: bool) -> dict:
    dim, hidden = 24, 64 if swiglu else 96
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 17, dim)}
    if registers:
        shapes["register_tokens"] = (1, registers, dim)
    shapes |= {
        "mask_token": (1, dim),
        "patch_embed.proj.weight": (dim, 3, 14, 14),
        "patch_embed.proj.bias": (dim,),
    }
    first, second = ("w12", "w3") if swiglu else ("fc1", "fc2")
    for i in range(3):
        block = {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "attn.qkv.bias": (3 * dim,),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "ls1.gamma": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            f"mlp.{first}.weight": (hidden * (2 if swiglu else 1), dim),
            f"mlp.{first}.bias": (hidden * (2 if swiglu else 1),),
            f"mlp.{second}.weight": (dim, hidden),
            f"mlp.{second}.bias": (dim,),
            "ls2.gamma": (dim,),
        }
        shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    out = {}
    for j, (key, shape) in enumerate(shapes.items()):
        value = 0.1 * np.sin(0.7 * np.arange(np.prod(shape)) + 0.3 * j + 0.1)
        value += 1.0 * ("norm" in key and key.endswith("weight")) + 0.5 * key.endswith("gamma")
        out[key] = value.astype(np.float32).reshape(shape)
    assert len(out) == (50 if registers else 49)
    return from_reference(out)


def formula_image(height: int, width: int) -> jnp.ndarray:
    flat = np.sin(0.01 * np.arange(3 * height * width)).astype(np.float32)
    return jnp.asarray(flat.reshape(1, 3, height, width).transpose(0, 2, 3, 1))


WORKED = {
    "A": {
        "nonsq": (
            [1.48653, -0.319506, 0.226909, 1.27085, -0.329685, -1.054903],
            [0.490316, 0.137542, -1.317887],
            [2.187349, -1.130069, 0.39779],
            15.27807,
            76.54267,
        ),
        "masked": (
            [1.471872, -0.328047, 0.247039, 1.256993, -0.342146, -1.027874],
            [0.453087, 0.160174, -1.295382],
            [2.162875, -1.131717, 0.417602],
            15.71064,
            76.35732,
        ),
        "sq": (
            [1.415467, -0.186665, 0.159141, 1.210469, -0.22207, -1.115794],
            [0.541526, -0.037654, -0.848594],
            [0.072644, 0.564454, -1.034104],
            16.41316,
            115.93316,
        ),
        "positions": ([-0.09172, 0.016673, 0.068605], 0.260687),
        "layer0": ([0.121873, -0.007786, 0.12865], 0.099134),
    },
    "B": {
        "nonsq": (
            [0.898023, 0.354266, 1.880611, 0.042715, -1.736389, -0.172971],
            [-0.660616, 0.379398, -0.274869],
            [0.843013, -0.854328, 1.489789],
            13.31332,
            78.13327,
        ),
        "masked": (
            [0.870366, 0.323657, 1.876128, 0.046429, -1.722509, -0.141365],
            [-0.710711, 0.390453, -0.236979],
            [0.80909, -0.851577, 1.495989],
            13.72366,
            79.09945,
        ),
        "sq": (
            [0.780153, 0.499009, 1.953282, -0.094619, -1.710307, -0.155231],
            [-0.698061, 0.306639, -0.270473],
            [-1.111256, 0.818063, -0.315495],
            13.2618,
            119.14016,
        ),
        "positions": ([-0.072337, 0.031447, 0.048955], 0.271192),
        "layer0": ([0.056512, 0.095734, 0.282665], 0.057042),
    },
}


def worked_model(name: str) -> VisionTransformer:
    options = MODELS["mlp_offset" if name == "A" else "reg_swiglu_antialias"]
    return VisionTransformer(dim=24, depth=3, heads=3, patch_size=14, image_size=56, **options)


@pytest.mark.parametrize("case", ["nonsq", "masked", "sq"])
@pytest.mark.parametrize("name", ["A", "B"])
def test_worked_forward_values(name, case):
    params = formula_params(4 if name == "B" else 0, name == "B")
    height, width = (56, 56) if case == "sq" else (42, 70)
    masks = None
    if case == "masked":
        masks = jnp.zeros((1, 15), bool).at[0, jnp.array([1, 4, 7])].set(True)
    out = worked_model(name).apply({"params": params}, formula_image(height, width), masks)
    cls, first, last, total, absolute = WORKED[name][case]
    np.testing.assert_allclose(out["cls"][0, :6], cls, rtol=0, atol=5e-6)
    np.testing.assert_allclose(out["patches"][0, 0, :3], first, rtol=0, atol=5e-6)
    np.testing.assert_allclose(out["patches"][0, -1, :3], last, rtol=0, atol=5e-6)
    np.testing.assert_allclose(out["prenorm"].sum(), total, rtol=0, atol=1e-4)
    np.testing.assert_allclose(jnp.abs(out["prenorm"]).sum(), absolute, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["A", "B"])
def test_worked_positions_and_first_block(name):
    params, model = formula_params(4 if name == "B" else 0, name == "B"), worked_model(name)
    positions = resize_positions(
        jnp.asarray(params["pos_embed"]),
        (3, 5),
        model.interpolate_offset,
        model.interpolate_antialias,
    )
    first, total = WORKED[name]["positions"]
    np.testing.assert_allclose(positions[0, 1:4, 0], first, rtol=0, atol=2e-6)
    np.testing.assert_allclose(positions.sum(), total, rtol=0, atol=2e-5)
    layers = tokens_after(model, params, formula_image(42, 70), (0, 2), norm=False)
    cls, value = WORKED[name]["layer0"]
    np.testing.assert_allclose(layers[0][1][0, :3], cls, rtol=0, atol=2e-6)
    np.testing.assert_allclose(layers[0][0][0, 1, 2, 0], value, rtol=0, atol=2e-6)
