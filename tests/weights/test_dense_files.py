"""Head files in the released format: what is read, dropped, refused and written back."""

import dataclasses
import os

import numpy as np
import pytest

from dinov2_jax.heads.dense_head import DenseHead, load_dense
from dinov2_jax.heads.load import load_head
from dinov2_jax.weights import hub
from dinov2_jax.weights.dense import keys_of, names_of
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.hub import DEPTHS, RELEASED_HEADS, head_name, head_set

torch = pytest.importorskip("torch")
WIDTH, CLASSES = 24, 5
SEGMENTATION = "dinov2_vits14_ade20k_linear_head.pth"
DEPTH = "dinov2_vits14_nyu_linear_head.pth"


def state_dict(kind="segmentation", width=WIDTH, outputs=CLASSES):
    """Random tensors under the released names, of the shapes that the released files have."""
    torch.manual_seed(0)
    shapes = {
        "decode_head.conv_seg.weight": (outputs, width, 1, 1),
        "decode_head.conv_seg.bias": (outputs,),
        **{f"decode_head.bn.{k}": (width,) for k in ("weight", "bias", "running_mean")},
    }
    if kind == "depth":
        shapes = {
            "decode_head.conv_depth.weight": (256, 2 * width, 1, 1),
            "decode_head.conv_depth.bias": (256,),
        }
    found = {name: torch.randn(shape) for name, shape in shapes.items()}
    if kind == "segmentation":
        found["decode_head.bn.running_var"] = torch.rand(width) + 0.5
        found["decode_head.bn.num_batches_tracked"] = torch.tensor(40000)
    return found


def wrapped(state):
    """As mmcv's runner saves it: with the best score as a number of numpy, and AdamW's moments."""
    moments = {"step": 40000, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    return {
        "meta": {"epoch": 1, "iter": 40000, "hook_msgs": {"best_score": np.float64(0.47)}},
        "state_dict": state,
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    }


def write(path, content):
    torch.save(content, path)
    return path


def same(head, state):
    """Whether a segmentation head has the tensors of a state dict."""
    given = {name.removeprefix("decode_head."): np.asarray(x) for name, x in state.items()}
    weight = given["conv_seg.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(head.params["kernel"], weight)
    np.testing.assert_array_equal(head.params["bn"]["scale"], given["bn.weight"])
    np.testing.assert_array_equal(head.statistics.var, given["bn.running_var"])
    assert head.statistics.batches == given["bn.num_batches_tracked"]


def test_wrapped_bare_and_parallel_files_are_the_same_head(tmp_path):
    state = state_dict()
    parallel = {f"module.{name}": x for name, x in state.items()}
    for number, content in enumerate((state, wrapped(state), parallel, wrapped(parallel))):
        (tmp_path / str(number)).mkdir()
        head = load_head(write(tmp_path / str(number) / SEGMENTATION, content))
        same(head, state)
        assert (head.kind, head.classes, head.width) == ("segmentation", CLASSES, WIDTH)
        assert head.name == "dinov2_vits14_ade20k_linear_head" and head.blocks == ()


def test_numbers_of_numpy_are_read_and_other_objects_refused(tmp_path):
    for number in (np.float32(1), np.float64(1), np.int64(3), np.bool_(True)):
        content = wrapped(state_dict())
        content["meta"]["best"] = number
        same(load_head(write(tmp_path / SEGMENTATION, content)), state_dict())

    class Runs:
        def __reduce__(self):
            return os.mkdir, (os.fspath(tmp_path / "ran"),)

    content["meta"]["best"] = Runs()
    with pytest.raises(WeightsError, match="holds more than tensors, so reading it could run"):
        load_head(write(tmp_path / SEGMENTATION, content))
    assert not (tmp_path / "ran").exists()


def test_the_range_of_depth_follows_from_the_set(tmp_path):
    for data, (low, high) in {"nyu": (0.001, 10), "kitti": (0.001, 80)}.items():
        path = tmp_path / f"dinov2_vits14_{data}_linear_head.pth"
        head = load_head(write(path, wrapped(state_dict("depth"))))
        assert (head.kind, head.low, head.high) == ("depth_linear", low, high)
    path = write(tmp_path / "mine.pth", state_dict("depth"))
    with pytest.raises(WeightsError, match=r"range of its depth.* low=0.001, high=10.0"):
        load_head(path)
    assert load_head(path, low=0.1, high=20).high == 20
    with pytest.raises(ValueError, match="from 20 to 10 m, which is no range"):
        load_head(path, low=20, high=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.scale": (3,)}, "compared with the nearest it has decode_head.scale; save"),
        ({"backbone.cls_token": (1, 1, 3)}, "compared with the nearest it has backbone.cls_token"),
        ({"decode_head.bn.bias": None}, "compared with the nearest it lacks decode_head.bn.bias"),
        ({"decode_head.bn.bias": (7,)}, "no whole head: bn/bias does not fit"),
        ({"decode_head.bn.running_mean": (7,)}, "no whole head: running statistics"),
        ({"decode_head.conv_seg.weight": (5, 24, 3, 3)}, "is damaged, .*in place of 1 x 1"),
    ],
)
def test_names_and_shapes_that_do_not_belong(change, message, tmp_path):
    state = state_dict()
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.zeros(shape)
    with pytest.raises(WeightsError, match=message):
        load_head(write(tmp_path / SEGMENTATION, state))


def test_damaged_files_are_one_sentence(tmp_path):
    path = write(tmp_path / SEGMENTATION, wrapped(state_dict()))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"damaged or truncated .*download it again"):
        load_head(path)
    state = state_dict()
    state["decode_head.bn.weight"][3] = float("nan")
    with pytest.raises(WeightsError, match="NaN or infinity, such as in decode_head"):
        load_head(write(path, state))
    with pytest.raises(WeightsError, match="no segmentation or depth head: it holds weight, bias"):
        load_dense(write(path, {"weight": torch.zeros(5, 48), "bias": torch.zeros(5)}))


def test_the_other_kind_is_refused(tmp_path):
    write(tmp_path / SEGMENTATION, state_dict())
    write(tmp_path / DEPTH, state_dict("depth"))
    with pytest.raises(WeightsError, match="is a segmentation head, but a depth head is needed"):
        load_dense(tmp_path / SEGMENTATION, "depth")
    with pytest.raises(WeightsError, match="is a depth head, but a segmentation head is needed"):
        load_dense(tmp_path / DEPTH, "segmentation")
    with pytest.raises(ValueError, match="is a segmentation head; leave out low and high"):
        load_head(tmp_path / SEGMENTATION, low=1, high=2)


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_pth_and_back_has_the_same_keys_and_values(kind, tmp_path):
    state = state_dict(kind)
    head = load_head(write(tmp_path / (DEPTH if kind == "depth" else SEGMENTATION), state))
    head = dataclasses.replace(head, name="mine", identity="w:d", metadata={"iterations": 5})
    if kind == "segmentation":
        names = tuple("abcde")
        colours = np.arange(15, dtype=np.uint8).reshape(5, 3)
        head = dataclasses.replace(head, class_names=names, colours=colours, blocks=(3,))
    head.save(tmp_path / "new/mine.pth")
    again = torch.load(tmp_path / "new/mine.pth", weights_only=True)
    assert again["state_dict"].keys() == state.keys()
    for name, value in state.items():
        assert again["state_dict"][name].dtype == value.dtype
        assert torch.equal(again["state_dict"][name], value), name
    if kind == "segmentation":
        assert again["meta"]["CLASSES"] == list("abcde") and again["meta"]["PALETTE"][1] == [
            3,
            4,
            5,
        ]
    head.save(tmp_path / "mine.safetensors")
    for path in ("new/mine.pth", "mine.safetensors"):
        check_equal(load_head(tmp_path / path), head)
    with pytest.raises(WeightsError, match=r"name the head .safetensors or .pth"):
        head.save(tmp_path / "mine.npz")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["mine.json", "mine.pth"]


def check_equal(found, head):
    for field in dataclasses.fields(DenseHead):
        ours, theirs = getattr(found, field.name), getattr(head, field.name)
        if field.name in ("params", "statistics"):
            continue
        equal = np.array_equal if field.name == "colours" else lambda a, b: a == b
        assert equal(ours, theirs), field.name
    np.testing.assert_array_equal(found.params["kernel"], head.params["kernel"])


def test_released_names_and_files():
    assert len(RELEASED_HEADS) == 4 * (4 + 4 + 6)
    base = "https://dl.fbaipublicfiles.com/dinov2"
    for name, url in {
        "dinov2_vits14_ade20k_linear": "dinov2_vits14/dinov2_vits14_ade20k_linear_head.pth",
        "dinov2_vitg14_voc2012_ms": "dinov2_vitg14/dinov2_vitg14_voc2012_ms_head.pth",
        "dinov2_vitl14_kitti_dpt": "dinov2_vitl14/dinov2_vitl14_kitti_dpt_head.pth",
        "dinov2_vitb14_reg4_linear4": "dinov2_vitb14/dinov2_vitb14_reg4_linear4_head.pth",
    }.items():
        assert RELEASED_HEADS[name] == f"{base}/{url}"
        assert head_name(name) == head_name(f"{name}_head.pth") == name
    assert head_name("dinov2_vitb14_reg_linear") == "dinov2_vitb14_reg4_linear"
    assert not any("reg4" in name and head_set(name) for name in RELEASED_HEADS)
    assert head_name("dinov2_vits14_reg4_nyu_dpt") == "" and head_set("mine_nyu.pth") == "nyu"
    assert head_set("nyu_or_kitti.pth") == head_set("menyu.pth") == "" and DEPTHS["nyu"][1] == 10
    with pytest.raises(WeightsError, match="a name such as 'dinov2_vits14_ade20k_linear'"):
        load_head("dinov2_vits14_ade20k_lineer")


def test_released_segmentation_heads_name_their_classes(tmp_path):
    path = tmp_path / "dinov2_vits14_voc2012_ms_head.pth"
    head = load_head(write(path, state_dict(outputs=21)))
    assert head.class_names[15] == "person" and head.colours[15].tolist() == [192, 128, 128]
    head = load_head(write(tmp_path / SEGMENTATION, state_dict(outputs=150)))
    assert head.class_names[:3] == ("wall", "building", "sky") and not len(head.colours)
    assert load_head(write(tmp_path / SEGMENTATION, state_dict())).class_names == ()


def test_every_kind_has_as_many_keys_as_the_released_files():
    assert {kind: len(names) for kind, names in names_of().items()} == {
        "segmentation": 7, "depth_linear": 2, "depth_dpt": 56,
    }  # fmt: skip
    assert "resize_layers_2/kernel" not in keys_of("depth_dpt").values()


def test_a_name_is_downloaded_once_and_whole(tmp_path, monkeypatch):
    name = "dinov2_vits14_ade20k_linear"
    source = write(tmp_path / SEGMENTATION, wrapped(state_dict()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setitem(RELEASED_HEADS, name, source.as_uri())
    same(load_head(name), state_dict())
    kept = tmp_path / "cache/dinov2_jax/heads" / SEGMENTATION
    assert kept.read_bytes() == source.read_bytes()
    source.unlink()
    same(load_head(name), state_dict())
    kept.unlink()
    with pytest.raises(WeightsError, match=rf"could not be downloaded .*fetch file:.*{name}_head"):
        load_head(name)
    assert not list(kept.parent.iterdir())
    downloads = tmp_path / "cache/torch/hub/checkpoints"
    downloads.mkdir(parents=True)
    write(downloads / SEGMENTATION, state_dict())
    same(load_head(name), state_dict())


def test_a_cut_download_leaves_nothing(tmp_path, monkeypatch):
    class Cut:
        headers = {"Content-Length": "100"}  # noqa: RUF012

        def __init__(self):
            self.blocks = [b"x" * 60, b""]

        def read(self, size):
            return self.blocks.pop(0)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda url, timeout: Cut())
    with pytest.raises(WeightsError, match="60 of 100 bytes came"):
        load_head("dinov2_vits14_nyu_dpt")
    assert not list((tmp_path / "dinov2_jax/heads").iterdir())
