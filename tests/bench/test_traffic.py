"""Bytes of programs that are known by hand, causes, the prediction, and the command line."""

# ruff: noqa: E501 - XLA writes an instruction in a line.

import importlib.util
import json

import pytest

from dinov2_jax.bench import traffic
from dinov2_jax.plan.hlo import kernels, read_program

NO_COMPILER = importlib.util.find_spec("jax_cuda13_plugin") is None

# x [8, 4] and w [4, 2]: a loop of 3 turns adds, a fusion gathers 2 rows of a table, another writes
# one row in place, a product calls cuBLAS.
PROGRAM = """
HloModule small

FileNames
1 "/somewhere/dinov2_jax/train/optimizer.py"

FunctionNames
1 "AdamW.update"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%added (p.0: f32[8,4], p.1: f32[8,4]) -> f32[8,4] {
  %p.0 = f32[8,4]{1,0} parameter(0)
  %p.1 = f32[8,4]{1,0} parameter(1)
  ROOT %sum = f32[8,4]{1,0} add(%p.0, %p.1)
}

%taken (p.2: f32[100,4], p.3: s32[2]) -> bf16[2,4] {
  %p.2 = f32[100,4]{1,0} parameter(0)
  %p.3 = s32[2]{0} parameter(1)
  %rows = f32[2,4]{1,0} gather(%p.2, %p.3), offset_dims={1}
  ROOT %low = bf16[2,4]{1,0} convert(%rows)
}

%written (p.4: f32[100,4], p.5: f32[1,4], p.6: s32[]) -> f32[100,4] {
  %p.4 = f32[100,4]{1,0} parameter(0)
  %p.5 = f32[1,4]{1,0} parameter(1)
  %p.6 = s32[] parameter(2)
  ROOT %in_place = f32[100,4]{1,0} dynamic-update-slice(%p.4, %p.5, %p.6, %p.6)
}

%body (state: (f32[8,4], f32[8,4])) -> (f32[8,4], f32[8,4]) {
  %state = (f32[8,4]{1,0}, f32[8,4]{1,0}) parameter(0)
  %one = f32[8,4]{1,0} get-tuple-element(%state), index=0
  %other = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %add_fusion = f32[8,4]{1,0} fusion(%one, %other), kind=kLoop, calls=%added, metadata={stack_frame_id=1}
  ROOT %next = (f32[8,4]{1,0}, f32[8,4]{1,0}) tuple(%add_fusion, %other)
}

ENTRY %main (x: f32[8,4], w: f32[4,2], table: f32[100,4], index: s32[2], at: s32[]) -> f32[8,2] {
  %x = f32[8,4]{1,0} parameter(0)
  %w = f32[4,2]{1,0} parameter(1)
  %table = f32[100,4]{1,0} parameter(2)
  %index = s32[2]{0} parameter(3)
  %at = s32[] parameter(4)
  %start = (f32[8,4]{1,0}, f32[8,4]{1,0}) tuple(%x, %x)
  %loop = (f32[8,4]{1,0}, f32[8,4]{1,0}) while(%start), condition=%never_read, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %last = f32[8,4]{1,0} get-tuple-element(%loop), index=0
  %gather_fusion = bf16[2,4]{1,0} fusion(%table, %index), kind=kLoop, calls=%taken, metadata={op_name="jit(f)/Block/norm1/add"}
  %row = f32[1,4]{1,0} slice(%last), slice={[0:1], [0:4]}
  %update_fusion = f32[100,4]{1,0} fusion(%table, %row, %at), kind=kLoop, calls=%written
  %product = (f32[8,2]{1,0}, s8[4096]{0}) custom-call(%last, %w), custom_call_target="__cublas$lt$matmul"
  ROOT %result = f32[8,2]{1,0} get-tuple-element(%product), index=0
}
"""


def test_bytes_of_a_small_program():
    program = read_program(PROGRAM)
    assert {k.instruction.name: (k.times, k.read, k.written) for k in kernels(program)} == {
        "add_fusion": (3, 2 * 128, 128),
        "gather_fusion": (1, 2 * 16 + 8, 16),  # two rows of the table and their numbers
        "row": (1, 16, 16),
        "update_fusion": (1, 16 + 4, 16),  # nothing of the table
        "product": (1, 128 + 32, 64),  # without the library's work space
    }


def test_causes_and_the_prediction():
    found, count = traffic.by_cause(read_program(PROGRAM))
    assert found == {"optimizer": 1152, "products": 224, "norms": 56, "padding": 32, "other": 36}
    assert count == 7
    seconds = traffic.predicted_s(found, 650e12, 1e3)
    assert seconds == pytest.approx(1 + (1152 + 56 + 32 + 36) / 850)


def test_devices_and_batch_of_the_command_line(capsys):
    config, devices = traffic.configured("configs/vitg14.py", ["--config.mesh.fsdp=8"], 12)
    assert (devices, config.batch_size, config.group_size) == (8, 96, 12)
    config, devices = traffic.configured("configs/vitl16_short.py", [], 48)
    assert (devices, config.batch_size, config.group_size) == (1, 48, 48)
    assert "group_size 64 does not divide 48" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--config.model.scan_blocks=true"], "did you mean config.model.blocks"),
        (["--device=h1000"], "did you mean h100"),
        (["--batch=-3"], "config.batch_size is -3"),
        (["--config=nothing"], "nothing"),
        (["--batch=64", "--config.micro_batches=7"], "7"),
    ],
)
def test_wrong_input_is_one_sentence(flags, sentence):
    with pytest.raises(SystemExit, match=r"^error: ") as error:
        traffic.main(flags)
    assert sentence in str(error.value)


# GB of a step of four blocks and GiB of its temporaries: 63.1 and 6.3, 118.3 and 15.4, and 3 % more.
LIMITS = {
    ("vit_large", 64): (65.0, 6.5),
    ("vit_small", 256): (121.8, 15.9),
}


@pytest.mark.skipif(NO_COMPILER, reason="needs jax-cuda13-plugin, the extra gpu-plan")
@pytest.mark.parametrize(("variant", "batch"), LIMITS)
def test_the_step_moves_no_more_than_it_did(variant, batch, tmp_path):
    path = tmp_path / "report.json"
    model = [f"--config.model.variant={variant}", "--config.model.depth=4"]
    assert traffic.main([f"--batch={batch}", f"--json={path}", *model]) == 0
    report = json.loads(path.read_text())
    gb, temporaries = LIMITS[variant, batch]
    assert report["gb"] <= gb
    assert report["temporaries_gib"] <= temporaries
    assert report["fits"] and set(report) == set(traffic.Report._fields)
