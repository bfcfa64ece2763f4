"""Label files: the class of each record, by the records' names or in their order."""

import os
import re
from collections.abc import Callable, Sequence

from dinov2_jax.data.sources.files import is_called_picture
from dinov2_jax.data.sources.source import Source, SourceError

_SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")
_TAB = re.compile(r"\t")
_REMEDY = "write '<name> TAB <class>' lines, or one class a line in the order of the pictures"


def read_classes(source: Source, path: str) -> list[str]:
    """The class name of every record, "" if unknown.

    A line is the record's name and its class, with a TAB, a comma, a semicolon or a blank between
    them, in any order of lines; lines on other pictures and a heading are passed over. Names may be
    whole, with more folders before them, or, where that leaves them different, with one folder,
    without folders, or without endings. If no line begins with a record's name, the lines are
    classes in the order of the records.

    Raises:
      FileNotFoundError: no such file.
      SourceError: a record without a line or with two classes, another number of lines than
        records, more columns than two, or lines that name other pictures.
    """
    lines = _read_lines(path)
    names = [source.name(row) for row in range(len(source))]
    tabs = any("\t" in line for line in lines)
    separator = _TAB if tabs else _SEPARATOR
    fewest: list[str] = names
    if any(separator.search(line.strip()) for line in lines):
        for key_of in (_whole, _last_two, _base, _stem):
            keys = [key_of(name) for name in names]
            if len(set(keys)) < len(keys):
                continue
            classes = _by_name(lines, set(keys), key_of, separator, path)
            lost = [name for name, key in zip(names, keys, strict=True) if key not in classes]
            if not lost:
                return _checked([classes[key] for key in keys], path)
            enough = len(names) // 2 if key_of is _stem else 0  # a class may be called as a stem is
            if len(names) - len(lost) > enough and len(lost) < len(fewest):
                fewest = lost
    if tabs or fewest is not names:
        raise SourceError(
            f"{path} has no line for {len(fewest):,} of {len(names):,} pictures, such as "
            f"{fewest[0]}; add '<name> TAB <class>' for them"
        )
    return _in_order(lines, names, path)


def _read_lines(path: str) -> list[str]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the label file {path} does not exist")
    # Names of files that are no UTF-8 are compared as the system gives them.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        text = file.read()
    if "\0" in text:  # so has UTF-16, which some editors and shells write
        raise SourceError(f"the label file {path} is no text in UTF-8; save it so")
    return text.removesuffix("\n").split("\n") if text else []


def _whole(name: str) -> str:
    return name.removeprefix("./")


def _last_two(name: str) -> str:
    return "/".join(re.split(r"[/\\:]", name)[-2:])


def _base(name: str) -> str:
    return re.split(r"[/\\:]", name)[-1]


def _stem(name: str) -> str:
    return os.path.splitext(_base(name))[0]


def _by_name(
    lines: Sequence[str],
    known: set[str],
    key_of: Callable[[str], str],
    separator: re.Pattern[str],
    path: str,
) -> dict[str, str]:
    """The classes of the known names with which lines begin."""
    found: dict[str, str] = {}
    for line in lines:
        pair = _pair(line.strip("\r "), known, key_of, separator, path)
        if pair is None:
            continue
        key, name = pair
        if found.setdefault(key, name) != name:
            if key_of is not _whole:  # the folders tell them apart
                return {}
            raise SourceError(
                f"{path} gives {key} the classes {found[key]!r} and {name!r}; keep one of them"
            )
    return found


def _pair(
    line: str,
    known: set[str],
    key_of: Callable[[str], str],
    separator: re.Pattern[str],
    path: str,
) -> tuple[str, str] | None:
    """The longest known name that a line begins with, and the rest; None if there is none."""
    for match in reversed(list(separator.finditer(line))):
        name = key_of(line[: match.start()].strip().strip('"'))
        # Lists often have folders before the name that the source does not have.
        parts = name.split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        key = next((tail for tail in tails if tail in known), None)
        if key is None:
            continue
        rest, sign = line[match.end() :].strip(), match[0].strip(" ")
        quoted = len(rest) > 1 and rest[0] == rest[-1] == '"'
        if sign and sign in rest and not quoted:
            raise SourceError(
                f"{path} has the line {line!r}, whose class may be any of {rest.split(sign)}; "
                "leave two columns, the name and the class"
            )
        return key, rest[1:-1] if quoted else rest
    return None


def _in_order(lines: Sequence[str], names: Sequence[str], path: str) -> list[str]:
    """One class a line; refuses lists that are meant otherwise."""
    classes = [line.strip() for line in lines]
    for line in classes:
        parts = _SEPARATOR.split(line)
        if any(is_called_picture(part.strip('"')) for part in (parts[0], parts[-1])):
            raise SourceError(
                f"{path} has the line {line!r}, which names no picture of this source at its "
                f"beginning, such as {names[0]}; {_REMEDY}"
            )
    if len(lines) != len(names):
        heading = f"; is {lines[0]!r} a heading?" if len(lines) == len(names) + 1 else ""
        raise SourceError(
            f"{path} has {len(lines):,} lines for {len(names):,} pictures; it needs one class a "
            f"line, in the order of the pictures{heading}"
        )
    return _checked(classes, path)


def _checked(classes: list[str], path: str) -> list[str]:
    """Refuses a list of several columns that makes each line a class of its own."""
    known = [name for name in classes if name]
    columns = [_SEPARATOR.split(name) for name in known]
    alone = len(known) > 1 and len(set(known)) == len(known)
    if alone and all(len(row) > 1 for row in columns):
        of_last = {row[-1] for row in columns}
        ids = all(any(map(str.isdigit, row[0])) for row in columns)
        commas = all("," in name or ";" in name for name in known)
        if commas or ids or len(of_last) < len(known):
            raise SourceError(
                f"{path} makes each of {len(known):,} pictures a class of its own, such as "
                f"{known[0]!r}; {_REMEDY}"
            )
    odd = next((name for name in known if re.search("[\ud800-\udfff]", name)), None)
    if odd is not None:
        raise SourceError(
            f"{path} has the class {odd!r}, which is no text in UTF-8; save the file so"
        )
    return classes
