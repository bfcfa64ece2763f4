"""Worked values of the schedules, computed from the shipped configurations."""

import pytest

from configs import vitl14, vitl16_short
from dinov2_jax.train.schedules import Schedules, linear_then_constant

SHORT = {
    1: {"lr": 4.5258e-7},
    1249: {"lr": 5.652781e-4, "last_layer_lr": 0.0},
    12499: {"lr": 0.005656854, "last_layer_lr": 0.005656854},
    12500: {"lr": 0.005656854},
    62500: {"lr": 0.003319992, "weight_decay": 0.22, "momentum": 0.996},
    124999: {"lr": 1.000001e-6},
    37499: {"teacher_temp": 0.07},
    200000: {"lr": 1e-6, "weight_decay": 0.4, "momentum": 1.0, "teacher_temp": 0.07},
}
LONG = {
    1: {"lr": 3.46413626e-9, "teacher_temp": 0.0400008},
    100000: {"lr": 3.46410162e-4, "weight_decay": 0.0498954656, "momentum": 0.99437108},
    312500: {"lr": 2.24610797e-4, "weight_decay": 0.12, "momentum": 0.997},
}


@pytest.mark.parametrize(("overlay", "values"), [(vitl16_short, SHORT), (vitl14, LONG)])
def test_worked_values(overlay, values):
    schedules = Schedules(overlay.get_config())
    for step, expected in values.items():
        got = schedules.at(step)
        for name, value in expected.items():
            # The table gives seven digits and more, but five of this one; fp32 keeps seven.
            rel = 2e-5 if value == 4.5258e-7 else 1e-6
            assert got[name] == pytest.approx(value, rel=rel), (step, name)


@pytest.mark.parametrize(("warmup", "values"), [(0, [7, 7]), (1, [4, 7]), (3, [4, 5.5, 7, 7])])
def test_linear_then_constant_is_a_linspace_with_both_ends(warmup, values):
    got = [linear_then_constant(step, 4.0, 7.0, warmup) for step in range(len(values))]
    assert got == values


def test_first_step_has_no_rate():
    assert Schedules(vitl16_short.get_config()).at(0)["lr"] == 0
