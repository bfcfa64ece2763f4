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
# Tuples of numbers whose length the default does not fix: one number a channel, or a scale.
_ANY_LENGTH = ("colour.mean", "colour.std", "retrieval.scales")


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
        if (
            not equals
            and tokens
            and (not tokens[0].startswith("-") or _NEGATIVE_NUMBER.match(tokens[0]))
        ):
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
    typed = {}
    for name, value in values.items():
        _require_field(name, fields)
        typed[name] = _converted(name, value, fields[name])
    config.update_from_flattened_dict(typed)


def _require_field(name: str, fields: Mapping[str, Any]) -> None:
    if name in fields:
        return
    inside = [field for field in fields if field.startswith(f"{name}.")]
    if inside:
        raise ConfigError(
            f"config.{name} is a group of fields; set one of them, such as --config.{inside[0]}=..."
        )
    raise ConfigError(
        f"unknown field config.{name}; did you mean config.{nearest(name, list(fields))}?"
    )


def _converted(name: str, given: Any, default: Any) -> Any:
    """`given` as a value of the type of `default`."""
    value = _parsed(given, default) if isinstance(given, str) else given
    if isinstance(default, tuple):
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
    expected = _expected(name, value, default)
    if expected:
        raise ConfigError(
            f"config.{name} expects {expected}, such as {default!r}, but got {given!r}"
        )
    if isinstance(default, tuple):
        items = type(default[0]) if default else int
        return tuple(items(item) for item in value)
    return type(default)(value)


def _expected(name: str, value: Any, default: Any) -> str:
    """What a field expects, "" if `value` is that."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if _is_number(value, numbers.Integral) else "a whole number (int)"
    if isinstance(default, float):
        return "" if _is_number(value, numbers.Real) else "a number (float)"
    if isinstance(default, tuple):
        return _tuple_problem(value, default, any_length=name in _ANY_LENGTH)
    return "" if isinstance(value, str | os.PathLike) else "text"


def _parsed(text: str, default: Any) -> Any:
    """The value that a text spells for a field like `default`, else the text itself."""
    if isinstance(default, bool):
        return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(
            text.lower(), text
        )
    try:
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
        if isinstance(default, tuple):
            return _names(text) if _holds_names(default) else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    return text


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _tuple_problem(value: tuple[Any, ...], default: tuple[Any, ...], any_length: bool) -> str:
    """What a tuple field expects, "" if `value` is that; whole numbers and names: one or more."""
    if _holds_names(default):
        named = all(isinstance(item, str) and _NAME.fullmatch(item) for item in value)
        return "" if value and named else "names with commas between"
    if default and all(isinstance(item, bool) for item in default):
        both = all(isinstance(item, bool) for item in value)
        return "" if value and both else "a tuple of True, False or both"
    whole = all(isinstance(item, int) for item in default)
    any_length = whole or any_length
    kind = "whole numbers" if whole else "numbers"
    fits = all(_is_number(item, numbers.Integral if whole else numbers.Real) for item in value)
    if fits and (len(value) == len(default) or (any_length and value)):
        return ""
    return f"a tuple of {kind}" if any_length else f"a tuple of {len(default)} {kind}"


def _holds_names(default: tuple[Any, ...]) -> bool:
    return bool(default) and all(isinstance(item, str) for item in default)


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between, with or without brackets and quotes."""
    inner = re.fullmatch(r"\s*[(\[]?(.*?),?\s*[)\]]?\s*", text)
    return tuple(name.strip().strip("'\"") for name in inner[1].split(",")) if inner else ()
