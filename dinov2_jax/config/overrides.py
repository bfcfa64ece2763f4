"""The command line, split and checked before any flag library sees it."""

import ast
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_collections

from dinov2_jax.config.files import ConfigError, leaves, nearest

_NEGATIVE_NUMBER = re.compile(r"-\.?\d")
# Tuples of as many numbers as config.model.in_channels.
_ONE_A_CHANNEL = ("colour.mean", "colour.std")


@dataclass(frozen=True)
class Arguments:
    """The command line, split: overrides are (dotted field, text) pairs in the order given."""

    config_path: str
    workdir: str
    overrides: tuple[tuple[str, str], ...]


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Splits `--config`, `--workdir` and `--config.a.b=value`, in any order, with `=` or a blank.

    Raises:
        ConfigError: for anything else, naming the nearest flag.
    """
    single: dict[str, str] = {"config": "", "workdir": ""}
    overrides: list[tuple[str, str]] = []
    for name, value in _flags(argv):
        if name.startswith("config."):
            # A bare flag is how absl spells "true"; the type check refuses it for numbers.
            overrides.append((name.removeprefix("config."), "true" if value is None else value))
        elif name not in single:
            known = [*single, "help"]
            raise ConfigError(
                f"unknown flag --{name}; did you mean --{nearest(name, known)}? Fields of the "
                "configuration are set as "
                "--config.<name>=<value>"
            )
        elif not value:
            raise ConfigError(f"--{name} needs a value: --{name}=<path>")
        else:
            single[name] = value
    if not single["config"]:
        raise ConfigError("no configuration given; add for example --config=configs/quickstart.py")
    # The last one counts. ml_collections would join the values of a repeated tuple flag.
    return Arguments(single["config"], single["workdir"], tuple(dict(overrides).items()))


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


def validate_overrides(
    overrides: Sequence[tuple[str, str]], config: ml_collections.ConfigDict
) -> None:
    """Checks name and type of every override before any flag library sees it.

    Raises:
        ConfigError: naming the nearest valid field, or the type that the field expects.
    """
    fields = leaves(config)
    for name, text in overrides:
        if name not in fields:
            inside = [field for field in fields if field.startswith(f"{name}.")]
            if inside:
                raise ConfigError(
                    f"config.{name} is a group of fields; set one of them, such as "
                    f"--config.{inside[0]}=..."
                )
            raise ConfigError(
                f"unknown field config.{name}; did you mean config.{nearest(name, list(fields))}?"
            )
        _check_type(name, text, fields[name])


def _check_type(name: str, text: str, default: Any) -> None:
    def refuse(expected: str) -> ConfigError:
        return ConfigError(
            f"config.{name} expects {expected}, such as {default!r}, but got {text!r}"
        )

    if isinstance(default, bool):
        if text.lower() not in ("true", "false", "t", "f", "1", "0"):
            raise refuse("true or false")
    elif isinstance(default, int):
        if not re.fullmatch(r"[+-]?\d+(_\d+)*", text):
            raise refuse("a whole number (int)")
    elif isinstance(default, float):
        if not _is_number(text):
            raise refuse("a number (float)")
    elif isinstance(default, tuple):
        problem = _tuple_problem(text, default, any_number=name in _ONE_A_CHANNEL)
        if problem:
            raise refuse(problem)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _tuple_problem(text: str, default: tuple[Any, ...], any_number: bool) -> str:
    """What a tuple field expects, "" if `text` is that; whole numbers and names: one or more."""
    if _holds_names(default):
        return "" if _names(text) else "names with commas between"
    whole = all(isinstance(item, int) for item in default)
    free = whole or any_number
    kind = "whole numbers" if whole else "numbers"
    expected = f"a tuple of {kind}" if free else f"a tuple of {len(default)} {kind}"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return expected
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    allowed: Any = int if whole else int | float
    fits = all(isinstance(item, allowed) and not isinstance(item, bool) for item in items)
    return "" if fits and (len(items) == len(default) or (free and items)) else expected


def spelled(text: str, default: Any) -> str:
    """The override as flag libraries read it: cls,patches is ('cls', 'patches')."""
    return repr(_names(text)) if isinstance(default, tuple) and _holds_names(default) else text


def _holds_names(default: tuple[Any, ...]) -> bool:
    return bool(default) and all(isinstance(item, str) for item in default)


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between, with or without brackets and quotes; () if they are none."""
    inner = re.fullmatch(r"\s*[(\[]?(.*?),?\s*[)\]]?\s*", text)
    names = [name.strip().strip("'\"") for name in inner[1].split(",")] if inner else []
    return tuple(names) if all(re.fullmatch(r"[\w.-]+", name) for name in names) else ()
