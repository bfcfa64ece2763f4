"""Video object segmentation, whole: a miniature DAVIS 2017 to figures, masks and pictures."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs.eval import vos as vos_config
from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.davis import davis2017, read_mask
from dinov2_jax.eval.protocols import vos
from dinov2_jax.eval.runner import evaluate
from dinov2_jax.heads import propagation
from dinov2_jax.metrics.tracking import boundary_accuracy, region_similarity
from tests.datasets.davis import build_davis
from tests.eval.found import entry, values
from tests.features.tiny import PATCH, write_weights

OBJECTS = ["bike 1", "bike 2", "cow 1", "cow 2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "bundle")


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    return build_davis(tmp_path_factory.mktemp("davis"))


def ask(weights, davis, **changes):
    config = vos_config.get_config()
    settings = {"checkpoint": str(weights), "data.path": str(davis)}
    small = {"vos.short_side": 40, "vos.radius": 3, "vos.context": 2, "vos.pictures": 1}
    config.update_from_flattened_dict(settings | small | changes)
    return config


def shapes_of(folder, video):
    return [read_mask(str(file)) for file in sorted((folder / video).glob("*.png"))]


def best_of_grid(davis):
    """Mean J in percent if every patch had its true label."""
    size, grid, found = (40, 64), (10, 16), []
    for video in davis2017(str(davis), "val"):
        for true in (video.mask(frame) for frame in range(1, 4)):
            labels = propagation.one_hot(true, grid, 2)
            shown = propagation.classes_of(labels, grid, PATCH, size)
            found += [region_similarity(shown == i, true == i) for i in (1, 2)]
    return 100 * np.mean(found)


def test_figures_are_those_of_the_stored_masks(weights, davis, tmp_path, one_device):
    found = evaluate(ask(weights, davis), str(tmp_path))
    result, metrics = entry(found, "vos", "davis2017"), values(found, "vos")
    by_object = result["notes"]["objects"]
    assert list(by_object) == OBJECTS and result["notes"]["left_out"] == {}
    for video in ("bike", "cow"):
        masks = shapes_of(tmp_path / "vos/davis2017/masks", video)
        truth = shapes_of(davis / "Annotations/480p", video)
        assert len(masks) == 5
        np.testing.assert_array_equal(masks[0], truth[0])
        for number in (1, 2):
            pairs = [(m == number, t == number) for m, t in zip(masks, truth, strict=True)][1:-1]
            j, f = ([judge(*p) for p in pairs] for judge in (region_similarity, boundary_accuracy))
            mine = by_object[f"{video} {number}"]
            np.testing.assert_allclose([mine["j"], mine["f"]], [100 * np.mean(j), 100 * np.mean(f)])
    means = {n: np.mean([values[n] for values in by_object.values()]) for n in ("j", "f")}
    np.testing.assert_allclose([metrics["j"], metrics["f"]], [means["j"], means["f"]])
    np.testing.assert_allclose(metrics["j_and_f"], (means["j"] + means["f"]) / 2)
    assert 0.8 * best_of_grid(davis) < metrics["j"]  # random features tell coloured shapes apart
    assert not result["metrics"]["j_decay"]["higher_is_better"]
    picture = result["pictures"][0]["file"]
    with Image.open(tmp_path / picture) as image:
        assert image.width > 200
    assert "Tracks" in (tmp_path / "results.html").read_text()


def test_a_kill_loses_one_video(weights, davis, tmp_path, monkeypatch, one_device):
    whole = evaluate(ask(weights, davis), str(tmp_path / "whole"))
    real, calls = vos._judge, []

    def stop_at_second(context, video, *rest):
        calls.append(video.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(context, video, *rest)

    monkeypatch.setattr(vos, "_judge", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(ask(weights, davis), str(tmp_path / "killed"))
    continued = evaluate(ask(weights, davis), str(tmp_path / "killed"))
    assert calls == ["bike", "cow", "cow"]
    assert values(continued, "vos") == values(whole, "vos")
    evaluate(ask(weights, davis, **{"vos.top_k": 2}), str(tmp_path / "killed"))
    assert calls[3:] == ["bike", "cow"]  # other settings track again


def test_devices_change_nothing(weights, davis, tmp_path, monkeypatch):
    found, every = [], jax.devices()
    for count in (1, 2, 8):
        for name in ("devices", "local_devices"):
            monkeypatch.setattr(jax, name, lambda *_, n=count, **__: every[:n])
        ours = ask(weights, davis, **{"vos.videos": 1})
        found.append(values(evaluate(ours, str(tmp_path / str(count))), "vos"))
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-6)


def test_what_cannot_run_is_told_first(weights, davis, tmp_path):
    with pytest.raises(ConfigError, match=r"--config\.data\.set=davis2017"):
        evaluate(ask(weights, davis, **{"data.set": ""}), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"config\.data\.source means nothing for the set 'davis"):
        evaluate(ask(weights, davis, **{"data.source": "folder"}), str(tmp_path / "out"))
    broken = build_davis(tmp_path / "broken")
    frame = broken / "JPEGImages/480p/cow/00003.jpg"
    frame.write_bytes(frame.read_bytes()[:-200])  # the header is whole
    with pytest.raises(SourceError, match=r"1 frames cannot be decoded, in cow; .*max_bad=1"):
        evaluate(ask(weights, broken), str(tmp_path / "out"))
    found = evaluate(ask(weights, broken, **{"data.max_bad": 1}), str(tmp_path / "out"))
    notes = entry(found, "vos")["notes"]
    assert notes["left_out"] == {"cow": 1} and list(notes["objects"]) == OBJECTS[:2]
    stored = json.loads((tmp_path / "out/results.json").read_text())
    assert stored["results"]["vos"]["davis2017"]["metrics"]["j"]["n"] == 1
