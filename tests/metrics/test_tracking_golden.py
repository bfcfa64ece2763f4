"""J and F against the DAVIS code's values."""

import numpy as np
import pytest

from dinov2_jax.metrics import tracking


@pytest.fixture(scope="module")
def jf(golden):
    return {k[3:]: v for k, v in np.load(golden / "video.npz").items() if k.startswith("jf/")}


def test_frames(jf):
    pairs = list(zip(jf["pred"], jf["gt"], strict=True))
    assert [tracking.region_similarity(p, t) for p, t in pairs] == jf["J"].tolist()
    assert [tracking.boundary_accuracy(p, t) for p, t in pairs] == jf["F"].tolist()
    boundaries = [tracking.boundary(x) for x in (jf["gt"][0], jf["pred"][0])]
    assert any(np.array_equal(x, jf["boundary0"] > 0) for x in boundaries)
    assert tracking.bound_px(*jf["gt"][0].shape) == jf["bound_pixels"]


@pytest.mark.parametrize("name", ["J", "F"])
def test_summary(jf, name):
    expected = jf[f"{name}_mean_recall_decay"]
    np.testing.assert_allclose(tracking.summarise(jf[name]), expected, rtol=1e-12)
