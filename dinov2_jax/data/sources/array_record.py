"""ArrayRecord files, read without TensorFlow."""

from dinov2_jax.data.sources.files import find_files
from dinov2_jax.data.sources.source import SourceError, Unlabelled, read_record, short_message


class ArrayRecord(Unlabelled):
    """ArrayRecord files whose records are encoded pictures (the bytes of a JPEG, PNG, ... file).

    `path` is a file, a glob or a folder of *.array_record* files; there are no labels or splits.
    """

    def __init__(self, path: str) -> None:
        files = find_files(path, "*.array_record*")
        try:
            from array_record.python import array_record_data_source
        except ImportError as error:
            message = "data.source='array_record' needs a package; pip install array-record"
            raise ImportError(message) from error
        try:
            self._records = array_record_data_source.ArrayRecordDataSource(files)
        except RuntimeError as error:
            message = f"data.path={path} cannot be read as ArrayRecord: {short_message(error)}"
            raise SourceError(message) from error
        self._path = path
        if not len(self._records):
            raise SourceError(f"data.path={path} holds no record")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        return read_record(self._records, index)

    def name(self, index: int) -> str:
        """`path[index]`."""
        return f"{self._path}[{index}]"

    def names_digest(self) -> str:
        """The records have no names of their own."""
        return ""
