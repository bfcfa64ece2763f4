"""Damages bytes as disks, networks, other programs and enemies do."""

import json
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy

Rng = np.random.Generator

_SIZES = (0, 1, 127, 255, 256, 32767, 65535, 10_000, 100_000, 2**31 - 1, 2**31, 2**32 - 1, 2**40)
_NUMBERS = (b"0", b"-1", b"1", b"65536", b"100000", b"4294967296", b"99999999999999999999", b"1e9")


def mutate(raw: bytes, other: bytes, rng: Rng) -> bytes:
    """Applies mutations to `raw`, half the time one; `other` is an input to take pieces from."""
    for _ in range(int(rng.geometric(0.5))):
        chosen = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        raw = chosen(raw, rng) if chosen is not splice else splice(raw, rng, other)
    return raw


def place(raw: bytes, rng: Rng) -> int:
    """A position, often in the header."""
    end = min(len(raw), (len(raw), 32, 512)[int(rng.integers(3))])
    return int(rng.integers(end)) if end else 0


def flip_bits(raw: bytes, rng: Rng) -> bytes:
    """Flips one bit in 1 to 8 bytes."""
    out = bytearray(raw)
    for _ in range(int(rng.integers(1, 9)) if out else 0):
        out[place(raw, rng)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def set_bytes(raw: bytes, rng: Rng) -> bytes:
    """Overwrites up to 16 bytes with zeros, ones or noise."""
    at, count = place(raw, rng), int(rng.integers(1, 17))
    fill = (bytes(count), b"\xff" * count, rng.bytes(count))[int(rng.integers(3))]
    return raw[:at] + fill + raw[at + count :]


def cut_end(raw: bytes, rng: Rng) -> bytes:
    """Keeps the start only."""
    return raw[: place(raw, rng)]


def cut_middle(raw: bytes, rng: Rng) -> bytes:
    """Removes a piece."""
    at = place(raw, rng)
    return raw[:at] + raw[at + int(rng.integers(1, 65)) :]


def insert(raw: bytes, rng: Rng) -> bytes:
    """Inserts noise or a repeated byte."""
    at, count = place(raw, rng), int(rng.integers(1, 65))
    return raw[:at] + (rng.bytes(count) if rng.random() < 0.5 else rng.bytes(1) * count) + raw[at:]


def repeat(raw: bytes, rng: Rng) -> bytes:
    """Writes a piece twice."""
    at, count = place(raw, rng), int(rng.integers(1, 600))
    return raw[: at + count] + raw[at:]


def set_size(raw: bytes, rng: Rng) -> bytes:
    """Overwrites 2, 4 or 8 bytes with a number that a header may not expect."""
    at, width = place(raw, rng), int(rng.choice([2, 4, 8]))
    number = int(rng.choice(_SIZES)) % 256**width
    packed = number.to_bytes(width, "little" if rng.random() < 0.5 else "big")
    return raw[:at] + packed + raw[at + width :]


def set_number(raw: bytes, rng: Rng) -> bytes:
    """Replaces a number that is written in digits; keeps the length every other time."""
    found = list(re.finditer(rb"\d+", raw[:4096]))
    if not found:
        return set_size(raw, rng)
    match, number = found[int(rng.integers(len(found)))], _NUMBERS[int(rng.integers(8))]
    if rng.random() < 0.5:
        width = match.end() - match.start()
        number = number[:width].rjust(width, b"0")
    return raw[: match.start()] + number + raw[match.end() :]


def splice(raw: bytes, rng: Rng, other: bytes = b"") -> bytes:
    """The start of one input and the end of another."""
    return raw[: place(raw, rng)] + other[place(other, rng) :]


MUTATIONS: tuple[Callable[..., bytes], ...] = (
    flip_bits, set_bytes, cut_end, cut_middle, insert, repeat, set_size, set_number, splice,
)  # fmt: skip


def with_tar_sums(raw: bytes) -> bytes:
    """Makes the check sums of tar headers right again, so that the reader gets behind them."""
    out = bytearray(raw)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            total = sum(out[at : at + 148]) + 8 * 32 + sum(out[at + 156 : at + 512])
            out[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(out)


def with_png_sums(raw: bytes) -> bytes:
    """Makes the check sums of PNG chunks right again, as far as their lengths lead."""
    out, at = bytearray(raw), 8
    while raw.startswith(b"\x89PNG") and at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


_VALUES = (
    None, True, 0, -1, 1.5, 2**31, 10**25, 1e308, "", "3", "a\u2028b", "\ud800", [], [1], {},
    {"a": 1},
)  # fmt: skip


def mutate_json(raw: bytes, other: bytes, rng: Rng) -> bytes:
    """Every other time changes a value of the object; else mutates the bytes."""
    if rng.random() < 0.5:
        return mutate(raw, other, rng)
    return json.dumps(change(json.loads(raw), rng)).encode()


def change(value: Any, rng: Rng) -> Any:
    """Replaces, removes or nests one value inside a JSON value."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        names = list(value) if isinstance(value, dict) else list(range(len(value)))
        name, out = names[int(rng.integers(len(names)))], value.copy()
        if rng.random() < 0.2:
            out.pop(name)
        else:
            out[name] = change(value[name], rng)
        return out
    return _VALUES[int(rng.integers(len(_VALUES)))]


def mutate_tensors(raw: bytes, other: bytes, rng: Rng) -> bytes:
    """Changes the header, changes a tensor, or mutates the bytes."""
    way = rng.random()
    if way < 0.3:
        return mutate(raw, other, rng)
    if way < 0.6:
        end = 8 + int.from_bytes(raw[:8], "little")
        header = mutate_json(raw[8:end], b"{}", rng)
        return len(header).to_bytes(8, "little") + header + raw[end:]
    tensors = safetensors.numpy.load(raw)
    name = sorted(tensors)[int(rng.integers(len(tensors)))]
    x = tensors.pop(name)
    ways: list[Callable[[], Any]] = [
        lambda: x.reshape(-1),
        lambda: x[None],
        lambda: x[:0],
        lambda: x[..., :1],
        lambda: x.astype(np.int8),
        lambda: x.astype(bool),
        lambda: x * np.nan,
        lambda: x.reshape(-1)[0].reshape(()),
        lambda: np.concatenate([x, x]),
        lambda: x.reshape(x.shape[::-1]),
    ]
    if rng.random() < 0.8:
        changed = ways[int(rng.integers(len(ways)))]()
        number = str(_SIZES[int(rng.integers(len(_SIZES)))])
        name = re.sub(r"\d+", number, name, count=1) if rng.random() < 0.2 else name
        tensors[name] = np.ascontiguousarray(changed).reshape(changed.shape)
    return safetensors.numpy.save(tensors, {"format": "pt"})
