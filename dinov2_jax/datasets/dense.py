"""Pictures with a target for every pixel: classes (segmentation) or metres (depth)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dinov2_jax.data.sources.source import Source

IGNORED = 255  # the class of pixels that neither train nor judge


@dataclass(frozen=True)
class DenseSplit:
    """Pictures and the files of their targets; picklable.

    Attributes:
      pictures: a source of pictures.
      targets: a path a picture.
      read: path -> uint8 [H, W] of classes, `IGNORED` where there is none; or float32 [H, W] in
        metres, 0 where there is no value. It raises SourceError for a file that cannot be read.
    """

    pictures: Source
    targets: tuple[str, ...]
    read: Callable[[str], np.ndarray]

    def __len__(self) -> int:
        return len(self.targets)

    def target(self, index: int) -> np.ndarray:
        """The target of one picture, see `read`."""
        return self.read(self.targets[index])


@dataclass(frozen=True)
class DenseData:
    """A set with targets for pixels.

    Attributes:
      name: as in `config.data.set`, or that of a folder.
      splits: "train", "test", and "val" where there is one.
      class_names: of segmentation; () for depth.
      colours: RGB of each class, uint8 [K, 3], for pictures; [0, 3] for depth.
    """

    name: str
    splits: Mapping[str, DenseSplit]
    class_names: tuple[str, ...]
    colours: np.ndarray
