"""The step at best, by bytes of a small TPU program that are known by hand and made-up FLOPs."""

# ruff: noqa: E501 - XLA writes an instruction in a line.

import dataclasses

import jax
import pytest

from dinov2_jax.plan import plan
from dinov2_jax.plan.estimate import Traffic, estimate, read_traffic
from dinov2_jax.plan.hlo import kernels, read_program
from dinov2_jax.plan.text import at_best, best_lines, summary
from dinov2_jax.plan.topology import Target
from tests.plan.toy import CHIP, plan_config, toy_trial

# A loop of 5 turns: a product of x [8, 4] with one of eight slices of a table [8, 4, 2], through a
# fusion inside a fusion, and a sum in VMEM. Before it, x is copied to VMEM.
PROGRAM = """
HloModule small

%taken (p.0: f32[8,4,2], p.1: s32[]) -> f32[1,4,2] {
  %p.0 = f32[8,4,2]{2,1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %row = f32[1,4,2]{2,1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %p.1, %p.1), dynamic_slice_sizes={1,4,2}
}

%multiplied (p.2: f32[8,4], p.3: f32[8,4,2], p.4: s32[]) -> f32[8,2] {
  %p.2 = f32[8,4]{1,0:T(8,128)S(1)} parameter(0)
  %p.3 = f32[8,4,2]{2,1,0:T(8,128)} parameter(1)
  %p.4 = s32[]{:T(128)S(6)} parameter(2)
  %one = f32[1,4,2]{2,1,0:T(8,128)} fusion(%p.3, %p.4), kind=kLoop, calls=%taken
  ROOT %dot = f32[8,2]{1,0:T(8,128)} convolution(%p.2, %one), dim_labels=bf_io->bf
}

%added (p.5: f32[8,2]) -> f32[8,2] {
  %p.5 = f32[8,2]{1,0:T(8,128)} parameter(0)
  ROOT %sum = f32[8,2]{1,0:T(8,128)S(1)} add(%p.5, %p.5)
}

%body (state: (s32[], f32[8,4], f32[8,4,2])) -> (s32[], f32[8,4], f32[8,4,2]) {
  %state = (s32[]{:T(128)S(6)}, f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4,2]{2,1,0:T(8,128)}) parameter(0)
  %turn = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %table = f32[8,4,2]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %product = f32[8,2]{1,0:T(8,128)} fusion(%x, %table, %turn), kind=kOutput, calls=%multiplied
  %sums = f32[8,2]{1,0:T(8,128)S(1)} fusion(%product), kind=kLoop, calls=%added
  ROOT %next = (s32[]{:T(128)S(6)}, f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4,2]{2,1,0:T(8,128)}) tuple(%turn, %x, %table)
}

%goes_on (state.1: (s32[], f32[8,4], f32[8,4,2])) -> pred[] {
  %most = s32[]{:T(128)} constant(5)
  %state.1 = (s32[]{:T(128)S(6)}, f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4,2]{2,1,0:T(8,128)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %most), direction=LT
}

ENTRY %main (x.1: f32[8,4], table.1: f32[8,4,2], zero: s32[]) -> f32[8,4,2] {
  %x.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %table.1 = f32[8,4,2]{2,1,0:T(8,128)} parameter(1)
  %zero = s32[]{:T(128)S(6)} parameter(2)
  %space = f32[8,4,2]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %moving = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x.1)
  %moved = f32[8,4]{1,0:T(8,128)S(1)} copy-done(%moving)
  %start = (s32[]{:T(128)S(6)}, f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4,2]{2,1,0:T(8,128)}) tuple(%zero, %moved, %table.1)
  %loop = (s32[]{:T(128)S(6)}, f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4,2]{2,1,0:T(8,128)}) while(%start), condition=%goes_on, body=%body
  ROOT %result = f32[8,4,2]{2,1,0:T(8,128)} get-tuple-element(%loop), index=2
}
"""


def test_bytes_of_a_tpu_program():
    found = {
        k.instruction.name: (k.times, k.read, k.written) for k in kernels(read_program(PROGRAM))
    }
    assert found == {
        "moving": (1, 128, 0),  # from main memory to VMEM
        "product": (5, 32, 64),  # one slice of the table; x is in VMEM
        "sums": (5, 64, 0),
    }


def test_a_product_hides_its_bytes():
    assert read_traffic(PROGRAM) == Traffic(beside_products=128 + 5 * 96, alone=5 * 64)


@pytest.mark.parametrize(
    ("traffic", "step", "products"),
    [
        (Traffic(int(1e9), int(2e9)), 4 + 2, 4),  # FLOPs hide the bytes beside them
        (Traffic(int(6e9), int(2e9)), 6 + 2, 6),  # and those the FLOPs
        (Traffic(0, 0), 4, 4),
    ],
)
def test_time_by_hand(traffic, step, products):
    # The toy chip does 1e12 FLOP/s and moves 1e9 bytes/s.
    found = estimate(CHIP, traffic, model=3e12, executed=4e12)
    assert found == pytest.approx((step, products, 3 / step))


def test_each_device_computes_its_share():
    target = Target("toy", jax.devices(), CHIP)
    trial = dataclasses.replace(
        toy_trial(500, batch=64, mesh=(2, 2, 2)), traffic=Traffic(0, int(5e8))
    )
    flops = {"model": 1e11, "executed": 1.25e11}
    # 64 images on 8 devices, also where a mesh splits products: 8 each.
    found = at_best(target, trial, flops)
    assert found == pytest.approx((1.5, 1.0, 0.8 / 1.5))
    (line,) = best_lines(target, trial, flops)
    assert "1.50 s a step (1.00 s of it matrix products), MFU 53%" in line
    written = summary(plan_config(), target, trial, flops)
    assert written["at_best"]["step_s"] == pytest.approx(1.5)
    assert written["traffic_bytes"] == {"beside_products": 0, "alone": 500_000_000}


def test_what_is_not_known_is_not_estimated():
    flops = {"model": 1e11, "executed": 1e11}
    unknown = dataclasses.replace(toy_trial(500), traffic=Traffic(1, 1))
    assert at_best(Target("cpu", jax.devices(), None), unknown, flops) is None
    assert best_lines(Target("toy", jax.devices(), CHIP), toy_trial(None), flops) == []


def test_a_tried_setting_is_estimated_with_its_own_recomputation(monkeypatch, capsys):
    first = toy_trial(1500, batch=40, mesh=(1, 8, 1))
    tried = toy_trial(900, batch=40, mesh=(1, 8, 1), fits=True, **{"model.remat": "blocks"})
    tried = dataclasses.replace(tried, traffic=Traffic(0, 0))
    monkeypatch.setattr(plan, "try_setting", lambda *_: first)
    monkeypatch.setattr(plan, "search", lambda *_: [tried])
    executed = {"none": 1e12, "blocks": 2e12}
    monkeypatch.setattr(
        plan, "step_flops", lambda c: {"model": 1e12, "executed": executed[c.model.remat]}
    )
    results = plan.make_plan(plan_config(), Target("toy", jax.devices(), CHIP), [], "")
    # 5 images a device at 2 TFLOP each.
    assert results["settings"][1]["at_best"] == {
        "step_s": pytest.approx(10.0),
        "products_s": pytest.approx(10.0),
        "mfu": pytest.approx(0.5),
    }
    assert "10.00 s a step" in capsys.readouterr().out
