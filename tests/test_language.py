"""Plain English in docstrings, comments and pages: no inverted sentences, the field's words."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each pattern with what to write instead.
AVOID = {
    r"(?:^|[.!?:;]\s+)Of (?!course)": "begin with the subject of the sentence",
    r"\bgoals?\b": "target",
    r"headline figure": "metric",
    r"\basking (?:picture|image)": "query",
    r"\bits likes\b|\blike objects\b": "similar",
    r"\ba tenth of train\b": "10 % of train",
    r"\bis asked for\b|\bwhat it is asked\b": "name what is requested",
    r"\bdo(?:es)? not meet\b": "say what happens",
}


def files() -> list[Path]:
    """All Python files, scripts and pages of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    names = listed or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    kinds = (".py", ".md", ".sh")
    found = [ROOT / name for name in names if name.endswith(kinds) and "golden" not in name]
    return [path for path in found if path.is_file() and path != Path(__file__).resolve()]


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring, block of comments, or paragraph."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from _paragraphs(text.splitlines())
    elif path.suffix == ".sh":
        yield from _blocks([(n, c) for n, c in _shell_comments(text)])
    else:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    start = getattr(node, "lineno", 1)
                    for line, paragraph in _paragraphs(docstring.splitlines()):
                        yield start + line, paragraph
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments = [(t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT]
        yield from _blocks(comments)


def _shell_comments(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.search(r"(?:^|\s)(#.*)", line):
            yield number, match[1]


def _blocks(comments: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Comments of neighbouring lines, joined."""
    block: list[str] = []
    first = last = 0
    for number, comment in comments:
        if block and number != last + 1:
            yield first, " ".join(block)
            block = []
        first = first if block else number
        block.append(comment.lstrip("#: ").rstrip())
        last = number
    if block:
        yield first, " ".join(block)


def _paragraphs(lines: list[str]) -> Iterator[tuple[int, str]]:
    block: list[str] = []
    first = 0
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            first = first if block else number
            block.append(line.strip())
        elif block:
            yield first, " ".join(block)
            block = []


@pytest.mark.parametrize("pattern", AVOID, ids=lambda pattern: AVOID[pattern])
def test_words(pattern):
    matcher = re.compile(pattern)
    hits = [
        f"{path.relative_to(ROOT)}:{line}: {text[:100]}"
        for path in files()
        for line, text in prose_of(path)
        if matcher.search(text)
    ]
    assert not hits, f"write: {AVOID[pattern]}\n" + "\n".join(hits)
