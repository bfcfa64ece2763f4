"""Label files with names: right labels, or a sentence that names the cause; never other classes."""

from pathlib import Path

import pytest

from dinov2_jax.data.sources.folder import Folder
from dinov2_jax.data.sources.source import SourceError
from dinov2_jax.data.sources.views import with_label_file

NAMES = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/my photo, 4.jpg"]
CLASSES = ["cat", "golden retriever", "cat", "golden retriever"]


def folder(tmp_path: Path, names: list[str]) -> Folder:
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    return Folder(str(tmp_path / "set"))


def labels(tmp_path: Path, text: str, names: list[str] = NAMES) -> list[str]:
    """The class of each picture, in the order of `names`."""
    (tmp_path / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    source = folder(tmp_path, names)
    found = with_label_file(source, str(tmp_path / "labels.csv"))
    by_name = {source.name(row): found.class_names[found.labels[row]] for row in range(len(source))}
    return [by_name[name] for name in names]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("heading", ["", "image name", "filename,label"])
@pytest.mark.parametrize("sign", [" ", ",", ";", "\t", ", ", "   "])
@pytest.mark.parametrize("before", ["", "./", "/data/set/", "set/"])
def test_names_and_classes(tmp_path: Path, before: str, sign: str, heading: str, end: str) -> None:
    pairs = list(zip(NAMES, CLASSES, strict=True))[::-1]
    lines = [f"{before}{name}{sign}{label}" for name, label in pairs]
    assert labels(tmp_path, end.join([*filter(None, [heading]), *lines, ""])) == CLASSES


@pytest.mark.parametrize("short", [lambda n: Path(n).name, lambda n: Path(n).stem])
def test_names_without_folders_or_endings(tmp_path: Path, short) -> None:
    pairs = zip(NAMES, CLASSES, strict=True)
    assert labels(tmp_path, "\n".join(f"{short(n)} {c}" for n, c in pairs)) == CLASSES


def test_quotes_and_lines_on_other_pictures(tmp_path: Path) -> None:
    text = 'x.jpg,cow\n"b/my photo, 4.jpg","tench, Tinca"\na/1.jpg,0\na/2.jpg,007\nb/3.jpg,0\n'
    assert labels(tmp_path, text) == ["0", "007", "0", "tench, Tinca"]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    names = ["caf\udce9.jpg", "b.jpg"]
    assert labels(tmp_path, "caf\udce9.jpg cat\nb.jpg dog\n", names) == ["cat", "dog"]
    with pytest.raises(SourceError, match="is no text in UTF-8; save the file"):
        labels(tmp_path, "caf\udce9\ndog\n", names)
    with pytest.raises(SourceError, match="is no text in UTF-8; save it"):
        labels(tmp_path, "c\0a\0t\0", names)


def test_classes_in_order_may_have_blanks_and_gaps(tmp_path: Path) -> None:
    names = ["1.jpg", "2.jpg", "3.jpg"]
    in_order = "golden retriever\ntabby cat\ngolden retriever\n"
    assert labels(tmp_path, in_order, names) == in_order.split("\n")[:-1]
    assert labels(tmp_path, "17\n900\n17\n", names) == ["17", "900", "17"]
    assert labels(tmp_path, "red fox\ngrey wolf\nbrown bear", names)[2] == "brown bear"


FEW = ["1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x1.jpg cat\nx2.jpg cat\nx3.jpg dog", r"line 'x1.jpg cat', which names no picture"),
        ("cat 1.jpg\ncat 2.jpg\ndog 3.jpg", r"names no picture of this source at its beginning"),
        ("1.jpg\n2.jpg\n3.jpg", r"line '1.jpg', which names no picture"),
        ("1.jpg cat\n2.jpg dog", r"no line for 1 of 3 pictures, such as 3.jpg"),
        ("1.jpg,cat\n1.jpg,dog\n2.jpg,dog\n3.jpg,cat", r"1.jpg the classes 'cat' and 'dog'"),
        ("1.jpg,cat,0.9\n2.jpg,cat,1\n3.jpg,dog,1", r"may be any of \['cat', '0.9'\]"),
        ("1.jpg\tcat\t9\n2.jpg\tcat\t1\n3.jpg\tdog\t1", r"may be any of \['cat', '9'\]"),
        ("id1 0.1\nid2 0.2\nid3 0.3", r"each of 3 pictures a class of its own, .*'id1 0.1'"),
        ("id_a cat\nid_b cat\nid_c dog", r"each of 3 pictures a class of its own, .*'id_a cat'"),
        ("10,cat\n11,cow\n12,dog", r"each of 3 pictures a class of its own, such as '10,cat'"),
        ("1.jpg 3 7\n2.jpg 5 7\n3.jpg 6 9", r"each of 3 pictures a class of its own, .*'3 7'"),
        ("label\ncat\ndog\ncat", r"4 lines for 3 pictures; .*is 'label' a heading"),
    ],
)
def test_lists_that_are_meant_otherwise_are_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(SourceError, match=message):
        labels(tmp_path, text, FEW)


def test_a_class_that_train_writes_otherwise(tmp_path: Path) -> None:
    source = folder(tmp_path, FEW)
    (tmp_path / "labels.txt").write_text("1.jpg 7\n2.jpg 8\n3.jpg 7\n")
    with pytest.raises(SourceError, match=r"the class '7'.* write it as there, '007'"):
        with_label_file(source, str(tmp_path / "labels.txt"), ("007", "8"))


def test_absolute_paths_and_relative_ones(tmp_path: Path) -> None:
    """A list of absolute paths, whose names without folders are not all different."""
    folder(tmp_path, ["a/1.jpg", "b/1.jpg"])
    paths = [str(tmp_path / "set" / name) for name in ("a/1.jpg", "b/1.jpg")]
    (tmp_path / "list.txt").write_text("\n".join(paths))
    for form in ("set\\{}\\1.jpg cat{}", "{}/1.jpg,cat{}"):
        text = "\n".join(form.format(name, name) for name in "ba")
        (tmp_path / "labels.txt").write_text(text)
        found = with_label_file(Folder(str(tmp_path / "list.txt")), str(tmp_path / "labels.txt"))
        assert (found.class_names, found.labels.tolist()) == (("cata", "catb"), [0, 1])
