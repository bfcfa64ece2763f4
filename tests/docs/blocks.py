"""Blocks of code in the pages of the documentation, and what a command line means."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "BENCHMARKS.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(
    r"^(?:<!-- resolve: (?P<why>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
      why_not_run: why two cores cannot run it, from the comment `<!-- resolve: why -->` above the
        block; "": it is run.
    """

    page: str
    line: int
    language: str
    text: str
    why_not_run: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            str(page.relative_to(ROOT)),
            text.count("\n", 0, match.start("text")) + 1,
            match["language"],
            match["text"],
            match["why"] or "",
        )
        for match in _FENCE.finditer(text)
    ]


def commands_of(block: Block) -> list[list[str]]:
    """The command lines of a bash block as words, without comments."""
    joined = block.text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]
