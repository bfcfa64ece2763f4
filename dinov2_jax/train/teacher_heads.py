"""`config.distill.teacher_heads=train`: heads for a teacher that was released without them.

They are trained on the frozen backbone by the losses of pretraining, as an ordinary run in
<workdir>/teacher_heads. Its average, with the backbone as it was, is the teacher.
"""

from pathlib import Path

from ml_collections import ConfigDict

from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.parallel.processes import main_first
from dinov2_jax.train.init_from import model_fields
from dinov2_jax.weights.load import load

FOLDER = "teacher_heads"
# Schedules that are shortened with the run.
_SCHEDULES = (
    "optimizer.warmup_steps",
    "optimizer.freeze_last_layer_steps",
    "teacher.temp_warmup_steps",
)


def heads_config(config: ConfigDict, student: ConfigDict) -> ConfigDict | None:
    """The run that trains heads for `config.distill.teacher`; None where nothing is to be trained.

    Args:
      student: whose heads give the sizes of the teacher's.

    Raises:
      WeightsError, CheckpointError: the teacher cannot be read.
    """
    distill = config.distill
    if not distill.teacher or distill.teacher_heads != "train":
        return None
    with main_first():
        weights = load(distill.teacher, allow=config.allow.split(","))
    if "dino_head" in weights.heads:
        return None
    return _heads_run(config, student, weights.model)


def _heads_run(config: ConfigDict, student: ConfigDict, model: VisionTransformer) -> ConfigDict:
    own = student.copy_and_resolve_references().unlock()
    steps, before = config.distill.head_steps, config.total_steps
    for name, value in model_fields(own, model).items():
        own.model[name] = value
    own.model.drop_path_rate = 0.0
    own.init_from, own.init_state = config.distill.teacher, "teacher"
    own.distill.teacher, own.distill.teacher_heads, own.distill.students = "", "", ()
    own.total_steps = own.optimizer.freeze_backbone_steps = steps
    own.centering = "sinkhorn_knopp"
    for field in _SCHEDULES:
        group, _, name = field.partition(".")
        own[group][name] = own[group][name] * steps // before
    own.eval.every_steps = 0  # the features do not change
    return own.lock()


def with_heads(config: ConfigDict, folder: Path) -> ConfigDict:
    """The same configuration with the trained heads' run as its teacher."""
    changed = config.copy_and_resolve_references()
    changed.distill.teacher = str(folder / FOLDER)
    return changed
