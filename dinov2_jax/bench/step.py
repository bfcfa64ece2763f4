"""The whole training step against PyTorch steps made of timm's ViT and lightly's losses.

Peers: "lightly" (timm's blocks and lightly's losses as they are), "torch" (timm's blocks with
stochastic depth that skips, losses written plainly), each also through torch.compile. The recipe is
a configuration file; crops are noise on the device, so the loader plays no part. Before any timing,
two fp32 steps without stochastic depth must agree to 1e-4 in every loss, every gradient norm, and
the norms of student and teacher.
"""

import copy
import functools
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinov2_jax.bench.benchmark import Benchmark, Case, Peers
from dinov2_jax.bench.harness import compare
from dinov2_jax.config.files import load_config, to_dict

PEERS: Peers = {
    "lightly": ("peers.step:lightly", {"compile": False}),
    "lightly-compiled": ("peers.step:lightly", {"compile": True}),
    "torch": ("peers.step:plain", {"compile": False}),
    "torch-compiled": ("peers.step:plain", {"compile": True}),
}
# The flags that `recipe` reads.
FLAGS = {
    "config": ("configs/default.py", "the recipe"),
    "batch": (2, "images per step"),
    "variant": ("vit_small", "size of the backbone; '': the recipe's"),
    "depth": (0, "blocks; 0: the recipe's"),
    "patch_size": (0, "px; 0: the recipe's"),
    "global_size": (0, "px; 0: the recipe's"),
    "local_size": (0, "px; 0: the recipe's"),
    "prototypes": (0, "K; 0: the recipe's"),
    "centering": ("", "centering or sinkhorn_knopp; '': the recipe's"),
    "remat": ("", "ours: model.remat; '': the recipe's"),
    "blocks": ("", "ours: model.blocks; '': the recipe's"),
}
# A step in the middle of a run. The check moves the teacher far enough that errors show.
HYPER = {
    "lr": 1e-3,
    "last_layer_lr": 1e-3,
    "backbone_lr": 1e-3,
    "weight_decay": 0.04,
    "momentum": 0.994,
    "teacher_temp": 0.07,
}
CHECK_BATCH = 4
CHECK_HYPER = (
    HYPER | dict.fromkeys(("lr", "last_layer_lr", "backbone_lr"), 1e-4) | {"momentum": 0.9}
)


def recipe(args: Any) -> dict[str, Any]:
    """The configuration of --config with the sizes of the command line, as a plain dict."""
    config = load_config(args.config)
    config.batch_size = config.group_size = args.batch  # one accelerator is one group
    config.compute_dtype = args.dtype
    for name in ("variant", "depth", "patch_size"):
        if getattr(args, name):
            config.model[name] = getattr(args, name)
    for name in ("global_size", "local_size"):
        if getattr(args, name):
            config.crops[name] = getattr(args, name)
    if args.prototypes:
        config.dino.head_prototypes = config.ibot.head_prototypes = args.prototypes
    if args.remat:
        config.model.remat = args.remat
    if args.centering:
        config.centering = args.centering
    if args.blocks:
        config.model.blocks = args.blocks
    return to_dict(config)


def for_check(config: dict[str, Any]) -> dict[str, Any]:
    """The same in fp32 and without stochastic depth, whose draws differ between libraries.

    It has only a few images, because fp32 takes two to three times the memory of what is timed.
    """
    config = copy.deepcopy(config)
    config["batch_size"] = config["group_size"] = min(config["batch_size"], CHECK_BATCH)
    config["compute_dtype"] = "float32"
    config["model"]["drop_path_rate"] = 0.0
    return config


def title_of(config: dict[str, Any]) -> str:
    """The sizes of a step, in short."""
    model, crops = config["model"], config["crops"]
    return (
        f"{model['variant']}/{model['patch_size']} B={config['batch_size']} "
        f"2x{crops['global_size']}+{crops['local_number']}x{crops['local_size']} "
        f"K={config['dino']['head_prototypes']} {config['centering']} {config['compute_dtype']}"
    )


def cases(args: Namespace, folder: Path) -> Iterator[Case]:
    """One case."""
    config = recipe(args)
    common = {"threads": args.threads, "device": args.device, "seed": args.seed}
    yield Case(
        f"step {title_of(config)}",
        common | {"config": config, "hyper": HYPER},
        functools.partial(compare, max_rel=1e-4),
        items=args.batch,
        unit="images",
        check_settings=common | {"config": for_check(config), "hyper": CHECK_HYPER},
    )


BENCHMARK = Benchmark("step", __doc__, PEERS, FLAGS, cases, defaults={"rounds": 5})
main = BENCHMARK.main

if __name__ == "__main__":
    sys.exit(main())
