"""`config.distill.teacher_heads=train`: heads for a teacher that was released without them.

They are trained on the frozen backbone by the losses of pretraining, as an ordinary run in
<workdir>/teacher_heads. Its average, with the backbone as it was, is the teacher.
"""

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from dinov2_jax.config.files import load_config
from dinov2_jax.models.vit import VisionTransformer
from dinov2_jax.train.init_from import model_fields
from dinov2_jax.train.teacher import read_teacher
from dinov2_jax.weights.load import Backbone

FOLDER = "teacher_heads"
# Schedules that are shortened with the run.
_SCHEDULES = (
    "optimizer.warmup_steps",
    "optimizer.freeze_last_layer_steps",
    "teacher.temp_warmup_steps",
)


class HeadsRun(NamedTuple):
    """What comes before the student.

    Attributes:
      config: of the run that trains heads; None where nothing is to be trained.
      weights: the teacher's, if they had to be read for this; None otherwise.
    """

    config: ConfigDict | None = None
    weights: Backbone | None = None


def heads_run(config: ConfigDict, student: ConfigDict) -> HeadsRun:
    """The run that trains heads for `config.distill.teacher`.

    Args:
      student: whose heads give the sizes of the teacher's.

    Raises:
      As `read_teacher`.
    """
    distill = config.distill
    if not distill.teacher or distill.teacher_heads != "train":
        return HeadsRun()
    weights = read_teacher(config)
    if "dino_head" in weights.heads:
        return HeadsRun(weights=weights)
    return HeadsRun(_heads_config(config, student, weights.model), weights)


def _heads_config(config: ConfigDict, student: ConfigDict, model: VisionTransformer) -> ConfigDict:
    own = student.copy_and_resolve_references().unlock()
    steps, before = config.distill.head_steps, config.total_steps
    for name, value in model_fields(own, model).items():
        own.model[name] = value
    own.model.drop_path_rate = 0.0
    own.init_from, own.init_state = config.distill.teacher, "teacher"
    own.distill = load_config("default").distill  # an ordinary pretraining
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
    changed.distill.attention_heads = 0  # a run tells them
    return changed
