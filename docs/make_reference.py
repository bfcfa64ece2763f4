"""Write docs/reference.md from the comments of configs/: python docs/make_reference.py"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dinov2_jax.config.comments import field_comments  # noqa: E402

# file -> what its fields are for, in the order of the page
FILES = {
    "default": "Training and planning",
    "eval/default": "Evaluation",
    "embed": "Features",
    "export": "Export",
    "visualize": "Pictures",
    "recipes/default": "Recipes of stages",
    "curate/default": "Curation",
}
HEAD = """# Configuration reference

All fields with their defaults, generated from the comments of `configs/` by
`python docs/make_reference.py`. "Reference" means that the value is the one of
facebookresearch/dinov2; "Ours" means that the reference has no such field. Set any of them with
`--config.<field>=<value>`.
"""


def reference() -> str:
    """The page as text."""
    lines = [HEAD]
    for name, title in FILES.items():
        lines += [f"## {title}: `configs/{name}.py`", ""]
        for group, fields in _by_group(field_comments(str(ROOT / f"configs/{name}.py"))).items():
            lines += [f"### `{group}`", ""] if group else []
            lines += ["| field | default | meaning |", "|---|---|---|", *_rows(fields), ""]
    return "\n".join(lines)


def _by_group(fields: Mapping[str, tuple[Any, str]]) -> dict[str, dict[str, tuple[Any, str]]]:
    """{"": fields without a dot, "model": {"model.dim": ...}, ...}."""
    groups: dict[str, dict[str, tuple[Any, str]]] = {"": {}}
    for name, field in fields.items():
        groups.setdefault(name.rpartition(".")[0], {})[name] = field
    return groups


def _rows(fields: Mapping[str, tuple[Any, str]]) -> Iterator[str]:
    for name, (value, comment) in fields.items():
        shown = '""' if value == "" else str(value)
        yield f"| `{name}` | `{shown}` | {comment.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    (ROOT / "docs/reference.md").write_text(reference(), encoding="utf-8")
