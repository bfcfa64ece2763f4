"""Reads the Python pickles and MATLAB files of published data sets without running code."""

import io
import pickle
from typing import Any

import numpy as np

from dinov2_jax.data.sources.source import SourceError, short_message


def _from_buffer(
    data: Any, dtype: np.dtype, shape: tuple[int, ...], order: str, axes: Any = None
) -> np.ndarray:
    """`numpy._core.numeric._frombuffer`, as in pickles of arrays by protocol 5."""
    if order == "K":
        return np.frombuffer(data, dtype).reshape(shape).transpose(axes)
    return np.frombuffer(data, dtype).reshape(shape, order=order)  # type: ignore


# The names that pickles of arrays and bytes use besides plain containers, old and new ones.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): str.encode,  # as in pickles of bytes
    ("__builtin__", "bytes"): bytes,
    ("builtins", "bytes"): bytes,
}
for _core in ("core", "_core"):
    for _name in ("_reconstruct", "scalar"):
        _ALLOWED[f"numpy.{_core}.multiarray", _name] = getattr(np._core.multiarray, _name)
    _ALLOWED[f"numpy.{_core}.numeric", "_frombuffer"] = _from_buffer


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise SourceError(
            f"the pickle asks for {module}.{name}, but a data set holds arrays, strings and "
            "numbers only; download it from its publisher"
        )


def read_pickle(path: str, encoding: str = "bytes") -> Any:
    """A pickle of numpy arrays, bytes, strings, numbers, lists and dicts; nothing else is loaded.

    `encoding` is that of Python 2 strings; "bytes" keeps them as bytes. Raises SourceError where
    the pickle asks for anything else, or is damaged.
    """
    with open(path, "rb") as file:
        data = io.BytesIO(file.read())
    try:
        return _DataOnly(data, encoding=encoding).load()
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise SourceError(
            f"{path} is no readable pickle ({short_message(error)}); download it again"
        ) from error


def read_mat(path: str, *names: str) -> dict[str, Any]:
    """The variables of a MATLAB file; arrays of one element become that element.

    Raises ImportError without scipy, and SourceError where the file is damaged or lacks one of the
    variables `names`.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        message = f"{path} is a MATLAB file, which needs scipy; pip install scipy"
        raise ImportError(message) from error
    try:
        stored = loadmat(path, squeeze_me=True)
    except Exception as error:  # scipy has several types for a damaged file
        message = f"{path} is no readable MATLAB file ({short_message(error)}); unpack it again"
        raise SourceError(message) from error
    lost = [name for name in names if name not in stored]
    if lost:
        raise SourceError(f"{path} holds no {lost[0]}; take the file of the set's own archive")
    return stored
