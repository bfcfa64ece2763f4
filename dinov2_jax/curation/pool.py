"""What all stages of a curation share: its configuration, its folder, its pictures, its tables."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from dinov2_jax.curation.tables import Tables
from dinov2_jax.data.sources.source import Source


@dataclasses.dataclass(frozen=True)
class Pool:
    """A run of curation.

    Attributes:
      config: of configs/curate.
      folder: the run directory; each stage has a folder of its name in it.
      source: the pictures; row i of every table is record i.
      tables: the engine for tables.
    """

    config: ConfigDict
    folder: Path
    source: Source
    tables: Tables

    @property
    def rows(self) -> int:
        """Number of pictures, readable or not."""
        return len(self.source)
