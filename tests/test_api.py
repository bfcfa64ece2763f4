"""The Python API: what a notebook sees, and that every documented example runs."""

import ast
import doctest
import importlib
import inspect
import io
import os
import pkgutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import dinov2_jax
from dinov2_jax import api
from dinov2_jax.config.files import ConfigError, load_config
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.errors import EvaluationError
from dinov2_jax.features.extract import extract
from dinov2_jax.heads.dense_head import DenseHead
from dinov2_jax.heads.linear import LinearHead
from dinov2_jax.models.segmentation import initial_statistics
from dinov2_jax.weights.files import WeightsError
from dinov2_jax.weights.load import load
from tests.features import tiny

FUNCTIONS = ("evaluate", "extract", "list_models", "load", "load_head", "pretrain")
# What the first line of an example assigns to.
STORED_IN = {"extract": "found = ", "evaluate": "found = ", "load_head": "head = "}
OPTIONAL = {"av", "torch", "transformers", "timm", "lightly", "torchvision", "faiss", "sklearn"}


def photo(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples expect it: photos/, and labelled/ with two splits of two classes."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    for i in range(8):
        Image.fromarray(photo(i)).save(home / f"photos/{i}.jpg")
    for split, first in (("train", 0), ("val", 10)):
        for number, name in enumerate(("dark", "light")):
            (home / f"labelled/{split}/{name}").mkdir(parents=True)
            for i in range(4):
                pixels = photo(first + i) // 2 + 127 * number
                Image.fromarray(pixels.astype(np.uint8)).save(
                    home / f"labelled/{split}/{name}/{i}.png"
                )
    segmentation_head(64).save(home / "masks.safetensors")
    return home


def segmentation_head(width: int, classes: int = 3) -> DenseHead:
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((width, classes)), "bias": np.zeros(classes)}
    params["bn"] = {"scale": np.ones(width), "bias": np.zeros(width)}
    params = jax.tree.map(np.float32, params)
    return DenseHead("segmentation", params, initial_statistics(width), name="masks")


@pytest.fixture(scope="module")
def backbone() -> api.Backbone:
    return api.Backbone(**vars(tiny.backbone()))


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys, warnings; before = set(sys.modules), list(sys.path), list(warnings.filters)\n"
        "import dinov2_jax; print(sorted(dir(dinov2_jax))[-6:])\n"
        "assert (list(sys.path), list(warnings.filters)) == before[1:]\n"
        "print([n for n in ('jax', 'numpy', 'PIL', 'absl', 'typing') if n in sys.modules"
        " and n not in before[0]])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.splitlines()[0] == str(sorted(FUNCTIONS)), found.stderr
    assert found.stdout.splitlines()[1] in ("[]", "['typing']")


def test_dir_and_help_show_the_functions_with_signature_and_example() -> None:
    assert set(FUNCTIONS) <= set(dir(dinov2_jax)) and set(FUNCTIONS) < set(dinov2_jax.__all__)
    with redirect_stdout(io.StringIO()) as shown:
        help(dinov2_jax)
    for name in FUNCTIONS:
        function = getattr(dinov2_jax, name)
        assert inspect.isfunction(function) and f"{name}(" in shown.getvalue()
        assert f">>> {STORED_IN.get(name, '')}" in function.__doc__
        signature = inspect.signature(function)
        assert all(p.annotation is not p.empty for p in signature.parameters.values())
        assert signature.return_annotation is not signature.empty


def test_the_package_passes_on_the_functions_and_their_options() -> None:
    text = Path(dinov2_jax.__file__).read_text(encoding="utf-8")
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
    (typed,) = [n for n in nodes if n.module == "dinov2_jax.api"]
    assert {alias.name for alias in typed.names} == set(FUNCTIONS)  # for type checkers
    assert all(getattr(dinov2_jax, name) is getattr(api, name) for name in FUNCTIONS)
    assert dinov2_jax.extract is extract
    shown, real = (inspect.signature(f).parameters for f in (dinov2_jax.load, load))
    assert {n: p.default for n, p in shown.items()} == {n: p.default for n, p in real.items()}
    with pytest.raises(AttributeError, match="'dinov2_jax' has no attribute 'lode'"):
        dinov2_jax.lode  # noqa: B018


def test_no_module_shadows_a_function() -> None:
    for module in pkgutil.walk_packages(dinov2_jax.__path__, "dinov2_jax."):
        if module.name.split(".")[1] == "bench":
            continue
        importlib.import_module(module.name)
    assert all(inspect.isfunction(getattr(dinov2_jax, name)) for name in FUNCTIONS)
    assert dinov2_jax.list_models("*reg*") == [f"dinov2_vit{size}14_reg" for size in "sblg"]
    for name, arguments in {
        "load": 1,
        "load_head": 1,
        "extract": 2,
        "evaluate": 2,
        "pretrain": 2,
    }.items():
        with pytest.raises((WeightsError, ConfigError), match="nothing-there"):
            getattr(dinov2_jax, name)(*["nothing-there"] * arguments)


def run_examples() -> None:
    """Runs the examples of all docstrings, in an order in which each finds its files."""
    for name in ("list_models", "pretrain", "load", "load_head", "extract", "evaluate"):
        text = inspect.getdoc(getattr(dinov2_jax, name)) or ""
        test = doctest.DocTestParser().get_doctest(text, {"dinov2_jax": dinov2_jax}, name, "", 0)
        assert test.examples
        for example in test.examples:
            if not example.want:  # what a task prints is no result
                exec(compile(example.source, name, "exec"), test.globs)
            else:
                found = repr(eval(example.source, test.globs))
                assert found == example.want.strip(), (name, found)


@pytest.mark.timeout(600)
def test_every_example_runs(home: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    one_device = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(root)}
    code = "from tests.test_api import run_examples; run_examples()"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env=one_device,
        capture_output=True,
        text=True,
        timeout=570,
    )
    assert found.returncode == 0, found.stderr[-2000:]


def test_repr_is_short(backbone: api.Backbone) -> None:
    lines = repr(backbone).splitlines()
    assert len(lines) == 4 and max(map(len, lines)) < 200
    assert "width 24, 3 blocks, 3 attention heads, patches of 4 px, 2 registers" in lines[1]


def forms(tmp_path: Path) -> dict[str, Any]:
    one = photo(1)
    path = tmp_path / "one.png"
    Image.fromarray(one).save(path)
    return {
        "path": str(path),
        "list of paths": [path, path],
        "PIL": Image.fromarray(one),
        "list of PIL": [Image.fromarray(one)] * 2,
        "one array": one,
        "several arrays": np.stack([one, one]),
        "list of arrays": [one, one],
    }


def test_preprocess_gives_what_the_module_takes(backbone: api.Backbone, tmp_path: Path) -> None:
    model, params = backbone
    expected = backbone.preprocess(photo(1))
    assert expected.dtype == np.float32 and expected.shape == (1, 16, 16, 3)
    direct = jax.jit(model.apply)({"params": params}, expected)["cls"]
    for name, pictures in forms(tmp_path).items():
        images = backbone.preprocess(pictures)
        count = 2 if "list" in name or "several" in name else 1
        np.testing.assert_array_equal(images, np.repeat(expected, count, axis=0), name)
        found = backbone(pictures)["cls"]
        assert found.shape == (count, 24)
        np.testing.assert_allclose(found, np.repeat(direct, count, axis=0), atol=1e-5)


def test_preprocess_refuses_a_picture_that_cannot_be_read(
    backbone: api.Backbone, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0\0 not a picture")
    with pytest.raises(SourceError, match=r"broken.jpg cannot be read"):
        backbone.preprocess(broken)


@pytest.mark.parametrize(("blocks", "avgpool"), [(1, False), (1, True), (2, True)])
def test_heads_are_bound_to_their_backbone(blocks: int, avgpool: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    width = 24 * (blocks + avgpool)
    weight = rng.standard_normal((3, width)).astype(np.float32)
    names = ("cat", "dog", "owl")
    head = LinearHead(weight, np.zeros(3, np.float32), blocks, avgpool, names)
    plain = tiny.backbone()
    head.save(tmp_path / "head.safetensors")
    object.__setattr__(plain, "heads", {"classifier": head.as_stored(), "dino_head": {}})
    backbone = api.Backbone(**vars(plain))
    pictures = [photo(i) for i in range(4)]
    columns = extract(plain, pictures, features=("cls", "mean_patch"), layers=range(3)).arrays
    parts = [columns[f"cls_block_{i}"] for i in range(3 - blocks, 3)]
    parts += [columns["mean_patch_block_2"]] * avgpool
    expected = np.concatenate(parts, axis=1) @ weight.T
    for bound in (
        backbone.heads["classifier"],
        backbone.load_head(tmp_path / "head.safetensors"),
    ):
        np.testing.assert_allclose(bound.logits(pictures), expected, atol=1e-4)
        assert bound.predict(pictures).tolist() == [names[i] for i in expected.argmax(1)]
    assert "3 classes" in repr(backbone.heads["classifier"])


def test_dense_heads_are_bound_to_their_backbone(backbone: api.Backbone, tmp_path: Path) -> None:
    segmentation_head(24).save(tmp_path / "masks.safetensors")
    bound = backbone.load_head(tmp_path / "masks.safetensors")
    assert isinstance(bound, api.DensePredictor)
    found = bound.predict(photo(1))
    assert found.shape == (40, 60) and found.dtype == np.uint8 and len(np.unique(found)) > 1
    head = dinov2_jax.load_head(tmp_path / "masks.safetensors")
    np.testing.assert_array_equal(head.predict(backbone, photo(1)), found)
    segmentation_head(36).save(tmp_path / "wide.safetensors")
    with pytest.raises(EvaluationError, match="reads 36 values, which a backbone of width 24"):
        backbone.load_head(tmp_path / "wide.safetensors")


def test_evaluate_takes_folders_and_pairs(
    backbone: api.Backbone, home: Path, tmp_path: Path
) -> None:
    train, test = home / "labelled/train", home / "labelled/val"
    options: dict[str, Any] = {"knn": {"ks": (1, 3)}, "batch_size": 8}
    kept = tmp_path / "kept"
    found = dinov2_jax.evaluate("knn", backbone, train=train, test=test, workdir=kept, **options)
    assert (kept / "results.json").is_file() and found["results"]["knn"]["labelled"]["complete"]
    assert "top-1" in found.table() and "<table><tr><th>" in found._repr_html_()
    assert repr(found) == found.table()

    def pair(folder: Path, as_arrays: bool) -> tuple[list[Any], list[str]]:
        files = sorted(folder.rglob("*.png"))
        pictures = [np.asarray(Image.open(file)) for file in files] if as_arrays else files
        return pictures, [file.parent.name for file in files]

    pairs = dinov2_jax.evaluate(
        ["knn"], backbone, train=pair(train, True), test=pair(test, False), **options
    )
    assert list(pairs.metrics["knn"].values()) == list(found.metrics["knn"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ([1, 2], [0])}, "train has 2 pictures and 1 labels"),
        ({"train": 5}, r"train must be a folder .* or a pair \(pictures, labels\), but got int"),
        ({"knn": {"kss": 5}}, "unknown field config.knn.kss; did you mean config.knn.ks"),
        ({"knn": {"ks": (0,)}}, "config.knn.ks is .* at least 1"),
        ({"knn": 5}, "config.knn is a group of fields"),
    ],
)
def test_evaluate_refuses_in_one_sentence(
    backbone: api.Backbone, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dinov2_jax.evaluate("knn", backbone, **options)


def test_pretrain_refuses_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the nearest one is --config=quickstart"):
        dinov2_jax.pretrain("quikstart", tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean config.model.dim"):
        dinov2_jax.pretrain("quickstart", tmp_path, model={"dimm": 5})
    with pytest.raises(ConfigError, match=r"config.total_steps expects a whole number"):
        dinov2_jax.pretrain("quickstart", tmp_path, total_steps=1.5)
    with pytest.raises(ConfigError, match="configuration of the task 'eval'"):
        dinov2_jax.pretrain("eval/knn", tmp_path)
    config = load_config("quickstart").lock()
    with pytest.raises(ConfigError, match=r"config.batch_size 100 is not a multiple"):
        dinov2_jax.pretrain(config, tmp_path, batch_size=100)
    assert config.batch_size == 128


def test_a_wrong_name_is_answered_by_the_nearest() -> None:
    with pytest.raises(WeightsError, match="did you mean 'dinov2_vitb14_reg'"):
        dinov2_jax.load("dinov2_vitb14_regs")
