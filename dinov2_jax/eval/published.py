"""The paper's figures, to stand beside ours: arXiv 2304.07193, tables 4 and 6 to 9; model card.

Rows are S, B, L, g. Only figures of the same model and data are ever shown, so there is none for
other sizes of patches or widths.
"""

from dinov2_jax.models.vit import VisionTransformer

# (protocol, data set): percent; without registers, and with them where the model card has them.
_WITHOUT = {
    ("knn", "imagenet"): (79.0, 82.1, 83.5, 83.5),
    ("linear", "imagenet"): (81.1, 84.5, 86.3, 86.5),
    ("linear", "imagenet_real"): (86.6, 88.3, 89.5, 89.6),
    ("linear", "imagenet_v2"): (70.9, 75.1, 78.0, 78.4),
    ("linear", "imagenet_a"): (33.5, 55.1, 71.3, 75.9),
    ("linear", "imagenet_r"): (53.7, 63.3, 74.4, 78.8),
    ("linear", "imagenet_c"): (54.4, 42.7, 31.5, 28.2),
    ("linear", "imagenet_sketch"): (41.2, 50.6, 59.3, 62.5),
    ("video", "kinetics400"): (67.8, 73.2, 76.3, 78.4),
    ("video", "ucf101"): (87.0, 89.1, 90.5, 91.2),
    ("video", "ssv2"): (33.1, 34.4, 35.6, 38.3),
    ("logreg", "food101"): (89.1, 92.8, 94.3, 94.7),
    ("logreg", "cifar10"): (97.7, 98.7, 99.3, 99.5),
    ("logreg", "cifar100"): (87.5, 91.3, 93.4, 94.4),
    ("logreg", "sun397"): (74.4, 77.3, 78.7, 78.7),
    ("logreg", "cars"): (81.6, 88.2, 90.1, 91.4),
    ("logreg", "aircraft"): (74.0, 79.4, 81.5, 87.2),
    ("logreg", "voc2007"): (87.8, 88.2, 88.3, 89.0),
    ("logreg", "dtd"): (80.6, 83.3, 84.0, 84.5),
    ("logreg", "pets"): (95.1, 96.2, 96.6, 96.7),
    ("logreg", "caltech101"): (97.0, 96.1, 97.5, 97.6),
    ("logreg", "flowers102"): (99.6, 99.6, 99.7, 99.7),
    ("logreg", "cub200"): (88.1, 89.6, 90.5, 91.6),
    ("logreg", "average"): (87.7, 90.1, 91.2, 92.1),
    ("retrieval_medium", "roxford5k"): (68.8, 72.9, 75.1, 73.6),
    ("retrieval_hard", "roxford5k"): (43.2, 49.5, 54.0, 52.3),
    ("retrieval_medium", "rparis6k"): (84.6, 90.3, 92.7, 92.1),
    ("retrieval_hard", "rparis6k"): (68.5, 78.6, 83.5, 82.6),
    ("retrieval_gap", "met"): (29.4, 36.7, 40.0, 36.8),
    ("retrieval_gap_minus", "met"): (54.3, 63.5, 68.9, 73.6),
    ("retrieval_accuracy", "met"): (57.7, 66.1, 71.6, 76.5),
    ("retrieval", "amstertime"): (43.5, 45.6, 50.0, 46.7),
    ("finetune", "imagenet"): (None, None, None, 88.5),
}
_WITH_REGISTERS = {
    ("knn", "imagenet"): (79.1, 82.0, 83.8, 83.7),
    ("linear", "imagenet"): (80.9, 84.6, 86.7, 87.1),
    ("linear", "imagenet_v2"): (71.0, 75.6, 78.5, 78.8),
    ("retrieval_hard", "roxford5k"): (39.5, 51.0, 55.7, 58.2),
}
# (width, depth) of S, B, L, g
_SIZES = ((384, 12), (768, 12), (1024, 24), (1536, 40))


def published(model: VisionTransformer, protocol: str, data: str) -> float | None:
    """The paper's percentage for this model and data, or None.

    Args:
      protocol: "knn", "linear", "logreg", "video", "finetune", or "retrieval" with the metric.
      data: name of the data set as in `config.data.source`, such as "imagenet".
    """
    size = (model.dim, model.depth)
    if size not in _SIZES or model.patch_size != 14:
        return None
    table = _WITH_REGISTERS if model.registers else _WITHOUT
    row = table.get((protocol, data))
    return row[_SIZES.index(size)] if row else None
