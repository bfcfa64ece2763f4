"""Importing the package changes nothing for the rest of a program."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import importlib, json, locale, logging, os, pkgutil, signal, socket, sys, threading, warnings
import decimal, random
import numpy as np
import PIL.Image, PIL.ImageFile, PIL.PngImagePlugin

# What the libraries change themselves is not ours.
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError:
        pass

import cv2, jax

def seen():
    return {
        "pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "truncated": PIL.ImageFile.LOAD_TRUNCATED_IMAGES,
        "png": (PIL.PngImagePlugin.MAX_TEXT_CHUNK, PIL.PngImagePlugin.MAX_TEXT_MEMORY),
        "warnings": [repr(f) for f in warnings.filters],
        "environment": sorted(os.environ.items()),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "logging": [
            (logger.name, logger.level, [repr(h) for h in logger.handlers], len(logger.filters))
            for logger in (logging.root, *map(logging.getLogger, ("absl", "jax", "PIL", "asyncio")))
        ],
        "signals": [repr(signal.getsignal(s)) for s in sorted(signal.valid_signals())],
        "hooks": [repr(h) for h in (sys.excepthook, sys.unraisablehook, threading.excepthook)],
        "threads": (threading.active_count(), cv2.getNumThreads()),
        "random": [repr(random.getstate())[:200], repr(np.random.get_state())[:200]],
        "numpy": [sorted(np.geterr().items()), sorted(map(repr, np.get_printoptions().items()))],
        "jax": sorted(map(repr, jax.config.values.items())),
        "timeout": socket.getdefaulttimeout(),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(),
    }

before = seen()
import dinov2_jax
for module in pkgutil.walk_packages(dinov2_jax.__path__, "dinov2_jax."):
    if ".bench" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = seen()
print(json.dumps([k for k in before if before[k] != after[k]]))
for k in before:
    if before[k] != after[k]:
        print(k, before[k], after[k], file=sys.stderr)
"""
LIBRARIES = (
    "absl.flags", "array_record.python.array_record_data_source", "einops", "etils.epath",
    "flax.linen", "grain", "grain.python", "ml_collections", "optax", "orbax.checkpoint",
    "safetensors", "simplejpeg", "tqdm", "cykooz_resizer", "jax.experimental.multihost_utils",
    "jax.experimental.pallas", "jax.experimental.topologies", "jax.export",
)  # fmt: skip


def test_importing_every_module_changes_nothing_global() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(LIBRARIES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [], result.stderr
