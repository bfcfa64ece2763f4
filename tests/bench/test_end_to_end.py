"""Training from files: our side of the benchmark, and what it prints."""

import argparse
import io

import jax
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.bench import end_to_end, step
from dinov2_jax.bench.harness import BenchError
from dinov2_jax.bench.ours import end_to_end as ours
from tests.bench.test_draws import arguments


@pytest.fixture(autouse=True)
def default_precision():
    before = jax.config.jax_default_matmul_precision
    yield
    jax.config.update("jax_default_matmul_precision", before)


@pytest.fixture
def photos(tmp_path):
    """A list of three JPEG files."""
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        with io.BytesIO() as out:
            Image.fromarray(pixels).save(out, "JPEG")
            (tmp_path / f"{number}.jpg").write_bytes(out.getvalue())
    file = tmp_path / "photos.txt"
    file.write_text("".join(f"{tmp_path}/{number}.jpg\n" for number in range(3)))
    return str(file)


def case(photos):
    sizes = {"batch": 2, "depth": 1, "global_size": 32, "local_size": 16, "prototypes": 32}
    config = step.recipe(arguments(**sizes, dtype="float32"))
    config["data"]["workers"] = 0
    config["model"]["dim"] = config["dino"]["head_hidden_dim"] = 24
    args = argparse.Namespace(
        batch=2, check_images=5, threads=1, device="cpu", seed=0, peers=["torch"]
    )
    return end_to_end.case_of(args, config, photos, {})


def test_a_turn_trains_on_new_batches_and_leaves_no_loader(photos):
    side = ours.side(case(photos).settings)
    training = side.run.__self__
    batch = training.files.config.batch_size
    for turn in (1, 2):
        with side.around():
            assert training.number == 5 * turn - 3  # two steps come before the clock
            side.run(3)
        # Photos go on where they were, whoever took them.
        assert training.number == 5 * turn
        assert training.files.start == batch * training.number
    assert int(training.state.step) == 10 and int(training.state.nonfinite_steps) == 0
    for name, start in (("synthetic", 10), ("loader", 15)):
        with side.parts[name].around():
            side.parts[name].run(3)
        assert training.files.start == batch * start
    assert training.number == int(training.state.step) == 13


def test_check_is_of_the_step_and_of_the_crops(photos):
    found = ours.side(case(photos).check_settings).check()
    assert {name for name in found if not name.startswith("step ")} == {
        "global 1",
        "global 2",
        "local",
    }
    assert "step 2 teacher_norm" in found
    assert all(np.isfinite(value).all() for value in found.values())
    # Noise of full range, normalised: far more than the 1 of a photograph.
    assert found["global 1"][1] > 0.5
    end_to_end.agree(found, found)
    for name, change in (("step 1 dino", 1.01), ("local", 2.0)):
        with pytest.raises(BenchError, match="parity"):
            end_to_end.agree(found, found | {name: found[name] * change})


def test_fractions_are_printed_for_each_side():
    def side(seconds):
        ratio = {"median": 0.91, "least": 0.8, "greatest": 0.99}
        parts = {"synthetic": {"median_s": 1.0, "ratio": ratio}, "loader": {"median_s": 0.5}}
        return {"median_s": seconds, "parts": parts}

    pairs = [
        {"peer": "torch", "ratio": {}, "ours": side(1.25), "theirs": side(5.0)},
        {"peer": "lightly", "skipped": "pip install '.[bench]'"},
    ]
    head, ours_row, torch_row = end_to_end.fractions({"items": 4, "pairs": pairs}).splitlines()
    assert head.split() == ["side", "from", "files/s", "synthetic/s", *head.split()[4:]]
    assert ours_row.split()[3:] == ["3.2", "4", "0.91", "(0.80..0.99)", "8"]
    assert torch_row.split()[:2] == ["torch", "0.8"]
    alone = end_to_end.fractions({"items": 4, "pairs": pairs[1:], "alone": side(2.0)})
    assert alone.splitlines()[1].startswith("ours, alone  2 ")
