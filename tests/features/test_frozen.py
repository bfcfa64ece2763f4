"""Extraction of features in fixed batches: what is padding or unreadable leaves no trace."""

import jax.numpy as jnp
import numpy as np

from dinov2_jax.data.photometric import normalize
from dinov2_jax.features.frozen import cls_forward, extract_features


class MeanModel:
    """Stands for a ViT: its cls token is the mean colour times the parameters."""

    def apply(self, variables, images):
        return {"cls": variables["params"] * images.mean((1, 2))}


def test_padding_and_bad_records_are_left_out():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    batches = [
        {"images": images[:3], "index": np.asarray([4, -1, 9])},
        {"images": images[3:], "index": np.asarray([2, 7, -1])},
    ]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    forward = cls_forward(MeanModel(), mean, std)
    features, indices = extract_features(forward, jnp.float32(2), batches)
    np.testing.assert_array_equal(indices, [4, 9, 2, 7])
    expected = 2 * np.asarray(normalize(images, mean, std)).mean((1, 2))[[0, 2, 3, 4]]
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    assert features.dtype == np.float32


def test_progress_bar_counts_pictures_and_shows_time_left(capsys):
    batch = {"images": np.zeros((2, 4, 4, 3), np.uint8), "index": np.asarray([0, -1])}
    forward = cls_forward(MeanModel(), (0.5,) * 3, (0.5,) * 3)
    extract_features(forward, jnp.float32(1), [batch, batch], total=2, description="bank")
    shown = capsys.readouterr().err
    assert "bank" in shown and "2/2" in shown
