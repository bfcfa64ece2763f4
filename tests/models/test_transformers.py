"""Equality with transformers' DINOv2 (random weights, 518 px), through the weight table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.weights.convert import from_reference
from dinov2_jax.weights.layouts import to_reference_names

pytestmark = pytest.mark.parity
SIZE_PX = 518


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_equals_transformers(registers, swiglu):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    options = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": SIZE_PX,
        "patch_size": 14,
        "use_swiglu_ffn": swiglu,
    }
    torch.manual_seed(registers)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **options)
        theirs = transformers.Dinov2WithRegistersModel(config)
    else:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**options))
    theirs.eval()
    with torch.no_grad():  # random everywhere, also where the initial value is 0 or 1
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params = from_reference(to_reference_names(state, "huggingface")[0])
    ours = VisionTransformer(
        dim=48,
        depth=3,
        heads=3,
        patch_size=14,
        image_size=SIZE_PX,
        ffn="swiglu" if swiglu else "mlp",
        registers=registers,
    )
    expected = jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    image = np.random.default_rng(0).standard_normal((1, 3, SIZE_PX, SIZE_PX)).astype(np.float32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(image)).last_hidden_state.numpy()
    out = jax.jit(ours.apply)({"params": params}, image.transpose(0, 2, 3, 1))
    got = np.concatenate([out["cls"][:, None], out["registers"], out["patches"]], axis=1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
