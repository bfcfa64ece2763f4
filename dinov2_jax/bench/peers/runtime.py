"""What all PyTorch sides need: device, threads, kernels in order of preference, compilation."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

from dinov2_jax.bench.harness import Settings, Side

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_UNDECLARED = ("nms", "qnms")
_libraries = []  # torch.library undeclares what a collected Library has defined


@functools.cache
def import_torchvision() -> None:
    """Lets torchvision be imported next to a build of torch for the CPU.

    The wheel on PyPI is built for CUDA: its library of operators does not load there, and the
    import then stumbles over names that nobody has declared. None of them is called here.
    """
    if not torch.cuda.is_available():
        library = torch.library.Library("torchvision", "DEF")
        _libraries.append(library)
        for name in _UNDECLARED:
            with contextlib.suppress(RuntimeError):  # declared already
                library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
    import torchvision  # noqa: F401


def configure(settings: Settings) -> torch.device:
    """Threads and precision; returns the device."""
    torch.set_num_threads(settings["threads"])
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(settings["seed"])
    if settings["device"] == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("--device=gpu, but this PyTorch sees no CUDA device")
    return torch.device("cuda")


def fastest_attention(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """On a GPU: cuDNN's attention first, then FlashAttention, and so on."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)


def compiled(
    function: Any, device: torch.device, *, inference: bool = False, backend: str = "inductor"
) -> Any:
    """torch.compile in its best setting: all autotuning on a GPU, frozen weights on a CPU.

    Args:
      backend: for a CPU, "aot_eager" to go through it all without making kernels.
    """
    if device.type == "cuda":
        # Recorded graphs would overwrite what a training step keeps for the next one.
        mode = "max-autotune" if inference else "max-autotune-no-cudagraphs"
        return torch.compile(function, mode=mode)
    if inference:
        from torch._inductor import config

        config.freezing = True
    return torch.compile(function, backend=backend)


def side_of(
    check: Callable[[], dict[str, Any]],
    call: Callable[[], Any],
    device: torch.device,
) -> Side:
    """A `Side` that repeats `call`, waits for the device, and reads its memory."""

    def run(repetitions: int) -> None:
        with fastest_attention(device):
            for _ in range(repetitions):
                call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    def checked() -> dict[str, Any]:
        with fastest_attention(device):
            return check()

    def peak() -> int | None:
        return torch.cuda.max_memory_allocated() if device.type == "cuda" else None

    def reset() -> None:  # autotuning has allocated more than the work needs
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    versions = {"torch": torch.__version__}
    return Side(checked, run, peak, reset, versions, name)
