"""The whole training step against PyTorch steps made of timm's ViT and lightly's losses.

Peers: "lightly" (timm's blocks and lightly's losses as they are), "torch" (timm's blocks with
stochastic depth that skips, losses written plainly), each also through torch.compile. The recipe is
a configuration file; crops are noise on the device, so the loader plays no part. Before any timing,
two fp32 steps without stochastic depth must agree in every loss, gradient norm, and in the norms
of student and teacher to 1e-4.
"""

import argparse
import copy
import functools
import sys
from typing import Any

from dinov2_jax.bench.duel import Contender, run_case
from dinov2_jax.bench.harness import compare
from dinov2_jax.bench.report import finish, parser, prepare
from dinov2_jax.config.files import ConfigError, load_config, to_dict

PEERS = {
    "lightly": ("lightly", False),
    "lightly-compiled": ("lightly", True),
    "torch": ("plain", False),
    "torch-compiled": ("plain", True),
}
# A step in the middle of a run. The check moves the teacher far enough to be noticed.
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
    config.model.scan_blocks = not args.unroll
    return to_dict(config)


def for_check(config: dict[str, Any]) -> dict[str, Any]:
    """The same in fp32 and without stochastic depth, whose draws differ between libraries.

    Of a few images only: in fp32 a batch takes two to three times the memory of what is timed.
    """
    config = copy.deepcopy(config)
    config["batch_size"] = config["group_size"] = min(config["batch_size"], CHECK_BATCH)
    config["compute_dtype"] = "float32"
    config["model"]["drop_path_rate"] = 0.0
    return config


def title_of(config: dict[str, Any]) -> str:
    """What a step of this recipe works on, in short."""
    model, crops = config["model"], config["crops"]
    return (
        f"{model['variant']}/{model['patch_size']} B={config['batch_size']} "
        f"2x{crops['global_size']}+{crops['local_number']}x{crops['local_size']} "
        f"K={config['dino']['head_prototypes']} {config['centering']} {config['compute_dtype']}"
    )


def add_recipe(flags: argparse.ArgumentParser) -> None:
    """The flags that `recipe` reads."""
    flags.add_argument("--config", default="configs/default.py", help="the recipe")
    flags.add_argument("--batch", type=int, default=2, help="images a step")
    flags.add_argument("--variant", default="vit_small", help="of the backbone; '': the recipe's")
    flags.add_argument("--depth", type=int, default=0, help="blocks; 0: the recipe's")
    flags.add_argument("--patch_size", type=int, default=0, help="px; 0: the recipe's")
    flags.add_argument("--global_size", type=int, default=0, help="px; 0: the recipe's")
    flags.add_argument("--local_size", type=int, default=0, help="px; 0: the recipe's")
    flags.add_argument("--prototypes", type=int, default=0, help="K; 0: the recipe's")
    flags.add_argument("--centering", default="", help="or sinkhorn_knopp; '': the recipe's")
    flags.add_argument("--remat", default="", help="ours: model.remat; '': the recipe's")
    flags.add_argument("--unroll", action="store_true", help="ours: unroll the blocks")


def main() -> int:
    """Returns the exit status."""
    flags = parser(__doc__ or "", list(PEERS), rounds=5)
    add_recipe(flags)
    args = flags.parse_args()
    try:
        config = recipe(args)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from error
    rules = prepare(args)
    common = {"threads": args.threads, "device": args.device, "seed": args.seed}
    timed = common | {"config": config, "hyper": HYPER}
    checked = common | {"config": for_check(config), "hyper": CHECK_HYPER}
    peers = [
        Contender(
            name,
            f"dinov2_jax.bench.peers.step:{PEERS[name][0]}",
            timed | {"compile": PEERS[name][1]},
            checked | {"compile": PEERS[name][1]},
        )
        for name in args.peers
    ]
    case = run_case(
        f"step {title_of(config)}",
        Contender("ours", "dinov2_jax.bench.ours.step:side", timed, checked),
        peers,
        functools.partial(compare, max_rel=1e-4),
        rules,
        items=args.batch,
        unit="images",
    )
    return finish("step", args, [case])


if __name__ == "__main__":
    sys.exit(main())
