"""`curate.dry_run`: rows, bytes, method and hours of every stage, before anything is read."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from dinov2_jax.curation import pixels
from dinov2_jax.curation.cells import plan_pairs
from dinov2_jax.data.sources.open import open_source

# Measured on 2 CPU cores with small pictures; decoding a photo of 500 px takes 5 ms of a core.
_DECODE_PER_S = 200.0
_EMBED_PER_S = {"cpu": 20.0, "gpu": 2000.0, "tpu": 2000.0}  # a ViT-S at 224 px
_FACT_BYTES, _EDGE_BYTES, _WIDTH = 500, 24, 384


def print_plan(config: ConfigDict, used: Sequence[str]) -> None:
    """Prints the plan of a curation of `curate.plan_rows` pictures, or of those of `data.path`."""
    rows = config.curate.plan_rows
    if not rows:
        data = config.data
        rows = len(open_source(data.source, data.path, split=data.split))
    print(f"{rows:,} pictures; sizes and times are estimates, for this machine's devices")
    print(f"{'stage':<10} {'rows':>16} {'size':>10} {'hours':>9}  method")
    for name in used:
        bytes_, hours, method = _estimate(name, rows, config)
        print(f"{name:<10} {rows:>16,} {_size(bytes_):>10} {hours:>9.2f}  {method}")


def _estimate(name: str, rows: int, config: ConfigDict) -> tuple[float, float, str]:
    import jax

    width = _WIDTH if config.weights else pixels.WIDTH
    wanted = config.curate
    narrow = min(width, wanted.calibrate.width)
    if name == "pictures":
        speed = _DECODE_PER_S * max(1, config.data.workers)
        size = _FACT_BYTES + 768 + 16
        return rows * size, rows / speed / 3600, f"{max(1, config.data.workers)} loader processes"
    if name == "embed":
        speed = _EMBED_PER_S[jax.default_backend()] * jax.device_count()
        hours = rows / speed / 3600 if config.weights else rows / 1e6 / 3600
        return rows * width * 4, hours, config.weights or "pixels, no weights"
    if name == "calibrate":
        return rows * narrow * 2, rows / 1e6 / 3600, f"{wanted.calibrate.pictures:,} pictures"
    if name == "dedup":
        how = plan_pairs(rows, narrow)
        method = f"{how.cells:,} cells" if how.cells else "all pairs"
        return rows * _EDGE_BYTES, how.seconds / 3600, f"{method}, {how.share:.2%} of the pairs"
    if name == "cluster":
        flops = 2.0 * width * rows * wanted.kmeans.sizes[0] * wanted.kmeans.iterations
        speed = plan_pairs(10**6, 128, cells=0)
        rate = speed.flops / max(speed.seconds, 1e-9)
        return rows * 16, flops / rate / 3600, f"k-means, k = {wanted.kmeans.sizes}"
    return rows * _EDGE_BYTES, rows / 4e6 / 3600, f"tables, engine {wanted.engine}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
