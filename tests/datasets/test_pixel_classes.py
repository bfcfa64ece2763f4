"""Names of classes stand at the numbers that the masks use."""

import numpy as np

from dinov2_jax.datasets.pixel_classes import ADE20K, CITYSCAPES, NAMES, VOC2012, voc_colours


def test_names_stand_at_their_numbers():
    known = {"wall": 0, "tree": 4, "person": 12, "car": 20, "bus": 80, "bicycle": 127, "flag": 149}
    assert {name: ADE20K.index(name) for name in known} == known
    assert [len(names) for names in (ADE20K, VOC2012, CITYSCAPES)] == [150, 21, 19]
    assert all(len(set(names)) == len(names) for names in NAMES.values())
    assert (VOC2012.index("person"), VOC2012.index("tv monitor")) == (15, 20)
    assert (CITYSCAPES.index("person"), CITYSCAPES.index("car")) == (11, 13)


def test_colours_of_voc():
    colours = voc_colours(256)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 4: (0, 0, 128), 15: (192, 128, 128)}
    known |= {20: (0, 64, 128), 255: (224, 224, 192)}
    assert {k: tuple(colours[k].tolist()) for k in known} == known
    assert colours.dtype == np.uint8 and len(np.unique(colours, axis=0)) == 256
