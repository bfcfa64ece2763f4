"""Who may import whom: the layers of the package, read from the syntax tree."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "dinov2_jax"

# A room may import itself and the rooms of the layers below its own; `main`, `api`
# and `__init__` import all.
LAYERS: tuple[set[str], ...] = (
    {"errors"},
    {"config"},
    {"parallel", "data", "metrics"},
    {"datasets"},
    {"run"},
    {"ops"},
    {"models"},
    {"weights", "ssl"},
    {"features"},
    {"heads"},
    {"viz"},  # draws what heads predict
    {"train", "eval", "curation"},
    {"plan"},
    {"bench", "stages"},
)
HOST_ONLY = {"jax", "jaxlib", "flax", "optax", "orbax"}
NEVER = {"tensorflow", "clu"}
PEERS = {"torch", "torchvision", "transformers", "timm", "lightly", "faiss", "sklearn"}
COMPILERS = {"libtpu", "jax_cuda13_plugin"}
LAZY = (
    PEERS
    | COMPILERS
    | {
        "av",
        "daft",
        "faiss",
        "huggingface_hub",
        "jax2onnx",
        "onnx",
        "onnxruntime",
        "pyarrow",
        "ray",
        "scipy",
        "tensorflow_datasets",
        "array_record",
        "tensorboardX",
    }
)
BENCH = ROOT / "bench"
FILES = sorted(ROOT.rglob("*.py"))


def imports(tree: ast.AST) -> set[str]:
    """Full dotted names of all modules imported anywhere below `tree`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import; write the whole name"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return names


def at_module_level(tree: ast.Module) -> set[str]:
    """The imports that run when the module is imported: those outside functions."""
    names: set[str] = set()
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= imports(node)
        pending.extend(ast.iter_child_nodes(node))
    return names


def outside(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - {"dinov2_jax"}


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_only_from_the_rooms_below(file: Path) -> None:
    ours = {n.split(".")[1] for n in imports(parse(file)) if n.startswith("dinov2_jax.")}
    room = room_of(file)
    if room in ("main", "api", "__init__"):
        return
    height = next(i for i, layer in enumerate(LAYERS) if room in layer)
    allowed = set().union(*LAYERS[:height]) | {room, "__version__"}
    assert ours <= allowed, f"{file.name} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(file: Path) -> None:
    tree = parse(file)
    assert not outside(imports(tree)) & NEVER
    if file.parent != BENCH / "peers":  # named by strings and loaded in worker processes only
        assert not outside(at_module_level(tree)) & LAZY
        assert not outside(imports(tree)) & {"torchvision", "timm", "lightly"}


def test_a_benchmark_process_loads_one_side_only() -> None:
    for file in BENCH.rglob("*.py"):
        names = imports(parse(file))
        side = file.parent.name if file.parent != BENCH else ""
        for other in {"ours", "peers"} - {side}:
            assert not any(n.startswith(f"dinov2_jax.bench.{other}") for n in names), file
        if side != "ours":
            assert not outside(names) & HOST_ONLY, file
        if side != "peers":
            assert not outside(names) & PEERS, file


def test_loader_workers_never_import_jax() -> None:
    for file in [*(ROOT / "data").rglob("*.py"), *(ROOT / "datasets").glob("*.py")]:
        if file.name != "photometric.py":
            names = imports(parse(file))
            assert not outside(names) & HOST_ONLY, file.name
            assert "dinov2_jax.data.photometric" not in names, file.name


def test_starting_the_command_line_imports_nothing_heavy() -> None:
    for name in (
        "__init__.py",
        "main.py",
        "errors.py",
        "config/overrides.py",
        "config/checks.py",
        "config/files.py",
        "stages/__init__.py",
        "stages/settings.py",
        "data/__init__.py",
    ):
        assert not outside(at_module_level(parse(ROOT / name))) & HOST_ONLY, name


def test_only_main_and_the_benchmarks_read_the_command_line() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        reads = "sys.argv" in text or "argparse" in text or "parse_args" in text
        # A checkpoint records the command; it does not act on it. The benchmarks are programs of
        # their own, whose flags are no part of a run's configuration.
        programs = file.name in ("main.py", "provenance.py") or file.parent == BENCH
        assert not reads or programs, file.name


def test_the_method_never_sees_the_configuration() -> None:
    for room in ("models", "ops", "ssl", "data", "datasets", "heads", "metrics"):
        for file in (ROOT / room).rglob("*.py"):
            assert "ml_collections" not in outside(imports(parse(file))), file


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_of(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    too_long = [f.name for f in functions(ast.parse(text)) if lines_of(f) > 80]
    assert not too_long


def test_rooms_and_typical_functions_stay_small() -> None:
    package = [file for file in FILES if room_of(file) != "bench"]
    sizes = [lines_of(f) for file in package for f in functions(parse(file))]
    assert statistics.median(sizes) <= 9
    lines: dict[str, int] = {}
    for file in package:
        length = len(file.read_text(encoding="utf-8").splitlines())
        lines[room_of(file)] = lines.get(room_of(file), 0) + length
    total = sum(lines.values())
    assert max(lines.values()) < 0.15 * total, max(lines, key=lines.__getitem__)


def test_no_circle_of_imports() -> None:
    names = {file: ".".join(file.relative_to(ROOT.parent).with_suffix("").parts) for file in FILES}
    modules = {name.removesuffix(".__init__") for name in names.values()}
    imported = {
        name.removesuffix(".__init__"): (imports(parse(file)) & modules) - {"dinov2_jax"}
        for file, name in names.items()
    }
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in imported[module]:
                walk(other, (*path, module))
            done.add(module)

    for module in modules:
        walk(module, ())
