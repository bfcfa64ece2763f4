"""Tracking and segmentation by neighbours: two processes give the figures of one."""

import json
from pathlib import Path

import pytest

from tests.datasets.davis import build_davis
from tests.eval.found import values
from tests.eval.test_eval_processes import ROOT, start, start_two
from tests.eval.test_knn_segmentation import build
from tests.features.tiny import write_weights


def command(root: Path, protocol: str) -> list[str]:
    if protocol == "vos":
        fields = {"data.path": build_davis(root / "data"), "vos.short_side": 40, "vos.radius": 3}
    else:
        fields = {"data.path": build(root / "data"), "data.set": "folder"}
        fields |= {"knn_segmentation.image_px": 16, "knn_segmentation.ks": "(1,3)"}
        fields |= {"knn_segmentation.count": 2}
    fields["checkpoint"] = write_weights(root / "bundle")
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["main", f"--config={ROOT / f'configs/eval/{protocol}.py'}", *given]


@pytest.mark.parametrize("protocol", ["vos", "knn_segmentation"])
def test_two_processes_change_nothing(protocol, tmp_path):
    line, found = command(tmp_path, protocol), []
    for name, run in (("one", lambda line: [start(line, 1)]), ("two", start_two)):
        started = run([*line, f"--workdir={tmp_path / name}"])
        said = [process.communicate()[0] for process in started]
        assert not any(process.returncode for process in started), said
        stored = json.loads((tmp_path / name / "results.json").read_text())
        found.append(values(stored, protocol))
    assert found[1] == pytest.approx(found[0], abs=1e-6)
