"""The comments of configuration files: the one place where a field is explained."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2_jax.config.files import config_folders, find_config, leaves, load_config


def field_comments(name_or_path: str) -> dict[str, tuple[Any, str]]:
    """{dotted field: (value, comment)} of a configuration, in the order of the file.

    A comment is what stands above the line that sets the field, and behind it; "" if nothing does.
    An overlay changes values only: its fields have the comments of the file that it builds on.

    Raises:
      ConfigError: see `load_config`.
    """
    file = find_config(name_or_path.partition(":")[0])
    comments = _Comments(file).of_function("get_config")
    values = leaves(load_config(name_or_path))
    ordered = [field for field in comments if field in values]
    ordered += [field for field in values if field not in comments]
    return {field: (values[field], comments.get(field, "")) for field in ordered}


class _Comments:
    """The functions of one configuration file, and the comment at each line."""

    def __init__(self, file: Path):
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        self._file = file
        self._functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
        self._imports = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        self._own_line: dict[int, str] = {}
        self._behind: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                alone = token.line.lstrip().startswith("#")
                place = self._own_line if alone else self._behind
                place[token.start[0]] = token.string.lstrip("# ").rstrip()

    def of_function(self, function: str) -> dict[str, str]:
        """{dotted field: comment} of the ConfigDict that a function fills."""
        comments: dict[str, str] = {}
        for node in self._functions[function].body:
            if isinstance(node, ast.Assign):
                for target, value in _pairs(node):
                    field = _field(target)
                    if field:
                        comments.setdefault(field, self._comment(node))
                    for name, text in self._of_call(value).items():
                        comments.setdefault(f"{field}.{name}" if field else name, text)
        return comments

    def _of_call(self, value: ast.expr) -> dict[str, str]:
        """The comments of a ConfigDict made by `_function()` or by `module.function()`."""
        if not isinstance(value, ast.Call):
            return {}
        called = value.func
        if isinstance(called, ast.Name) and called.id in self._functions:
            return self.of_function(called.id)
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            module = self._imports.get(called.value.id, "")
            if module.startswith("configs."):
                relative = module.removeprefix("configs.").replace(".", "/") + ".py"
                for folder in config_folders(self._file):
                    if (folder / relative).is_file():
                        return _Comments(folder / relative).of_function(called.attr)
        return {}

    def _comment(self, node: ast.stmt) -> str:
        first, last = node.lineno, node.end_lineno or node.lineno
        above = first
        while above - 1 in self._own_line:
            above -= 1
        lines = [self._own_line[line] for line in range(above, first)]
        lines += [self._behind.get(line, "") for line in (last, *range(first, last))]
        return " ".join(filter(None, lines))


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        yield from zip(target.elts, value.elts, strict=True)
    else:
        yield target, value


def _field(target: ast.expr) -> str:
    """`config.a.b` is "a.b"; a name alone is ""."""
    names: list[str] = []
    while isinstance(target, ast.Attribute):
        names.insert(0, target.attr)
        target = target.value
    return ".".join(names)
