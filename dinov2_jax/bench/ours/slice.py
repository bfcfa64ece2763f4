"""Our jobs of the short GPU run (bench/slice.py): attention, a golden step, steps, features."""

import functools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov2_jax.bench.draws import draw_images, draw_noise
from dinov2_jax.bench.harness import Settings
from dinov2_jax.bench.jobs import Entries, measured
from dinov2_jax.bench.ours import features as ours_features
from dinov2_jax.bench.ours import golden as vectors
from dinov2_jax.bench.ours.attention import RESULTS, exact
from dinov2_jax.bench.ours.runtime import DTYPES, side_of
from dinov2_jax.ops.attention import FUSED, attention, choose, platform_in_use, refusal
from dinov2_jax.parallel import runtime
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import put_batch
from dinov2_jax.plan.flops import step_flops
from dinov2_jax.plan.topology import chip_of
from dinov2_jax.train.optimizer import AdamW, parameter_multipliers
from dinov2_jax.train.setup import Run, abstract_batch, compiled_step, make_run
from dinov2_jax.train.step import train_step

GOLDEN = Path(__file__).resolve().parents[3] / "tests/golden/step_sinkhorn.npz"
# Largest ||out - exact|| / ||exact||: rounding of bf16 operands gives 0.001 to 0.01.
ATTENTION_LIMITS = {"float32": 1e-4, "bfloat16": 1e-2}
# Largest relative error of a loss or gradient norm of the golden step.
GOLDEN_LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}


def _started() -> Entries:
    """What the record says of the machine; looks for devices as the command line does."""
    runtime.configure()
    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "peak_flops": chip.peak_flops if chip else None,
        "versions": {"jax": jax.__version__, "jax_platform": device.client.platform_version},
    }


def relative_error(found: Any, want: np.ndarray) -> float:
    """||found - want|| / ||want|| in float64."""
    difference = np.asarray(found, np.float64) - want
    return float(np.linalg.norm(difference) / np.linalg.norm(want))


def within(errors: dict[str, float], limit: float) -> Entries:
    """The record of a check; nan is beyond every limit."""
    return errors | {"limit": limit, "ok": all(error <= limit for error in errors.values())}


# ------------------------------------------------------------------------------------ attention
def attention_errors(settings: Settings) -> Iterator[Entries]:
    """settings: "tokens" (several), "batch", "heads", "head_dim", "seed".

    Yields, for each number of tokens, the errors of every kernel that this platform has.
    """
    start = _started()
    platform = platform_in_use()
    fused = [(name, "bfloat16") for name, kernel in FUSED.items() if kernel.platform == platform]
    kernels = [("xla", "float32"), ("xla", "bfloat16"), *fused]
    yield start
    for tokens in settings["tokens"]:
        shape = (settings["batch"], tokens, settings["heads"], settings["head_dim"])
        yield {f"N={tokens}": _errors_at(shape, kernels, settings["seed"] + tokens)}


def _errors_at(shape: tuple[int, ...], kernels: list[tuple[str, str]], seed: int) -> Entries:
    """The record of one shape; all kernels get the same operands, which bf16 holds exactly."""
    operands = [jnp.asarray(x, jnp.bfloat16) for x in draw_images(seed, 4, *shape)]
    with ThreadPoolExecutor() as pool:  # the kernels compile side by side
        found = pool.map(lambda kernel: _results(operands, *kernel), kernels)
        want = exact(*(np.asarray(x, np.float64) for x in operands))
        results = {" ".join(kernel): x for kernel, x in zip(kernels, found, strict=True)}
    chosen = choose("auto", platform_in_use(), shape, jnp.dtype(jnp.bfloat16))
    return {name: _judged(x, want, name) for name, x in results.items()} | {"auto": chosen}


def _judged(found: Any, want: dict[str, np.ndarray], name: str) -> Entries:
    """The errors of a kernel, or why there are none."""
    if isinstance(found, dict):
        return found
    errors = {n: relative_error(x, want[n]) for n, x in zip(RESULTS, found, strict=True)}
    return within(errors, ATTENTION_LIMITS[name.split()[1]])


def _results(drawn: list[Array], backend: str, dtype: str) -> tuple[Array, ...] | Entries:
    """A kernel's output and gradients, or a record that says why it cannot run."""
    operands = [x.astype(DTYPES[dtype]) for x in drawn]
    if backend in FUSED:
        reason = refusal(backend, platform_in_use(), operands[0].shape, operands[0].dtype)
        if reason is not None:
            return {"refused": reason}

    @jax.jit
    def work(q: Array, k: Array, v: Array, cotangent: Array) -> tuple[Array, ...]:
        out, pull_back = jax.vjp(functools.partial(attention, backend=backend), q, k, v)
        return out, *pull_back(cotangent)

    try:
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            return jax.block_until_ready(work(*operands))
    except Exception as error:  # a kernel that fails is a result; the others go on
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:500]}


# --------------------------------------------------------------------------------------- golden
def golden(settings: Settings) -> Iterator[Entries]:
    """The first step of tests/golden/step_sinkhorn.npz in fp32 and bf16, against the reference."""
    start = _started()
    data = dict(np.load(GOLDEN))
    objectives = {
        dtype: vectors.objective_of(GOLDEN.stem, data, DTYPES[dtype]) for dtype in GOLDEN_LIMITS
    }
    settings = vectors.optimizer_settings(data, objectives["float32"])
    params = vectors.load_params(data, "init/student/")
    optimizer = AdamW(parameter_multipliers(params, **settings))
    first = vectors.initial_state(data, objectives["float32"], optimizer)
    batch, hyper = vectors.batch_of(data, 0), vectors.hyper_of(data, 0)

    def compiled(dtype: str) -> Any:
        step = functools.partial(train_step, objective=objectives[dtype], optimizer=optimizer)
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            return jax.jit(step).lower(first, batch, hyper).compile()

    with ThreadPoolExecutor() as pool:
        steps = dict(zip(objectives, pool.map(compiled, objectives), strict=True))
    yield start
    for dtype, take_step in steps.items():
        state, metrics = take_step(first, batch, hyper)
        record = within(_golden_errors(data, metrics), GOLDEN_LIMITS[dtype])
        record["ok"] &= int(state.nonfinite_steps) == 0
        yield {dtype: record}


def _golden_errors(data: vectors.Vectors, metrics: dict[str, Array]) -> dict[str, float]:
    """Relative errors of the losses and of the gradients' norms."""
    want = {f"loss/{name}": value for name, value in vectors.logged(metrics).items()}
    want |= {name: value for name, value in metrics.items() if name.startswith("grad_norm/")}
    return {name: relative_error(value, data[f"step0/{name}"]) for name, value in want.items()}


# ----------------------------------------------------------------------------------------- step
def step(settings: Settings) -> Iterator[Entries]:
    """settings: "config" (all fields, as a dict), "seed", "budget_s" (of measuring).

    The step is that of a run (train/setup.py), compiled ahead of time: it also augments the
    colours of its uint8 crops, which the peers' step does not.
    """
    start = _started()
    config = ConfigDict(settings["config"])
    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    run, began = make_run(config, mesh), time.perf_counter()
    with ThreadPoolExecutor() as pool:
        making = pool.submit(_compiled_init, run, mesh)
        compiled = compiled_step(run, abstract_batch(config, mesh), mesh)
        compile_s = time.perf_counter() - began
        init = making.result()
    memory = compiled.memory_analysis()
    yield start | {
        "compile_s": compile_s,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "arguments_bytes": memory.argument_size_in_bytes,
        "flops_per_image": _flops(config),
    }
    state, metrics = init(), {}
    batch = put_batch(draw_noise(settings["config"], settings["seed"]), mesh)
    hyper = run.schedules.at(config.total_steps // 10)

    def repeat(repetitions: int) -> None:
        nonlocal state, metrics
        with jax.set_mesh(mesh):
            for _ in range(repetitions):
                state, metrics = compiled(state, batch, hyper)
        jax.block_until_ready((state, metrics))

    repeat(1)
    yield {"loss": float(metrics["loss"])}
    yield from measured(side_of(dict, repeat), config.batch_size, settings["budget_s"])
    yield {"ok": int(state.nonfinite_steps) == 0}


def _compiled_init(run: Run, mesh: Mesh) -> jax.stages.Compiled:
    """`run.init` compiled ahead, so that no turn waits for it."""
    with jax.set_mesh(mesh):
        return jax.jit(run.init).lower().compile()


def _flops(config: ConfigDict) -> float:
    """Model FLOPs of an image, as MFU counts them; a scan has the same, and is traced sooner."""
    config = config.copy_and_resolve_references()
    config.model.blocks, config.model.remat = "scan", "none"
    return step_flops(config)["model"]


# ------------------------------------------------------------------------------------- features
def features(settings: Settings) -> Iterator[Entries]:
    """settings: as ours/features.py, and "budget_s", "file": where the cls features go, float32."""
    start = _started()
    began = time.perf_counter()
    side = ours_features.side(settings)
    side.run(1)
    yield start | {"compile_s": time.perf_counter() - began}
    cls = side.check()["cls"]
    np.save(settings["file"], cls)
    yield from measured(side, settings["batch"], settings["budget_s"])
    yield {"ok": bool(np.isfinite(cls).all())}
