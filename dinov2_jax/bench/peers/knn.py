"""Exact inner-product search by faiss's IndexFlatIP, and by a product and topk of PyTorch."""

import torch

from dinov2_jax.bench.draws import draw_unit_vectors
from dinov2_jax.bench.harness import Arrays, Settings, Side
from dinov2_jax.bench.peers.runtime import configure, side_of


def faiss(settings: Settings) -> Side:
    """settings: as ours/knn.py, and "threads", "device" (the CPU)."""
    import faiss as library

    if settings["device"] != "cpu":
        raise ImportError("faiss-cpu has no GPU index; use --device=cpu")
    library.omp_set_num_threads(settings["threads"])
    bank, queries = draw_unit_vectors(settings)
    index = library.IndexFlatIP(settings["dim"])
    index.add(bank)

    def check() -> Arrays:
        similarities, rows = index.search(queries, settings["k"])
        return {"similarities": similarities, "rows": rows}

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            index.search(queries, settings["k"])

    return Side(check, run, versions={"faiss": library.__version__})


def torch_topk(settings: Settings) -> Side:
    """As `faiss`, on any device."""
    device = configure(settings)
    bank, queries = (torch.from_numpy(x).to(device) for x in draw_unit_vectors(settings))

    @torch.inference_mode()
    def call() -> tuple[torch.Tensor, torch.Tensor]:
        similarities, rows = torch.topk(queries @ bank.T, settings["k"], dim=1)
        return similarities.cpu(), rows.cpu()

    def check() -> Arrays:
        similarities, rows = call()
        return {"similarities": similarities.numpy(), "rows": rows.numpy()}

    return side_of(check, call, device)
