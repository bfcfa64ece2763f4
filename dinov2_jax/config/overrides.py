"""The command line: split into flags, each override converted once to the type of its field."""

import ast
import math
import numbers
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_collections

from dinov2_jax.config.files import ConfigError, leaves, nearest

_NEGATIVE_NUMBER = re.compile(r"-\.?\d")
_NAME = re.compile(r"[\w.-]+")
_RECIPE = re.compile(r"[^\s,()'\"]+")  # a name or a path, which may have an argument
_SET = re.compile(r"[^,()'\"]+")  # paths may hold blanks
# By type of a field: the values it takes, and the words for one of them and for a tuple of them.
_KINDS: dict[type, tuple[Any, str, str]] = {
    bool: (bool, "true or false", "a tuple of True, False or both"),
    int: (numbers.Integral, "a whole number (int)", "a tuple of whole numbers"),
    float: (numbers.Real, "a number (float)", "a tuple of numbers"),
    str: (str | os.PathLike, "text", "names with commas between"),
}
# Tuples of numbers whose length the default does not fix: of channels, scales or rates.
_ANY_LENGTH = (
    "colour.mean", "colour.std", "retrieval.scales", "segmentation.rates", "segmentation.scales",
)  # fmt: skip
# Tuples of recipes, of which there may be none.
_LISTS = {
    "distill.students": (_RECIPE, "recipes with commas between", ("vits14", "vitb14")),
    "curate.references": (_SET, "sets name:path with commas between", ("cub:/cub/test",)),
    "curate.queries": (_SET, "sets name:path with commas between", ("cub:/cub/train",)),
}


@dataclass(frozen=True)
class Arguments:
    """The command line, split: `overrides` is {dotted field: text}, the last one of a field."""

    config_path: str
    workdir: str
    overrides: Mapping[str, str]


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Splits `--config`, `--workdir` and `--config.a.b=value`, in any order, with `=` or a blank.

    Raises:
        ConfigError: for anything else, naming the nearest flag.
    """
    single: dict[str, str] = {"config": "", "workdir": ""}
    overrides: dict[str, str] = {}
    for name, value in _flags(argv):
        if name.startswith("config."):
            # A flag without a value means "true"; the type check refuses it for numbers.
            overrides[name.removeprefix("config.")] = "true" if value is None else value
        elif name not in single:
            known = [*single, "help"]
            raise ConfigError(
                f"unknown flag --{name}; did you mean --{nearest(name, known)}? Fields of the "
                "configuration are set as --config.<name>=<value>"
            )
        elif not value:
            raise ConfigError(f"--{name} needs a value: --{name}=<path>")
        else:
            single[name] = value
    if not single["config"]:
        raise ConfigError("no configuration given; add for example --config=quickstart")
    return Arguments(single["config"], single["workdir"], overrides)


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(name, value) of each flag; the value may be the next token, None where there is none."""
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if token == "--":
            continue
        if not token.startswith("-"):
            raise ConfigError(
                f"unexpected argument {token!r}; every setting starts with two dashes, as in "
                "--config.seed=1"
            )
        name, equals, text = token.lstrip("-").partition("=")
        value: str | None = text if equals else None
        follows = tokens and (not tokens[0].startswith("-") or _NEGATIVE_NUMBER.match(tokens[0]))
        if follows and not equals:
            value = tokens.pop(0)
        if name.startswith("noconfig."):
            name, value = name.removeprefix("no"), "false"
        yield name, value


def override(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields of a configuration, each to a value of the field's type.

    Args:
      values: by dotted name; text as on a command line, or Python values.

    Raises:
      ConfigError: naming the nearest field, or the type that the field expects.
    """
    fields = leaves(config)
    for name in values:
        if name not in fields:
            raise unknown_field(name, list(fields))
    typed = {name: _converted(name, value, fields[name]) for name, value in values.items()}
    config.update_from_flattened_dict(typed)


def unknown_field(name: str, fields: Sequence[str]) -> ConfigError:
    """The error for a name that is none of the fields: a group of them, or the nearest one."""
    inside = [field for field in fields if field.startswith(f"{name}.")]
    if inside:
        return ConfigError(
            f"config.{name} is a group of fields; set one of them, such as --config.{inside[0]}=..."
        )
    near = nearest(name, fields)
    return ConfigError(f"unknown field config.{name}; did you mean config.{near}?")


def _converted(name: str, given: Any, default: Any) -> Any:
    """`given` as a value of the type of `default`."""
    if name in _LISTS:
        return _listed(name, given, default)
    value = _parsed(given, default) if isinstance(given, str) else given
    if isinstance(default, tuple):
        return _converted_tuple(name, given, value, default)
    if not _fits(value, type(default)):
        raise _refusal(name, _KINDS[type(default)][1], default, given)
    return type(default)(value)


def _listed(name: str, given: Any, default: Any) -> tuple[str, ...]:
    """Texts from one text with commas between, or from a sequence; "" and () are none."""
    pattern, expected, example = _LISTS[name]
    items = _names(given) if isinstance(given, str) else given
    if not isinstance(items, tuple | list) or not all(
        isinstance(item, str) and pattern.fullmatch(item) for item in items
    ):
        raise _refusal(name, expected, default or example, given)
    return tuple(items)


def _names(text: str) -> tuple[str, ...]:
    """The names in a text such as `a,b` or `("a", "b",)`."""
    names = text.strip().strip("()[] ").removesuffix(",")
    return tuple(name.strip().strip("'\"") for name in names.split(",")) if names else ()


def _converted_tuple(name: str, given: Any, value: Any, default: tuple[Any, ...]) -> Any:
    """`value` as a tuple like `default`; one or more whole numbers, names or booleans."""
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    kind = type(default[0]) if default else float if name in _ANY_LENGTH else int
    any_length = kind is not float or name in _ANY_LENGTH
    if kind is str:
        fits = all(isinstance(item, str) and _NAME.fullmatch(item) for item in items)
    else:
        fits = all(_fits(item, kind) for item in items)
    if fits and (len(items) == len(default) or (any_length and items)):
        return tuple(map(kind, items))
    expected = _KINDS[kind][2] if any_length else f"a tuple of {len(default)} numbers"
    raise _refusal(name, expected, default, given)


def _refusal(name: str, expected: str, default: Any, given: Any) -> ConfigError:
    return ConfigError(f"config.{name} expects {expected}, such as {default!r}, but got {given!r}")


def _fits(value: Any, kind: type) -> bool:
    """Whether a value is of a kind: numbers are finite, and a boolean is no number."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is str or not isinstance(value, _KINDS[kind][0]):
        return isinstance(value, _KINDS[kind][0])
    try:
        return math.isfinite(float(value)) or kind is int
    except OverflowError:  # a whole number of more than 308 digits
        return kind is int


def _parsed(text: str, default: Any) -> Any:
    """The value that a text spells for a field like `default`, else the text itself."""
    try:
        if isinstance(default, bool):
            words = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
            return words.get(text.lower(), text)
        if isinstance(default, int | float):
            return type(default)(text)
        if isinstance(default, tuple) and default and isinstance(default[0], str):
            return _names(text) or ("",)
        return ast.literal_eval(text) if isinstance(default, tuple) else text
    except (ValueError, SyntaxError):
        return text
