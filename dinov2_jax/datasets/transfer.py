"""The twelve transfer sets of SimCLR's protocol (Chen et al. 2020) in their official layouts."""

import os
from collections.abc import Callable
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from dinov2_jax.data.sources.source import Source, SourceError, check_name
from dinov2_jax.datasets import cifar, files
from dinov2_jax.datasets.cars import stanford_cars
from dinov2_jax.datasets.stored import read_mat

TOP1, MEAN_PER_CLASS, MAP11 = "top1", "mean_per_class", "map11"
_CALTECH_SHOTS = 30  # training pictures of each class
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip


class Transfer(NamedTuple):
    """A set with its official splits."""

    train: Source  # for fitting the classifier
    val: Source | None  # for choosing the regularisation; None where there is no such split
    test: Source  # for the reported result
    metric: str  # "top1", "mean_per_class" or "map11" (11-point mean average precision)


def transfer_set(name: str, root: str) -> Transfer:
    """Opens one of TRANSFER_SETS; its function says what must lie in the folder `root`.

    The set is found in `root`, in a folder below it or in the folder above. Raises SourceError for
    an unknown name and where lists, classes or pictures are missing, and
    ImportError for "cars" and "flowers102" without scipy.
    """
    check_name("transfer set", name, tuple(TRANSFER_SETS))
    return TRANSFER_SETS[name](os.path.expanduser(root))


def food101(root: str) -> Transfer:
    """Food-101: images/<class>/<number>.jpg, meta/{classes,train,test}.txt."""
    title = "Food-101"
    root = files.home(root, "meta/classes.txt", title=title)
    classes = files.read_lines(files.require(root, "meta/classes.txt", title=title))

    def split(name: str) -> files.Files:
        path = files.require(root, f"meta/{name}.txt", title=title)
        rows = files.read_lines(path)
        labels = files.class_numbers([row.partition("/")[0] for row in rows], classes, path)
        names = [f"{row}.jpg" for row in rows]
        return files.Files(_images(root, title), names, labels, classes, title=f"{title} {name}")

    return Transfer(split("train"), None, split("test"), TOP1)


def cifar10(root: str) -> Transfer:
    """CIFAR-10: cifar-10-batches-py with data_batch_1 ... 5, test_batch and batches.meta.

    Or the binary version, cifar-10-batches-bin.
    """
    return Transfer(*cifar.cifar10(root), TOP1)


def cifar100(root: str) -> Transfer:
    """CIFAR-100: cifar-100-python with train, test and meta; the 100 fine classes.

    Or the binary version, cifar-100-binary.
    """
    return Transfer(*cifar.cifar100(root), TOP1)


def sun397(root: str) -> Transfer:
    """SUN397: <letter>/<class>/*.jpg, ClassName.txt, Training_01.txt and Testing_01.txt.

    The lists may lie in Partitions/, in or beside the folder of the pictures; their lines begin
    with "/". The first of ten partitions.
    """
    title = "SUN397"
    path = files.find(root, "Partitions/ClassName.txt", "ClassName.txt", title=title)
    lists = os.path.dirname(path)
    classes = [line.lstrip("/") for line in files.read_lines(path)]
    pictures = files.home(root, classes[0], title=title)

    def split(name: str) -> files.Files:
        path = files.require(lists, f"{name}_01.txt", title=title)
        rows = [line.lstrip("/") for line in files.read_lines(path)]
        labels = files.class_numbers([os.path.dirname(row) for row in rows], classes, path)
        return files.Files(pictures, rows, labels, classes, title=f"{title} {name}")

    return Transfer(split("Training"), None, split("Testing"), TOP1)


def cars(root: str) -> Transfer:
    """Stanford Cars: cars_train/, cars_test/, devkit/*.mat, cars_test_annos_withlabels.mat.

    The labelled list of the test set is a separate download and may lie in any of the folders. Or
    the archive of all pictures: car_ims/ and cars_annos.mat.
    """
    train, test = stanford_cars(root)
    return Transfer(train, None, test, TOP1)


def aircraft(root: str) -> Transfer:
    """FGVC-Aircraft: data/images/*.jpg, data/variants.txt, data/images_variant_{split}.txt."""
    title = "Aircraft"
    root = files.home(root, "variants.txt", title=title)
    classes = files.read_lines(os.path.join(root, "variants.txt"))

    def split(name: str) -> files.Files:
        path = files.require(root, f"images_variant_{name}.txt", title=title)
        numbers, variants = zip(*files.read_rows(path, 2), strict=True)
        labels = files.class_numbers(variants, classes, path)
        names = [f"{number}.jpg" for number in numbers]
        return files.Files(_images(root, title), names, labels, classes, title=f"{title} {name}")

    return Transfer(split("train"), split("val"), split("test"), MEAN_PER_CLASS)


def voc(root: str) -> Transfer:
    """Pascal VOC 2007: 20 classes; a picture may have several: `targets` instead of labels."""
    return Transfer(*(voc2007(root, split) for split in ("train", "val", "test")), MAP11)


def voc2007(root: str, split: str) -> files.Files:
    """One split: JPEGImages/*.jpg, ImageSets/Main/<split>.txt, Annotations/*.xml.

    The archives of "train" and "test" may be unpacked into one folder or each into its own.
    `targets` int8 [n, 20] are 1 if the picture shows the class, 0 if it does not, -1 if all its
    objects are marked difficult; the metric of this class leaves such pictures out. Raises
    SourceError where a list, picture or annotation is missing, or a class has no picture.
    """
    title = f"VOC2007 {split}"
    listed = f"ImageSets/Main/{split}.txt"
    path = files.find(root, f"VOC2007/{listed}", listed, title=title)
    root = path.removesuffix(f"/{listed}")
    numbers = [line.split()[0] for line in files.read_lines(path)]
    annotations = [f"{number}.xml" for number in numbers]
    folder = files.require(root, "Annotations", title=title)
    files.check_present(folder, annotations, title, "annotations")
    targets = np.stack([_voc_targets(os.path.join(folder, name)) for name in annotations])
    empty = np.flatnonzero(~(targets == 1).any(axis=0))
    if empty.size:
        raise SourceError(
            f"{title}: no picture shows {VOC_CLASSES[empty[0]]!r} ({empty.size} such classes); the "
            "copy is incomplete"
        )
    pictures = files.require(root, "JPEGImages", title=title)
    names = [f"{number}.jpg" for number in numbers]
    return files.Files(pictures, names, None, VOC_CLASSES, targets=targets, title=title)


def _voc_targets(path: str) -> np.ndarray:
    targets = np.zeros(len(VOC_CLASSES), np.int8)
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
        marked = [(o.findtext("name", ""), o.findtext("difficult", "0").strip()) for o in objects]
    except ElementTree.ParseError as error:
        raise SourceError(f"{path} is no XML ({error}); unpack it again") from error
    for name, difficult in marked:
        if name not in VOC_CLASSES:
            raise SourceError(f"{path} shows {name!r}, which is none of the 20 classes of VOC")
        place = VOC_CLASSES.index(name)
        targets[place] = 1 if difficult != "1" else targets[place] or -1
    return targets


def dtd(root: str) -> Transfer:
    """DTD: images/<class>/*.jpg, labels/{train,val,test}1.txt; the first of ten partitions."""
    title, splits = "DTD", ("train", "val", "test")
    root = files.home(root, "labels/train1.txt", title=title)
    paths = {name: files.require(root, f"labels/{name}1.txt", title=title) for name in splits}
    lists = {name: files.read_lines(path) for name, path in paths.items()}
    classes = sorted({row.partition("/")[0] for rows in lists.values() for row in rows})

    def split(name: str) -> files.Files:
        rows = lists[name]
        labels = files.class_numbers([row.partition("/")[0] for row in rows], classes, paths[name])
        return files.Files(_images(root, title), rows, labels, classes, title=f"{title} {name}")

    return Transfer(split("train"), split("val"), split("test"), TOP1)


def pets(root: str) -> Transfer:
    """Oxford-IIIT Pets: images/*.jpg, annotations/{trainval,test}.txt: name, class from 1, ..."""
    title = "Pets"
    root = files.home(root, "annotations/trainval.txt", title=title)

    def rows_of(name: str) -> list[tuple[str, int]]:
        path = files.require(root, f"annotations/{name}.txt", title=title)
        rows = [row for row in files.read_rows(path, 4) if not row[0].startswith("#")]
        return [(row[0], files.as_number(row[1], path)) for row in rows]

    # The breed is the file's name up to the number; "american_bulldog_100" is one of class 2.
    breeds = {number: file.rpartition("_")[0] for file, number in rows_of("trainval")}
    classes = [breeds.get(number, str(number)) for number in range(1, max(breeds) + 1)]

    def split(name: str) -> files.Files:
        rows = rows_of(name)
        labels = [number - 1 for _, number in rows]
        names = [f"{file}.jpg" for file, _ in rows]
        return files.Files(_images(root, title), names, labels, classes, title=f"{title} {name}")

    return Transfer(split("trainval"), None, split("test"), MEAN_PER_CLASS)


def caltech101(root: str) -> Transfer:
    """Caltech-101: 101_ObjectCategories/<class>/*.jpg; a fixed draw of 30 a class is for training.

    There is no official split; all other pictures are the test set. The 102nd folder,
    BACKGROUND_Google, is left out: 101 x 30 are the 3,030 training pictures of the paper (Table
    15), while SimCLR counts 102 classes.
    """
    title = "Caltech-101"
    root = files.find(root, "101_ObjectCategories", title=title)
    classes = [name for name in files.folders_in(root, title) if name != "BACKGROUND_Google"]
    # DINOv2: the training pictures behind the published results are not known.
    rng = np.random.default_rng(0)
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for label, name in enumerate(classes):
        held = files.pictures_in(os.path.join(root, name))
        if not held:
            raise SourceError(
                f"{title}: {root}/{name} holds no picture; remove it if it is no class of the set, "
                "otherwise unpack the archive again"
            )
        if len(held) <= _CALTECH_SHOTS:
            raise SourceError(
                f"{title}: class {name!r} has {len(held)} pictures, but {_CALTECH_SHOTS} are for "
                "training and the others for testing; the copy is incomplete"
            )
        chosen = set(rng.permutation(len(held))[:_CALTECH_SHOTS].tolist())
        for place, file in enumerate(held):
            parts["train" if place in chosen else "test"].append((f"{name}/{file}", label))

    def split(part: str) -> files.Files:
        names, labels = zip(*parts[part], strict=True)
        return files.Files(root, names, labels, classes, title=f"{title} {part}")

    return Transfer(split("train"), None, split("test"), MEAN_PER_CLASS)


def flowers102(root: str) -> Transfer:
    """Flowers-102: jpg/image_00001.jpg ..., setid.mat and imagelabels.mat."""
    title = "Flowers-102"
    path = files.find(root, "imagelabels.mat", title=title)
    labels = np.atleast_1d(read_mat(path, "labels")["labels"])
    path = files.find(root, "setid.mat", title=title)
    sets = read_mat(path, "trnid", "valid", "tstid")
    pictures = os.path.dirname(files.find(root, "jpg", title=title))
    classes = [str(number) for number in range(1, int(labels.max()) + 1)]

    def split(name: str) -> files.Files:
        numbers = np.atleast_1d(sets[name]).astype(np.int64)
        if numbers.max() > len(labels):
            raise SourceError(
                f"{title}: setid.mat names picture {numbers.max()}, but imagelabels.mat has "
                f"{len(labels):,} labels; both must be of the same release"
            )
        names = [f"jpg/image_{number:05d}.jpg" for number in numbers]
        rows = labels[numbers - 1].astype(np.int64) - 1
        return files.Files(pictures, names, rows, classes, title=f"{title} {name}")

    return Transfer(split("trnid"), split("valid"), split("tstid"), MEAN_PER_CLASS)


def cub200(root: str) -> Transfer:
    """CUB-200-2011: images/, images.txt, classes.txt, image_class_labels.txt, train_test_split.txt.

    Every list has "number value" a line, by picture number.
    """
    title = "CUB"
    root = files.home(root, "train_test_split.txt", title=title)

    def table(name: str) -> dict[int, str]:
        path = files.require(root, name, title=title)
        return {files.as_number(number, path): value for number, value in files.read_rows(path, 2)}

    images, labels = table("images.txt"), table("image_class_labels.txt")
    learn, called = table("train_test_split.txt"), table("classes.txt")
    for name, other in (("image_class_labels.txt", labels), ("train_test_split.txt", learn)):
        if other.keys() != images.keys():
            raise SourceError(
                f"{title}: {name} has {len(other):,} pictures and images.txt {len(images):,}; both "
                "must be of the same release, and whole"
            )
    classes = [called[number] for number in sorted(called)]

    def split(flag: str, name: str) -> files.Files:
        chosen = [number for number in sorted(images) if learn[number] == flag]
        names = [images[number] for number in chosen]
        rows = [files.as_number(labels[number], "image_class_labels.txt") - 1 for number in chosen]
        return files.Files(_images(root, title), names, rows, classes, title=f"{title} {name}")

    return Transfer(split("1", "train"), None, split("0", "test"), TOP1)


def _images(root: str, title: str) -> str:
    return files.require(root, "images", title=title)


# What archives and torchvision call the folder of a set, where that is not the set's name.
_FOLDERS = {
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar100": ("cifar-100-python", "cifar-100-binary"),
    "cars": ("stanford_cars",),
    "aircraft": ("fgvc-aircraft-2013b",),
    "voc2007": ("VOCdevkit",),
    "pets": ("oxford-iiit-pet",),
    "cub200": ("CUB_200_2011",),
}


def transfer_folders(root: str) -> dict[str, str]:
    """{set: its folder} of the TRANSFER_SETS in a folder, by their names or those of archives.

    Capitals, "-" and "_" in a set's name do not count: Food-101 is "food101".
    """
    called = {"".join(filter(str.isalnum, x.lower())): x for x in files.visible_folders(root)}
    plain = {name: (name, *_FOLDERS.get(name, ())) for name in TRANSFER_SETS}
    found = {}
    for name, spellings in plain.items():
        keys = ("".join(filter(str.isalnum, x.lower())) for x in spellings)
        if key := next((key for key in keys if key in called), ""):
            found[name] = os.path.join(root, called[key])
    return found


TRANSFER_SETS: dict[str, Callable[[str], Transfer]] = {
    "food101": food101, "cifar10": cifar10, "cifar100": cifar100, "sun397": sun397, "cars": cars,
    "aircraft": aircraft, "voc2007": voc, "dtd": dtd, "pets": pets, "caltech101": caltech101,
    "flowers102": flowers102, "cub200": cub200,
}  # fmt: skip
