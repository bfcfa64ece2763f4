"""Every command and every Python block of the documentation works.

Blocks that two cores can run are run, with small pictures and a tiny model instead of the reader's.
Blocks below `<!-- resolve: why -->` are only resolved: configuration, overrides and scripts exist.
"""

import importlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dinov2_jax import main as entry
from dinov2_jax.bench import slice
from dinov2_jax.config.overrides import override, parse_arguments
from dinov2_jax.main import main, resolve_config
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of, commands_of

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language == "bash"]
PYTHON_PAGES = [page for page in PAGES if any(b.language == "python" for b in blocks_of(page))]

_MODEL = {
    "model.dim": "16",
    "model.depth": "1",
    "model.heads": "2",
    "dino.head_prototypes": "16",
    "dino.head_bottleneck_dim": "8",
    "dino.head_hidden_dim": "16",
    "batch_size": "16",
    "group_size": "2",
}
# What makes a task quick, without changing what the page says.
FAST = {
    "train": _MODEL | {"total_steps": "2", "data.workers": "0", "eval.every_steps": "0"},
    "plan": _MODEL | {"plan.trials": "0"},
    "eval": {
        "linear.iterations": "4",
        "linear.batch_size": "4",
        "logreg.count": "3",
        "few_shot.per_class": "(1,2)",
        "few_shot.tries": "2",
        "few_shot.linear_iterations": "4",
        "knn.ks": "(2,)",
    },
    "visualize": {"image_px": "64", "folder_pictures": "20"},
}


def fast(task):
    """The same as overrides of the command line."""
    return [f"--config.{name}={value}" for name, value in FAST.get(task, {}).items()]


def write_pictures(folder, count, seed):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder like a reader's: recipes, pictures, labels, and the run of the quick start."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    write_pictures(folder / "pictures", 6, 0)
    for number, split in enumerate(("train", "val")):
        for klass in range(3):
            write_pictures(folder / f"labelled/{split}/{klass}", 8, 10 * number + klass)
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(folder / "pictures/0.jpg", folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = ["--config.data.source=folder", f"--config.data.path={folder / 'labelled'}"]
        words = ["--config=configs/quickstart.py", "--workdir=runs/quickstart", *fast("train")]
        assert main(["main", *words, *data, "--config.eval.labels=folders"]) == 0
    return folder


def here(text, desk):
    """Paths of the reader become those of the desk; released weights become the run's."""
    text = re.sub(r"(?<![\w.])/(pictures|labelled)\b", rf"{desk}/\1", text)
    return text.replace('"dinov2_vits14"', '"runs/quickstart"')


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands(block: Block, desk, monkeypatch, capsys):
    for words in commands_of(block):
        words = [here(word, desk) for word in words]
        monkeypatch.chdir(desk)
        check_command(words, block, monkeypatch)


def check_command(words, block, monkeypatch):
    """Runs or resolves one command; anything that is neither is an error."""
    if words[:3] == ["python", "-m", "dinov2_jax.main"]:
        check_main(words[3:], run=not block.why_not_run)
    elif words[:2] == ["python", "-m"] and words[2].startswith("dinov2_jax.bench."):
        check_benchmark(words[2], words[3:], monkeypatch)
    elif words[0] in ("bash", "sbatch"):
        check_script([word for word in words[1:] if not word.startswith("--nodes")])
    elif words[0] == "grep":
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    elif words[0].endswith("pip") and words[1] == "install":
        check_install(words[2:], block)
    else:
        assert words == ["source", ".venv/bin/activate"], f"{block}: cannot be checked: {words}"


def check_main(arguments, run):
    config = resolve_config(parse_arguments([a for a in arguments if a != "--help"]))
    if run:
        assert main(["main", *arguments, *fast(config.task)]) == 0


class Accepted(Exception):
    """The benchmark would begin: its arguments are good."""


def check_benchmark(module, arguments, monkeypatch):
    bench = importlib.import_module(module)

    def accept(args):
        raise Accepted

    begins = "traffic.open_target" if module.endswith(".traffic") else "report.prepare"
    monkeypatch.setattr(f"dinov2_jax.bench.{begins}", accept)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises((Accepted, SystemExit)) as ended:
        bench.main()
    assert ended.type is Accepted or (ended.value.code == 0 and "--help" in arguments)


def check_script(words):
    """A script of launch/: it exists, bash parses it, and its arguments resolve."""
    script = ROOT / words[0]
    assert script.parent.name == "launch"
    subprocess.run(["bash", "-n", script], check=True)
    arguments = [word for word in words[1:] if word.startswith("--config")]
    if script.name == "quickstart.sh":
        arguments.append("--config=configs/quickstart.py")
    if script.name == "gpu_benchmarks.sh":
        assert "--dry-run" in words
        subprocess.run(["bash", script, *words[1:]], check=True, capture_output=True)
    elif script.name == "gpu_slice.sh":
        slice.arguments_of(words[1:])
    elif script.name != "test.sh":
        resolve_config(parse_arguments(arguments))


def check_install(words, block):
    """`pip install -e ".[extra]"` names an extra of setup.py; other packages are not checked."""
    if words[0] != "-e":
        assert block.why_not_run
        return
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for extra in words[1].strip(".[]").split(","):
        assert f'"{extra}":' in setup, extra


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.stem)
def test_python(page, desk, monkeypatch):
    """Blocks of one page share their names, as in a notebook."""
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(ROOT))
    train = entry.train

    def train_quickly(config, workdir):
        override(config, FAST["train"])
        train(config, workdir)

    monkeypatch.setattr(entry, "train", train_quickly)
    names = {}
    for block in blocks_of(page):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + here(block.text, desk), block.page, "exec")
            if not block.why_not_run:
                exec(code, names)
