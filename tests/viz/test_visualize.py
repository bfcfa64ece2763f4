"""Task "visualize" from the command line to the page, on tiny random weights."""

import base64
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from dinov2_jax.data.preprocess import Preprocessing
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.heads.dense_head import DenseHead
from dinov2_jax.main import main
from dinov2_jax.models.segmentation import initial_statistics
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.viz.look import fit_to_patches, look, read_pictures
from dinov2_jax.weights.bundle import write_bundle
from dinov2_jax.weights.load import Backbone

ROOT = Path(__file__).resolve().parents[2]
PATCH = 8
SIZES = [(40, 40), (30, 60), (64, 40), (50, 50), (200, 20)]


@pytest.fixture(scope="module")
def model() -> tuple[VisionTransformer, Any]:
    options: dict[str, Any] = {"dim": 12, "depth": 2, "heads": 3, "registers": 2}
    model = VisionTransformer(
        **options, patch_size=PATCH, image_size=32, layerscale=1.0, interpolate_offset=0.0
    )
    images = np.zeros((1, 32, 32, 3), np.float32)
    return model, model.init(jax.random.key(0), images)["params"]


@pytest.fixture(scope="module")
def weights(model: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny"
    write_bundle(path, *model, Preprocessing(resize_px=32, image_px=32), "a test")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(path / f"{number}.png")
    (path / "broken.jpg").write_bytes(b"no picture")
    return path


def command(weights: Path, folder: Path, workdir: Path, *more: str) -> list[str]:
    given = {"weights": weights, "data.path": folder, "image_px": 32, "matching.pairs": 2}
    flags = [f"--config.{name}={value}" for name, value in given.items()]
    config = f"--config={ROOT / 'configs/visualize.py'}"
    return ["main", config, f"--workdir={workdir}", *flags, *more]


@pytest.fixture(scope="module")
def drawn(weights: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("drawn") / "new"
    assert main(command(weights, folder, workdir)) == 0
    return workdir


def test_all_pictures_are_files_and_in_the_page(drawn: Path) -> None:
    names = ["pca", "matches_1", "matches_2", "attention_1", "attention_2", "attention_3"]
    names += ["neighbours", "plane"]
    assert sorted(p.name for p in drawn.glob("*")) == sorted(
        [*(f"{name}.png" for name in names), "pictures.html"]
    )
    page = (drawn / "pictures.html").read_text(encoding="utf-8")
    held = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(png) for png in held] == [
        (drawn / f"{name}.png").read_bytes() for name in names
    ]
    assert "http" not in page and "<script" not in page
    for text in ("joint PCA", "nearest by cosine", "softmax in fp32", "linear projection"):
        assert text in page


def test_unreadable_pictures_are_named(drawn: Path) -> None:
    page = (drawn / "pictures.html").read_text(encoding="utf-8")
    assert '<li class="warning">warning: broken.jpg is left out' in page


def test_the_same_again(drawn: Path, weights: Path, folder: Path, tmp_path: Path) -> None:
    assert main(command(weights, folder, tmp_path)) == 0
    for file in drawn.glob("*.png"):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_names_choose_and_order(weights: Path, folder: Path, tmp_path: Path) -> None:
    more = (
        "--config.names=3.png, 0.png",
        "--config.folder_pictures=0",
        "--config.matching.pairs=0",
    )
    assert main(command(weights, folder, tmp_path, *more, "--config.attention.pictures=1")) == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["attention_1.png", "pca.png"]
    assert "<figcaption>3.png: 3 heads." in (tmp_path / "pictures.html").read_text()
    sheet = np.asarray(Image.open(tmp_path / "pca.png"))
    assert sheet.shape == (2 * (312 + 22) + 8 + 32, 3 * 312 + 2 * 8 + 32, 3)


def test_one_picture_is_enough(weights: Path, folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "0.png").write_bytes((folder / "0.png").read_bytes())
    assert main(command(weights, alone, tmp_path / "out")) == 0
    page = (tmp_path / "out" / "pictures.html").read_text()
    assert "no matches: they need two pictures" in page and "no neighbours" in page


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.weights="], "config.weights is empty; add --config.weights=dinov2_vits14"),
        (["--config.weights=nowhere"], "neither a path nor one of"),
        (["--config.data.path="], "needs data.path"),
        (["--config.image_px=35"], "patch of 8 px; nearest valid: --config.image_px=32"),
        (["--config.block=2"], "the weights have 2 blocks; choose 0 to 1, or -1"),
        (["--config.names=7.png"], "'7.png', which is not among the 6 pictures; did you mean"),
        (["--config.names=broken.jpg"], "none of the 1 pictures can be used"),
        (["--config.pca.side=up"], "one of auto, high, low"),
        (["--config.pictures=0"], "config.pictures is 0, but must be at least 1"),
        (["--workdir="], "--workdir needs a value"),
        (["--config.which=mentor"], "config.which is 'mentor'"),
    ],
)
def test_mistakes_are_one_sentence(
    flags: list[str],
    message: str,
    weights: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(weights, folder, tmp_path / "out", *flags)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_without_a_workdir(weights: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [a for a in command(weights, folder, Path("x")) if not a.startswith("--workdir")]
    assert main(argv) == 2
    assert "add --workdir=runs/pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "grid"),
    [((40, 40), (4, 4)), ((30, 60), (4, 8)), ((64, 44), (6, 4)), ((200, 20), (8, 4))],
)
def test_pictures_keep_their_shape(size: tuple[int, int], grid: tuple[int, int]) -> None:
    fitted = fit_to_patches(np.zeros((*size, 3), np.uint8), 32, PATCH)
    assert fitted.shape == (grid[0] * PATCH, grid[1] * PATCH, 3)


def test_a_view_is_the_model_s_own_output(model: tuple, folder: Path) -> None:
    source = open_source("folder", str(folder), split="all")
    pictures, notes = read_pictures(source, [1, 5], 32, PATCH, 10**6)
    assert [p.name for p in pictures] == ["1.png"] and len(notes) == 1
    backbone = Backbone(*model, Preprocessing(), {}, "tiny", "bundle", ())
    (view,) = look(backbone, pictures)
    pixels = pictures[0].pixels[None].astype(np.float32) / 255
    images = (pixels - np.array(Preprocessing.mean)) / np.array(Preprocessing.std)
    out = model[0].apply({"params": model[1]}, images.astype(np.float32))
    np.testing.assert_allclose(view.cls, out["cls"][0], atol=1e-5)
    np.testing.assert_allclose(view.patches.reshape(32, 12), out["patches"][0], atol=1e-5)
    assert view.attention.shape == (3, 4, 8) and (view.attention.sum(axis=(1, 2)) < 1).all()
    (early,) = look(backbone, pictures, block=0)
    assert np.abs(early.patches - view.patches).max() > 0.01


ODD = (b"latin\xff.png", b"a\nb.png", b"a\tb.png", b"<b>.png", b"a,b.png", b"a&'\".png")


def test_pictures_with_odd_names_are_drawn_and_named(
    weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd, out = tmp_path / "odd", tmp_path / "out"
    odd.mkdir()
    for name in ODD:
        (odd / os.fsdecode(name)).write_bytes((folder / "0.png").read_bytes())
    (odd / os.fsdecode(b"\xfe<i>\n.png")).write_bytes(b"no picture")
    assert main(command(weights, odd, out, "--config.pictures=7")) == 0
    page = (out / "pictures.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "<i>" not in page and "\\udcfe&lt;i&gt;\\n.png is left out" in page
    named = command(weights, odd, out, "--config.names=a,b.png", "--config.folder_pictures=0")
    assert main(named) == 0
    assert "a,b.png: 3 heads" in (out / "pictures.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(command(weights, odd, out, "--config.names=\udcfe\n.png")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.encode("utf-8")


def dense_head(kind: str, width: int, **more: Any) -> DenseHead:
    rng = np.random.default_rng(0)
    outputs = 3 if kind == "segmentation" else 16
    params: dict[str, Any] = {"kernel": rng.standard_normal((width, outputs))}
    params["bias"] = np.zeros(outputs)
    if kind == "segmentation":
        params["bn"] = {"scale": np.ones(width), "bias": np.zeros(width)}
        more["statistics"] = initial_statistics(width)
    return DenseHead(kind, jax.tree.map(np.float32, params), **more)


def test_heads_of_pixels_are_drawn_for_each_picture(
    weights: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("grass", "<sky>", "road")
    dense_head("segmentation", 12, class_names=names, name="mine").save(tmp_path / "m.safetensors")
    dense_head("depth_linear", 24, low=0.5, high=20.0).save(tmp_path / "d.safetensors")
    heads = [
        f"--config.segmentation.head={tmp_path / 'm.safetensors'}",
        f"--config.depth.head={tmp_path / 'd.safetensors'}",
    ]
    few = ["--config.folder_pictures=0", "--config.matching.pairs=0", "--config.pictures=6"]
    assert main(command(weights, folder, tmp_path / "out", *heads, *few)) == 0
    page = (tmp_path / "out/pictures.html").read_text(encoding="utf-8")
    for number in range(1, 6):
        for kind in ("segmentation", "depth"):
            assert (tmp_path / f"out/{kind}_{number}.png").is_file()
    assert "by the head mine" in page and "of 3 classes." in page and "0.5 to 20 m" in page
    capsys.readouterr()
    for flags, message in (
        ([heads[1].replace("depth", "segmentation")], "is a depth head, but a segmentation"),
        (["--config.depth.head=nowhere.pth"], "there is no head nowhere.pth"),
        ([heads[1], "--config.depth.high=-1"], "config.depth.high is -1"),
    ):
        assert main(command(weights, folder, tmp_path / "other", *flags)) == 2
        assert message in capsys.readouterr().err
    dense_head("segmentation", 13).save(tmp_path / "m.safetensors")
    assert main(command(weights, folder, tmp_path / "other", heads[0])) == 2
    assert "reads 13 values, which a backbone of width 12" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
