"""Prepared TFDS data sets."""

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dinov2_jax.data.decode import decode
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.sources.tfds import Tfds
from dinov2_jax.run.labels import keep_labels, recall_labels
from tests.data.sources.tiny_tfds import prepare_tfds


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The folder of a version, in <data_dir>/tiny_shapes/1.0.0."""
    return prepare_tfds(tmp_path_factory.mktemp("tfds"))


def test_tfds_gives_raw_bytes_and_labels(prepared: Path) -> None:
    source = open_source("tfds", str(prepared), "train")
    assert isinstance(source, Tfds)
    assert len(source) == 6
    raw = [source[row] for row in range(6)]
    assert {bytes(record) for record in raw} == {
        (prepared.parents[2] / "raw" / f"6-{row}.png").read_bytes() for row in range(6)
    }
    reds = np.array([decode(record)[0, 0, 0] for record in raw])
    np.testing.assert_array_equal(source.labels, reds >= 120)
    assert source.class_names == ("low", "high")
    assert pickle.loads(pickle.dumps(source))[3] == raw[3]
    assert len(open_source("tfds", str(source._title.removesuffix("/train")), "test")) == 2
    with pytest.raises(SourceError, match="split='validation'"):
        open_source("tfds", source._title.removesuffix("/train"), "validation")


def as_tfrecord(version: Path) -> None:
    """Names and the manifest of the default format of TFDS, which only TensorFlow writes."""
    manifest = version / "dataset_info.json"
    manifest.write_text(manifest.read_text().replace("array_record", "tfrecord"))
    for file in version.glob("*array_record*"):
        file.rename(version / file.name.replace("array_record", "tfrecord"))


def test_a_folder_above_one_version_is_enough(prepared: Path) -> None:
    for path in (prepared, prepared.parent, prepared.parent.parent, prepared / "dataset_info.json"):
        assert len(open_source("tfds", str(path), "train")) == 6
    assert len(open_source("tfds", f"tiny_shapes@{prepared.parent.parent}", "test")) == 2


@pytest.mark.parametrize("path", ["{}/none", "mnist@{}/none", "{}/none/", "./none", "~/none"])
def test_a_folder_that_is_not_there_does_not_exist(tmp_path: Path, path: str) -> None:
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*none/? does not exist"):
        open_source("tfds", path.format(tmp_path))


@pytest.mark.parametrize("by_name", [False, True])
def test_another_format_is_named_with_the_command_that_adds_array_record(
    prepared: Path, tmp_path: Path, by_name: bool
) -> None:
    version = Path(shutil.copytree(prepared.parent, tmp_path / "tiny_shapes")) / "1.0.0"
    as_tfrecord(version)
    command = f"tfds convert_format --dataset_version_dir={version} --out_file_format=array_record"
    path = f"tiny_shapes@{tmp_path}" if by_name else str(version)
    with pytest.raises(SourceError, match="is prepared as tfrecord") as found:
        open_source("tfds", path)
    assert str(found.value).endswith(command) and "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10:3.0.2"])
def test_a_set_that_is_not_prepared_is_named_with_the_command(tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(SourceError, match="is not prepared") as found:
        open_source("tfds", f"{name}@{tmp_path}")
    command = str(found.value).partition('python -c "')[2].removesuffix('"')
    assert f"tfds.builder({name!r}, data_dir={str(tmp_path)!r}" in command
    compile(command, "the command", "exec")


@pytest.mark.parametrize(
    "damage", ["dataset_info.json", "features.json", "no features", "no shard"]
)
def test_damaged_sets_are_one_sentence(prepared: Path, tmp_path: Path, damage: str) -> None:
    version = Path(shutil.copytree(prepared, tmp_path / "1.0.0"))
    if damage == "no shard":
        next(version.glob("*train*")).unlink()
    elif damage == "no features":
        version.joinpath("features.json").unlink()
    else:
        version.joinpath(damage).write_text('{"x":')
    with pytest.raises(SourceError, match=f"data.path={version} .*prepare it again") as found:
        open_source("tfds", str(version))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "path",
    [
        "mnst",
        "no such name",
        "mnist:9.9.9",
        "glue/none",
        "coco/2014",
        "a/b/c",
        "@{}",
        "kaggle:x",
        "{}",
    ],
)
def test_names_that_tfds_refuses_are_one_sentence(tmp_path: Path, path: str) -> None:
    pytest.importorskip("tensorflow_datasets")
    path = path.format(tmp_path)
    with pytest.raises(SourceError, match=re.escape(f"data.path={path}")) as found:
        open_source("tfds", path)
    assert "\n" not in str(found.value) and ";" in str(found.value)


def test_whatever_tfds_raises_is_one_sentence(prepared: Path, monkeypatch) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    class Foreign(Exception):
        pass

    def fails(*_, **__):
        raise Foreign("something went wrong. Possible root causes:\n\t* the moon\n\t* the sun")

    for name in ("builder", "builder_from_directory"):
        monkeypatch.setattr(tfds, name, fails)
    for path in ("mnist", str(prepared)):
        with pytest.raises(SourceError, match="causes: the moon;"):
            open_source("tfds", path)


def test_several_versions_are_named(prepared: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        shutil.copytree(prepared, tmp_path / "tiny_shapes" / version)
    with pytest.raises(SourceError, match=r"holds 2 prepared.*name one of .*1\.0\.0, .*1\.1\.0"):
        open_source("tfds", str(tmp_path))
    with pytest.raises(SourceError, match=r"did you mean .*/tiny_shapes/1\.1\.0\?"):
        open_source("tfds", f"tiny_shapes:7.0.0@{tmp_path}")


def test_labels_are_read_once_and_kept(prepared: Path, tmp_path: Path, monkeypatch) -> None:
    rows, read = [], Tfds._read_labels
    monkeypatch.setattr(Tfds, "_read_labels", lambda s, r: (rows.extend(r), read(s, r))[1])
    first = open_source("tfds", str(prepared))
    some = first.labels_of(np.array([4, 1]))
    keep_labels(first, tmp_path)
    second = open_source("tfds", str(shutil.copytree(prepared, tmp_path / "elsewhere")))
    recall_labels(second, tmp_path)
    np.testing.assert_array_equal(second.labels_of(np.array([4, 1])), some)
    assert rows == [4, 1]
    np.testing.assert_array_equal(second.labels, open_source("tfds", str(prepared)).labels)
    assert sorted(rows[2:6]) == [0, 2, 3, 5]
    other = open_source("tfds", str(prepared), "test")
    recall_labels(other, tmp_path)  # of other records
    assert sorted(other.labels) == [0, 1] and len(pickle.dumps(second)) < 10_000
    [kept] = tmp_path.glob("labels-*.npy")
    kept.write_bytes(kept.read_bytes()[:100])
    third = open_source("tfds", str(prepared))
    recall_labels(third, tmp_path)
    np.testing.assert_array_equal(third.labels, second.labels)


def test_a_damaged_record_has_no_label(prepared: Path, tmp_path: Path) -> None:
    version = Path(shutil.copytree(prepared, tmp_path / "1.0.0"))
    shard = next(version.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert open_source("tfds", str(version)).labels.tolist() == [-1] * 6
