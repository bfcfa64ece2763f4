"""Three full training steps against the reference's vectors: losses, gradients, weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov2_jax.models.head import DINOHead
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.ssl.objective import Networks, Objective, student_loss, teacher_targets
from dinov2_jax.train.optimizer import (
    AdamW,
    clip_by_module_norm,
    module_norms,
    parameter_multipliers,
)
from dinov2_jax.train.schedules import cosine_schedule, linear_then_constant
from dinov2_jax.train.state import init_state
from dinov2_jax.train.step import train_step
from dinov2_jax.weights.convert import from_reference, to_reference

FILES = ["step_sinkhorn", "step_registers_swiglu", "step_centering"]
PATCH = 7


@pytest.fixture(scope="module", params=FILES)
def case(request, golden):
    return request.param, dict(np.load(golden / f"{request.param}.npz"))


def load_params(data: dict, prefix: str) -> dict:
    modules: dict[str, dict] = {}
    for key, value in data.items():
        if key.startswith(prefix):
            module, name = key.removeprefix(prefix).split(".", 1)
            modules.setdefault(module, {})[name] = value
    return {module: from_reference(flat) for module, flat in modules.items()}


def flatten(params: dict) -> dict[str, np.ndarray]:
    return {
        f"{module}.{key}": value
        for module, tree in params.items()
        for key, value in to_reference(tree, PATCH).items()
    }


def networks(params: dict, crop_px: int) -> Networks:
    backbone = params["backbone"]
    swiglu = "w12" in backbone["blocks"]["mlp"]
    registers = backbone["register_tokens"].shape[1] if "register_tokens" in backbone else 0
    vit = VisionTransformer(
        dim=backbone["cls_token"].shape[-1],
        depth=backbone["blocks"]["norm1"]["scale"].shape[0],
        heads=3,
        patch_size=PATCH,
        image_size=crop_px,
        ffn="swiglu" if swiglu else "mlp",
        registers=registers,
    )

    def head(name: str) -> DINOHead:
        prototypes, bottleneck = params[name]["last_layer"]["weight_v"].shape
        hidden = params[name]["mlp_0"]["bias"].shape[0]
        return DINOHead(prototypes, hidden_dim=hidden, bottleneck_dim=bottleneck)

    return Networks(vit, head("dino_head"), head("ibot_head") if "ibot_head" in params else None)


def objective_of(name: str, data: dict) -> Objective:
    params = load_params(data, "init/student/")
    nets = networks(params, data["step0/collated_global_crops"].shape[-1])
    centering = "centering" if name == "step_centering" else "sinkhorn_knopp"
    return Objective(nets, nets, centering=centering)


def image_major(x: np.ndarray, images: int) -> np.ndarray:
    """Crop-major [V * B, ...] -> [B, V, ...]."""
    return np.swapaxes(x.reshape(-1, images, *x.shape[1:]), 0, 1)


def batch_of(data: dict, step: int) -> dict[str, jnp.ndarray]:
    get = {
        k.removeprefix(f"step{step}/"): v for k, v in data.items() if k.startswith(f"step{step}/")
    }
    images = get["collated_global_crops"].shape[0] // 2
    patches = get["collated_masks"].shape[1]
    slots = int(get["upperbound"])
    view, image = np.divmod(get["mask_indices_list"] // patches, images)
    flat = (image * 2 + view) * patches + get["mask_indices_list"] % patches
    indices, weights = np.zeros((1, slots), np.int32), np.zeros((1, slots), np.float32)
    indices[0, : len(flat)], weights[0, : len(flat)] = flat, get["masks_weight"]
    crops = {
        name: image_major(get[f"collated_{name}"].transpose(0, 2, 3, 1), images)
        for name in ("global_crops", "local_crops")
    }
    masks = image_major(get["collated_masks"], images)
    batch = crops | {"masks": masks, "mask_indices": indices, "mask_weights": weights}
    return jax.tree.map(jnp.asarray, batch)


def hyper_of(data: dict, step: int) -> dict[str, jnp.ndarray]:
    names = {
        "lr": "lr",
        "last_layer_lr": "last_lr",
        "backbone_lr": "lr",
        "weight_decay": "wd",
        "momentum": "mom",
        "teacher_temp": "temp",
    }
    return {ours: jnp.float32(data[f"step{step}/{theirs}"]) for ours, theirs in names.items()}


def optimizer_settings(data: dict, objective: Objective) -> dict:
    mult = dict(zip(data["groups/names"].tolist(), data["groups/lr_mult"].tolist(), strict=True))
    depth = objective.student.backbone.depth
    decay = mult["backbone.cls_token"] ** (1 / (depth + 1))
    return {"depth": depth, "layerwise_decay": round(decay, 6), "patch_embed_multiplier": 0.2}


def initial_state(data: dict, objective: Objective, optimizer):
    size = data["step0/collated_global_crops"].shape[-1]
    state = init_state(jax.random.key(0), objective, optimizer, size)
    student, teacher = (load_params(data, f"init/{side}/") for side in ("student", "teacher"))
    same = jax.tree.map(lambda a, b: a.shape == b.shape, state.student, student)
    assert all(jax.tree.leaves(same))
    as_jax = functools.partial(jax.tree.map, jnp.asarray)
    return state.replace(student=as_jax(student), teacher=as_jax(teacher))


def relative_l2(got: dict, want: dict) -> float:
    error = sum(np.sum((got[k].astype(np.float64) - want[k]) ** 2) for k in want)
    return float(np.sqrt(error / sum(np.sum(want[k].astype(np.float64) ** 2) for k in want)))


def test_three_steps(case):
    name, data = case
    objective = objective_of(name, data)
    params = load_params(data, "init/student/")
    optimizer = AdamW(parameter_multipliers(params, **optimizer_settings(data, objective)))
    state = initial_state(data, objective, optimizer)
    step = jax.jit(functools.partial(train_step, objective=objective, optimizer=optimizer))
    for i in range(3):
        state, metrics = step(state, batch_of(data, i), hyper_of(data, i))
        logged = {
            "dino_local_crops_loss": metrics["loss/dino_local"],
            "dino_global_crops_loss": metrics["loss/dino_global"],
            "koleo_loss": 0.1 * metrics["loss/koleo"] / 2,  # the reference logs half of both
            "ibot_loss": metrics["loss/ibot"] / 2,
        }
        for part, value in logged.items():
            np.testing.assert_allclose(value, data[f"step{i}/loss/{part}"], rtol=2e-5, err_msg=part)
        for module in state.student:
            want = data[f"step{i}/grad_norm/{module}"]
            np.testing.assert_allclose(metrics[f"grad_norm/{module}"], want, rtol=2e-5)
    for side in ("student", "teacher"):
        got = flatten(getattr(state, side))
        for module in state.student:
            prefix = f"final/{side}/"
            want = {
                k.removeprefix(prefix): v
                for k, v in data.items()
                if k.startswith(f"{prefix}{module}.")
            }
            assert relative_l2(got, want) <= 5e-5, (side, module)


def test_first_clipped_gradients(case):
    name, data = case
    objective = objective_of(name, data)
    student, teacher = (load_params(data, f"init/{side}/") for side in ("student", "teacher"))
    batch, temp = batch_of(data, 0), hyper_of(data, 0)["teacher_temp"]

    @jax.jit
    def gradients(student, teacher, batch):
        targets, _ = teacher_targets(objective, teacher, objective.init_centers(), batch, temp)
        grads = jax.grad(student_loss, has_aux=True)(student, objective, targets, batch, None)[0]
        return clip_by_module_norm(grads, module_norms(grads), 3.0)

    got = flatten(gradients(student, teacher, batch))
    prefix = "step0/grad_clipped/"
    want = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    assert got.keys() == want.keys()
    for key, value in want.items():
        module = [v for k, v in want.items() if k.split(".")[0] == key.split(".")[0]]
        if np.linalg.norm(value) >= 1e-6 * np.sqrt(sum(np.sum(v**2) for v in module)):
            assert relative_l2({key: got[key]}, {key: value}) <= 5e-5, key


def test_multipliers(case):
    name, data = case
    objective = objective_of(name, data)
    params = load_params(data, "init/student/")
    tree = parameter_multipliers(params, **optimizer_settings(data, objective))
    fields = {
        "lr_mult": lambda m: m.lr,
        "wd_mult": lambda m: m.weight_decay,
        "is_last": lambda m: m.rate == "last_layer_lr",
    }
    for field, of in fields.items():
        full = jax.tree.map(
            lambda p, m, of=of: np.broadcast_to(np.asarray(of(m), np.float64), p.shape),
            params,
            tree,
        )
        got = {key: np.unique(value) for key, value in flatten(full).items()}
        names = data["groups/names"].tolist()
        for key, want in zip(names, data[f"groups/{field}"].tolist(), strict=True):
            assert got[key].size == 1, key
            assert got[key][0] == pytest.approx(float(want), rel=1e-12, abs=0), (field, key)
        assert sorted(names) == sorted(got)


def test_schedules(golden):
    want = np.load(golden / "forward.npz")
    values = {
        "lr": lambda i: cosine_schedule(i, 0.004 * np.sqrt(2), 1e-6, 1000, 100),
        "wd": lambda i: cosine_schedule(i, 0.04, 0.4, 1000),
        "momentum": lambda i: cosine_schedule(i, 0.992, 1.0, 1000),
        "temp": lambda i: linear_then_constant(i, 0.04, 0.07, 300),
    }
    for name, schedule in values.items():
        got = [schedule(i) for i in range(1010)]
        np.testing.assert_allclose(got, want[f"schedule/{name}"], rtol=0, atol=1e-7, err_msg=name)
