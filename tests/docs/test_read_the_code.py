"""docs/read_the_code.md against the code that it lists."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "read_the_code.md").read_text(encoding="utf-8")
MOST_STEPS, MOST_FILES = 25, 10

_FUNCTION = r"`([\w/]+\.py)`: `([\w.]+)`(?: as `(\w+)`)?"
_ENTRY = re.compile(
    r"^(\d+)\. `([\w/]+\.py)`: `([\w.]+)` \(called by ([`\w]+)(?: as `(\w+)`)?\)", re.M
)


class Step(NamedTuple):
    file: str
    name: str
    caller: str  # number of an entry, or name of a function
    alias: str  # what the caller calls it, if not by its name


def entries() -> dict[str, Step]:
    return {
        n: Step(file, name, by.strip("`"), alias)
        for n, file, name, by, alias in _ENTRY.findall(PAGE)
    }


def insides() -> list[tuple[str, Step]]:
    """(number of the entry, function that it calls for one computation)."""
    found = []
    for text in re.split(r"^(?=\d+\. )", PAGE, flags=re.M)[1:]:
        number, _, inside = text.partition(".")[0], *text.partition("Inside:")[1:]
        found += [
            (number, Step(*match[:2], number, match[2])) for match in re.findall(_FUNCTION, inside)
        ]
    return found


def definitions(file: str) -> dict[str, ast.AST]:
    """Functions, classes and `Class.method`s of a file."""
    found: dict[str, ast.AST] = {}
    for node in ast.parse((ROOT / "dinov2_jax" / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
            methods = [x for x in node.body if isinstance(x, ast.FunctionDef)]
            found |= (
                {f"{node.name}.{x.name}": x for x in methods}
                if isinstance(node, ast.ClassDef)
                else {}
            )
    return found


def names_in(node: ast.AST) -> set[str]:
    """Names and attributes below a node; [] counts as __getitem__, next() as __next__."""
    found = set()
    for x in ast.walk(node):
        found |= {x.id} if isinstance(x, ast.Name) else set()
        found |= {x.attr} if isinstance(x, ast.Attribute) else set()
        found |= {"__getitem__"} if isinstance(x, ast.Subscript) else set()
    return found | ({"__next__"} if "next" in found else set())


def mentioned_by(step: Step) -> set[str]:
    """Names in a function, in its class, and in the functions of the same file that it calls."""
    own = definitions(step.file)
    names = names_in(own[step.name]) | names_in(own[step.name.partition(".")[0]])
    for name in sorted(names & own.keys()):
        names |= names_in(own[name])
    return names


def caller_of(step: Step) -> Step:
    known = entries() | {inside.name: inside for _, inside in insides()}
    return known[step.caller] if step.caller in known else Step(step.file, step.caller, "", "")


ALL = [*entries().values(), *(step for _, step in insides())]


def test_it_is_a_short_way():
    steps = entries()
    assert list(steps) == [str(n) for n in range(1, len(steps) + 1)]
    files = {step.file for step in steps.values()}
    assert 0 < len(steps) <= MOST_STEPS
    assert 0 < len(files) <= MOST_FILES
    assert f"{len(steps)} steps through {len(files)} files" in PAGE
    assert len(insides()) == PAGE.count(".py`") - len(steps) - 1  # train/setup.py, in a sentence


@pytest.mark.parametrize("step", ALL, ids=lambda step: step.name)
def test_the_caller_mentions_the_function(step):
    assert step.name in definitions(step.file)
    owner, _, method = step.name.rpartition(".")
    expected = {step.alias} if step.alias else {owner, method} if owner else {step.name}
    assert expected & mentioned_by(caller_of(step)), (step, caller_of(step))
