"""`load_head`: any head that predicts something of pictures; the file tells which kind it is."""

from pathlib import Path

from dinov2_jax.errors import EvaluationError
from dinov2_jax.heads.dense_head import DenseHead, dense_from_stored
from dinov2_jax.heads.linear import LinearHead, from_stored
from dinov2_jax.weights.dense_files import dense_of, is_dense
from dinov2_jax.weights.files import read_tensors
from dinov2_jax.weights.heads import head_of, head_path


def load_head(
    path_or_name: str | Path,
    *,
    dim: int | None = None,
    low: float | None = None,
    high: float | None = None,
) -> LinearHead | DenseHead:
    """Loads a head that was trained here or released with DINOv2; the file tells its kind.

    Args:
      path_or_name: a classifier, segmentation or depth head as .safetensors (ours) or .pth
        (released); a bundle with a classifier, or the directory of a Dinov2ForImageClassification;
        or the name of a released head, which is downloaded: "dinov2_vits14_ade20k_linear",
        "dinov2_vitb14_nyu_dpt", "dinov2_vitl14_linear4", ... (the name of its file, without
        "_head.pth").
      dim: width of the backbone; needed for released classifiers of an unusual width only.
      low, high: metres; the range of a depth head that neither its file nor its name tells. Heads
        for NYU have 0.001 and 10, those for KITTI 0.001 and 80.

    Returns:
      A `LinearHead` (classes of pictures) or a `DenseHead` (a class or a depth of every pixel);
      `head.predict(backbone, pictures)` for both, and `head.save(path)`.

    Raises:
      WeightsError: the file is missing or damaged, or holds something else.
      EvaluationError: a range for a head that has no depth.

    Example:
      >>> head = dinov2_jax.load_head("masks.safetensors")
      >>> head
      DenseHead(segmentation, 3 classes, reads 64 values, name='masks')
      >>> backbone = dinov2_jax.load("runs/first")
      >>> head.predict(backbone, "photos/1.jpg").shape
      (40, 60)
    """
    path = head_path(path_or_name)
    stored = read_tensors(path)
    if is_dense(stored):
        return dense_from_stored(dense_of(stored), path, low=low, high=high)
    if low is not None or high is not None:
        raise EvaluationError(f"{path} is a classifier, without depths; leave out low and high")
    return from_stored(head_of(stored, dim))
