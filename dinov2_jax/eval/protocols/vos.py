"""Video object segmentation on DAVIS 2017 by label propagation (DINO's protocol)."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dinov2_jax.config.files import ConfigError
from dinov2_jax.data.fingerprint import describe
from dinov2_jax.data.fit import Fit
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.datasets.davis import (
    Resized,
    Video,
    davis2017,
    frame_size,
    read_mask,
    read_palette,
)
from dinov2_jax.datasets.files import Files
from dinov2_jax.eval.data import check_fields_of_set
from dinov2_jax.eval.pictures import unreadable
from dinov2_jax.eval.task import Context, Finding, Metric, Need, Task, Work
from dinov2_jax.features.extractor import Extractor
from dinov2_jax.features.request import Request
from dinov2_jax.heads import propagation
from dinov2_jax.heads.propagation import Rule
from dinov2_jax.metrics.tracking import boundary_accuracy, region_similarity, summarise
from dinov2_jax.models.layers import compute_dtype
from dinov2_jax.parallel.mesh import make_mesh, own_mesh
from dinov2_jax.parallel.processes import from_main, is_main
from dinov2_jax.run.files import replacing, write_json
from dinov2_jax.run.progress import Progress
from dinov2_jax.viz.gallery import Figure
from dinov2_jax.viz.tracks import track_sheet
from dinov2_jax.weights.architecture import in_channels

_FRAMES_AT_ONCE = 8  # over all devices; a frame has ten times the patches of a picture of 224 px
_MASKS = "masks"  # folder of the predicted masks, in the layout of DAVIS's own tools
_LEAD = (
    "Objects of the first frame, whose masks are given, on later frames: predicted above, true "
    "below. Nothing is trained; each patch takes the labels of the patches that it resembles."
)


class _Judged(NamedTuple):
    """J and F of a video, [objects, frames] without the first and the last frame."""

    j: list[list[float]]
    f: list[list[float]]


def open(context: Context) -> list[Task]:
    """Follows the objects of every video of `vos.split` from their masks on the first frame.

    Raises:
      ConfigError, SourceError: no path of DAVIS 2017, or files that are missing or do not fit.
    """
    config, data = context.config.vos, context.config.data
    if data.set != "davis2017" or not data.path:
        raise ConfigError(
            "vos needs --config.data.set=davis2017 and --config.data.path=<the folder DAVIS>, into "
            "which DAVIS-2017-trainval-480p.zip was unpacked"
        )
    check_fields_of_set(data)
    videos = davis2017(data.path, config.split)[: config.videos or None]
    sources = {"frames": _joined(videos, "frames"), "masks": _joined(videos, "masks")}
    needs = (Need("frames", sources["frames"], None),)
    settings = context.settings("vos", **sources)

    def run(work: Work) -> Iterator[Finding]:
        _check_frames(context, sources["frames"])
        judged, lost = _judge_all(context, videos, work.folder)
        if not judged:
            raise SourceError("no video of DAVIS 2017 has frames that can all be read")
        yield from _metrics(judged)
        yield {"objects": _by_object(judged), "left_out": lost}
        shown = [video for video in videos if video.name in judged][: config.pictures]
        shown *= is_main()  # the others may not see the masks that process 0 has written
        yield from (_figure(video, judged, work.folder, data.max_pixels) for video in shown)

    return [Task("davis2017", needs, settings, run)]


def _joined(videos: Sequence[Video], kind: str) -> Files:
    """The files of all videos as one source, for fingerprints and checks."""
    parts: list[Files] = [getattr(video, kind) for video in videos]
    names = [part.name(row) for part in parts for row in range(len(part))]
    first = parts[0]
    return Files(first.path(0).removesuffix(first.name(0)), names, title="DAVIS 2017")


def _check_frames(context: Context, frames: Files) -> None:
    """Raises SourceError if more frames than `data.max_bad` cannot be read, by their headers."""
    limits = context.config.data.max_pixels, context.config.data.max_bad
    error = from_main(unreadable(frames, *limits, "frames") if is_main() else "")
    if error:
        raise SourceError(error)


# ------------------------------------------------------------------------------------- tracking
def _judge_all(
    context: Context, videos: Sequence[Video], folder: Path
) -> tuple[dict[str, _Judged], dict[str, int]]:
    """Tracks and judges every video that was not finished before a kill.

    Returns:
      J and F by video, and the number of unreadable frames of videos that are left out.
    """
    bar = Progress(sum(len(v.frames) for v in videos), unit="frame") if is_main() else None
    judged: dict[str, _Judged] = {}
    lost: dict[str, int] = {}
    done = 0
    for video in videos:
        found = from_main(_stored(context, video, folder) if is_main() else None)
        if found is None:
            found = from_main(_judge(context, video, folder, bar, done))
        if isinstance(found, int):
            lost[video.name] = found
            _require_few(context, lost)
        else:
            judged[video.name] = _Judged(*found)
        done += len(video.frames)
    if bar:
        bar.close()
    return judged, lost


def _stored(context: Context, video: Video, folder: Path) -> _Judged | None:
    """What an evaluation that was killed found with the same weights, settings and files."""
    file = _judged_file(folder, video)
    stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if stored.get("identity") != _identity(context, video):
        return None
    return _Judged(stored["j"], stored["f"])


def _judged_file(folder: Path, video: Video) -> Path:
    return folder / "judged" / f"{video.name}.json"


def _identity(context: Context, video: Video) -> str:
    """What a video's masks and figures depend on."""
    rule = {k: v for k, v in context.config.vos.items() if k not in ("split", "videos", "pictures")}
    files = [describe(source)["fingerprint"] for source in (video.frames, video.masks)]
    parts = context.weights, context.config.compute_dtype, sorted(rule.items()), files
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _require_few(context: Context, lost: Mapping[str, int]) -> None:
    bad = sum(lost.values())
    if bad > context.config.data.max_bad:
        raise SourceError(
            f"{bad} frames cannot be decoded, in {', '.join(lost)}; unpack them again, or add "
            f"--config.data.max_bad={bad} to leave these videos out"
        )


def _judge(
    context: Context, video: Video, folder: Path, bar: Progress | None, done: int
) -> _Judged | int | None:
    """Judges one video, and stores its masks; or the number of frames that are unreadable.

    Process 0 judges and writes; the others return None.
    """
    objects, palette = int(video.mask(0).max()), read_palette(video.masks.path(0))
    last, came = len(video.frames) - 1, 0
    rows: list[tuple[list[float], list[float]]] = []
    for frame, predicted in _track(context, video, objects):
        came += 1
        if is_main():
            _write_mask(_mask_file(folder, video, frame), predicted, palette)
            if 0 < frame < last:
                rows.append(_compare(predicted, video.mask(frame), objects))
        if bar:
            shown = {"J": 100 * float(np.mean([j for j, _ in rows]))} if rows else {}
            bar.update(done + came, **shown)
    if came <= last:
        return last + 1 - came
    if not is_main():
        return None
    found = _Judged(*(np.transpose(part).tolist() for part in zip(*rows, strict=True)))
    about = {"identity": _identity(context, video), **found._asdict()}
    write_json(_judged_file(folder, video), about)
    return found


def _compare(
    predicted: np.ndarray, true: np.ndarray, objects: int
) -> tuple[list[float], list[float]]:
    """J and F of each object on one frame."""
    pairs = [(predicted == i, true == i) for i in range(1, objects + 1)]
    return [region_similarity(*p) for p in pairs], [boundary_accuracy(*p) for p in pairs]


def _mask_file(folder: Path, video: Video, frame: int) -> Path:
    return folder / _MASKS / video.name / f"{frame:05}.png"


def _track(context: Context, video: Video, objects: int) -> Iterator[tuple[int, np.ndarray]]:
    """(frame, objects uint8 [H, W]) of all readable frames; the first keeps its true mask."""
    config, patch = context.config.vos, context.backbone.model.patch_size
    size = frame_size(video.size, config.short_side, patch)
    grid = size[0] // patch, size[1] // patch
    rule = Rule(config.radius, config.top_k, config.temperature)
    mesh = own_mesh(make_mesh())  # several processes do the same
    memory, classes = None, video.mask(0)
    for frame, features in _features(context, video, size):
        with jax.set_mesh(mesh):
            if memory is None:
                labels = propagation.one_hot(classes, grid, objects)
                memory = propagation.begin(features, labels, config.context)
            else:
                how = {"grid": grid, "rule": rule}
                memory, labels = propagation.propagate(memory, features, frame, **how)
                classes = propagation.classes_of(labels, grid, patch, video.size)
        yield frame, classes


def _features(
    context: Context, video: Video, size: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """(frame, patches fp32 [N, D] after the final norm), in order, without unreadable frames."""
    # DINOv2: DINO normalises colours by slightly other deviations; here they are the weights' own.
    backbone, data = context.backbone, context.config.data
    model = backbone.model
    columns = (("patches", "patches", model.depth - 1),)
    channels = in_channels(backbone.params, model.patch_size)
    request = Request(columns, True, Fit("resize", size, 0, model.patch_size), channels)
    dtype = compute_dtype(context.config.compute_dtype)
    count = min(context.config.batch_size, _FRAMES_AT_ONCE, len(video.frames))
    extractor = Extractor(backbone, request, batch_size=count, dtype=dtype, mesh=make_mesh())
    source = Resized(video.frames, size, data.max_pixels)
    rows, how = np.arange(len(source)), {"max_pixels": data.max_pixels, "workers": data.workers}
    for computed in extractor.stream(source, rows, **how):
        yield from zip(computed.rows.tolist(), computed.columns["patches"], strict=True)


def _write_mask(path: Path, mask: np.ndarray, palette: np.ndarray) -> None:
    image = Image.fromarray(mask)
    image.putpalette(palette.ravel().tolist())
    with replacing(path) as temporary:
        image.save(temporary, "PNG")


# --------------------------------------------------------------------------------------- results
def _metrics(judged: Mapping[str, _Judged]) -> Iterator[Metric]:
    """Means over all objects of all videos, in percent."""
    found = {}
    for name in ("j", "f"):
        objects = [summarise(np.array(x)) for v in judged.values() for x in getattr(v, name)]
        found[name] = 100 * np.mean(objects, axis=0)
    n = len(judged)
    yield Metric("j_and_f", float(found["j"][0] + found["f"][0]) / 2, n=n)
    for name, (mean, recall, decay) in found.items():
        yield Metric(name, float(mean), n=n)
        yield Metric(f"{name}_recall", float(recall), n=n)
        yield Metric(f"{name}_decay", float(decay), n=n, higher_is_better=False)


def _by_object(judged: Mapping[str, _Judged]) -> dict[str, dict[str, float]]:
    """J and F of each object in percent, by "<video> <object>"."""
    return {
        f"{name} {number}": {"j": 100 * float(np.mean(j)), "f": 100 * float(np.mean(f))}
        for name, video in judged.items()
        for number, (j, f) in enumerate(zip(video.j, video.f, strict=True), start=1)
    }


def _figure(video: Video, judged: Mapping[str, _Judged], folder: Path, max_pixels: int) -> Figure:
    count, found = len(video.frames), judged[video.name]
    masks = [_mask_file(folder, video, frame) for frame in range(count)]
    palette = read_palette(video.masks.path(0))
    objects = int(video.mask(0).max())
    image = track_sheet(
        Resized(video.frames, None, max_pixels),
        _Lazy(masks),
        palette[1 : objects + 1],
        _Lazy([Path(video.masks.path(frame)) for frame in range(count)]),
    )
    j, f = (100 * float(np.mean(x)) for x in found)
    caption = f"{video.name}: {objects} objects, {count} frames, J {j:.1f}, F {f:.1f}"
    return Figure("Tracks", _LEAD, f"track_{video.name}.png", image, caption)


class _Lazy(Sequence[np.ndarray]):
    """Masks of which only the drawn ones are read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: Any) -> np.ndarray:
        return read_mask(str(self._paths[index]))
