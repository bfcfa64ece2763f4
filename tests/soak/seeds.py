"""Whole inputs of every kind that is read, each small, which the fuzzing damages."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import safetensors.numpy
from PIL import Image, features

from tests.weights.tiny import reference_tensors, tiny_backbone


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def colours() -> Image.Image:
    """32 x 24 px of a gradient and noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 64, (24, 32, 3), dtype=np.uint8)
    pixels[..., 0] += np.arange(32, dtype=np.uint8) * 5
    return Image.fromarray(pixels)


def pictures() -> list[bytes]:
    """JPEG, PNG, TIFF, GIF, WebP, BMP and rarer ones, in many modes."""
    rgb = colours()
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(180)]}
    many: list[tuple[Image.Image, str, dict[str, object]]] = [
        (rgb, "JPEG", {}),
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (rgb.convert("L"), "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("LA"), "PNG", {}),
        (rgb.convert("1"), "PNG", {}),
        (rgb, "PNG", frames),
        (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (rgb.convert("F"), "TIFF", {}),
        (rgb.convert("I"), "TIFF", {}),
        (rgb, "GIF", frames),
        (rgb, "WEBP", {}),
        (rgb.convert("RGBA"), "WEBP", {"lossless": True, **frames}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (rgb, "PPM", {}),
        (rgb, "TGA", {"compression": "tga_rle"}),
        (rgb, "PCX", {}),
        (rgb, "SGI", {}),
        (rgb, "DDS", {}),
        (rgb.convert("1"), "XBM", {}),
    ]
    if features.check("jpg_2000"):
        many.append((rgb, "JPEG2000", {}))
    if features.check("avif"):
        many.append((rgb, "AVIF", {}))
    return [encode(image, form, **options) for image, form, options in many]


def deep_pictures() -> list[bytes]:
    """16 bits a sample: gray, colour and colour with alpha, of 12 and 16 bits that are used."""
    import cv2

    rng = np.random.default_rng(1)
    found = []
    for bits in (12, 16):
        for channels in (1, 3, 4):
            values = rng.integers(0, 2**bits, (12, 16, channels)).astype(np.uint16)
            for ending in (".png", ".tiff"):
                found.append(cv2.imencode(ending, values)[1].tobytes())
            if channels == 3:
                found.append(cv2.imencode(".ppm", values)[1].tobytes())
    gray = rng.integers(0, 4096, (12, 16)).astype(np.uint16)
    found.append(encode(Image.fromarray(gray), "TIFF", compression="tiff_lzw"))
    found.append(b"P5 16 12 4095\n" + gray.astype(">u2").tobytes())
    return found


def arrays() -> list[bytes]:
    """Pictures as .npy of 1, 3 and 5 channels, and arrays that are none."""
    found = []
    for shape in ((6, 8, 3), (6, 8), (6, 8, 5)):
        buffer = io.BytesIO()
        np.save(buffer, np.arange(np.prod(shape), dtype=np.uint8).reshape(shape))
        found.append(buffer.getvalue())
    for array in (np.zeros((6, 8, 3)), np.zeros((3, 6, 8), np.uint8, order="F"), np.array("x")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(buffer.getvalue())
    return found


def tars() -> list[bytes]:
    """Archives of every form: long names, links, sparse files and pax headers."""
    picture, found = encode(colours(), "JPEG"), []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
            for name in ("a.jpg", "b/c.jpg", "d/" + "é" * 40 + "/" + "f" * 90 + ".jpg", "x.json"):
                member = tarfile.TarInfo(name)
                member.size = len(picture)
                if form == tarfile.PAX_FORMAT:
                    member.pax_headers = {"comment": "x" * 30, "size": str(len(picture))}
                archive.addfile(member, io.BytesIO(picture))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
            archive.addfile(link)
        found.append(buffer.getvalue())
    sparse = io.BytesIO()
    with tarfile.open(fileobj=sparse, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("s.jpg")
        member.pax_headers = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "512",
        }  # fmt: skip
        body = b"1\n0\n512\n".ljust(512, b"\0") + picture[:512]
        member.size = len(body)
        archive.addfile(member, io.BytesIO(body))
    return [*found, found[0] + found[1], sparse.getvalue()]


def tensors() -> list[bytes]:
    """Safetensors: a backbone, one with registers, a half-precision one, a linear head."""
    found = []
    for registers in (0, 2):
        backbone = reference_tensors(tiny_backbone(registers))
        found.append(safetensors.numpy.save(backbone, {"format": "pt"}))
    half = {name: x.astype(np.float16) for name, x in reference_tensors(tiny_backbone()).items()}
    about = {"blocks": 1, "avgpool": True, "class_names": ["a", "b", "c"], "identity": ""}
    head = {"weight": np.zeros((3, 48), np.float32), "bias": np.zeros(3, np.float32)}
    found.append(safetensors.numpy.save(half))
    found.append(safetensors.numpy.save(head, {"linear_head": json.dumps(about)}))
    return found


def settings() -> list[bytes]:
    """config.json and preprocessor_config.json of transformers."""
    config = {
        "hidden_size": 24, "num_attention_heads": 3, "patch_size": 7, "image_size": 28,
        "id2label": {"0": "cat", "1": "dog"}, "layer_norm_eps": 1e-6, "model_type": "dinov2",
    }  # fmt: skip
    preprocessor = {
        "size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    index = {"metadata": {}, "weight_map": {"cls_token": "model.safetensors"}}
    return [json.dumps(value).encode() for value in (config, preprocessor, index)]


def label_files() -> list[bytes]:
    """Classes in order, or by name, of the eight pictures of `picture_folder`."""
    rows = [f"{i}.png\t{('cat', 'dog')[i % 2]}\n" for i in range(8)]
    return [
        b"".join(b"%d\n" % (i % 3) for i in range(8)),
        "".join(rows).encode(),
        "".join(rows).replace("cat", "Kätzchen").encode(),
        "".join(reversed(rows)).replace("\n", "\r\n").encode("utf-8-sig"),
        b"n01440764\nn01443537\n" * 4,
    ]


def list_files() -> list[bytes]:
    """Paths of pictures, one a line."""
    names = [f"{i}.png" for i in range(8)]
    return ["\n".join(names).encode(), "\r\n".join(names).encode("utf-8-sig"), b"./0.png\n"]


def picture_folder(folder: Path) -> Path:
    """Eight pictures 0.png to 7.png."""
    folder.mkdir(parents=True)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(encode(colours().rotate(45 * i), "PNG"))
    return folder


def odd_neighbours(folder: Path) -> None:
    """What a list might name by mistake: a folder, a pipe, a link to itself."""
    (folder / "00").mkdir()
    os.mkfifo(folder / "1")
    (folder / "p").symlink_to("p")
