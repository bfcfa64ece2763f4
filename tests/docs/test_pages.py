"""The pages: links lead somewhere, pictures are small and attributed, the reference is current."""

import importlib.util
import re

import pytest

from tests.docs.blocks import PAGES, ROOT, blocks_of

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in LINK.findall(text):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_every_page_is_reached_from_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_pictures_are_small_and_attributed(page):
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
    for alternative, name in pictures:
        assert alternative, name
        assert (page.parent / name).stat().st_size < 200_000, name
    if pictures:
        assert "OpenMoji" in text and "CC BY-SA 4.0" in text


def test_every_picture_is_shown():
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = list((ROOT / "docs/images").iterdir())
    assert [p.name for p in pictures if f"images/{p.name}" not in shown] == []
    assert sum(picture.stat().st_size for picture in pictures) < 1_000_000


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_blocks_name_their_language(page):
    fences = page.read_text(encoding="utf-8").count("```")
    blocks = blocks_of(page)
    assert fences == 2 * len(blocks), "a fence that is not at the start of a line"
    assert all(block.language in ("bash", "python") for block in blocks)


def test_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs/make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    assert stored == module.reference(), "run python docs/make_reference.py"
