"""A small budget of damaged inputs; python -m tests.soak fuzz has the whole one."""

import time

import pytest

from tests.soak import fuzz

CASES = {"weights": 30, "settings": 30}  # each loads a model; 150 of every other kind


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged headers
@pytest.mark.parametrize("name", fuzz.KINDS)
def test_damaged_inputs_are_right_skipped_or_refused(name, tmp_path):
    before = fuzz.peak_mb()
    for number in range(CASES.get(name, 150)):
        start = time.monotonic()
        try:
            assert fuzz.run_case(name, number, tmp_path) in ("right", "skipped", "refused")
        except BaseException as error:
            pytest.fail(f"{name} {number}: {type(error).__name__}: {error}")
        assert time.monotonic() - start < fuzz.LIMIT_S
    assert fuzz.peak_mb() - before < fuzz.MEMORY_MB


def test_the_same_number_is_the_same_case():
    for name in fuzz.KINDS:
        assert fuzz.case(name, 7) == fuzz.case(name, 7) != fuzz.case(name, 8)
