"""Labels that cost the read of a record each: read by one evaluation, known to the next."""

import numpy as np
import pytest

from configs.eval import default as eval_config
from dinov2_jax.data.sources.tfds import Tfds
from dinov2_jax.eval.runner import evaluate
from tests.data.sources.tiny_tfds import prepare_tfds
from tests.features.tiny import write_weights

pytestmark = pytest.mark.usefixtures("one_device")


def test_a_second_evaluation_reads_no_label(tmp_path, monkeypatch, capsys):
    rows, read = [], Tfds._read_labels
    monkeypatch.setattr(Tfds, "_read_labels", lambda s, r: (rows.extend(r), read(s, r))[1])
    changes = {
        "checkpoint": str(write_weights(tmp_path / "bundle")),
        "protocols": ("knn",),
        "data.source": "tfds",
        "data.path": str(prepare_tfds(tmp_path)),
        "feature_cache": str(tmp_path / "cache"),
    }
    for ks in ((1,), (2,)):
        config = eval_config.get_config()
        config.update_from_flattened_dict(changes | {"knn.ks": ks})
        evaluate(config, str(tmp_path / f"out{ks[0]}"))
    assert len(rows) == 6 + 2
    assert capsys.readouterr().out.count("reading the labels of 6 records") == 1
    assert len(list((tmp_path / "cache").glob("labels-*.npy"))) == 2
    kept = np.concatenate([np.load(path) for path in (tmp_path / "cache").glob("labels-*.npy")])
    assert sorted(kept) == [0, 0, 0, 0, 1, 1, 1, 1]
