"""Small stand-ins for two packages of the project that a bare machine may lack.

launch/gpu_slice.sh measures on machines where nothing can be installed. The step reads its settings
from a ConfigDict of ml_collections and reorders axes with einops; `install` provides just these
two. Every other program of the project needs the packages themselves.
"""

import importlib.util
import math
import sys
import types
from collections.abc import Mapping
from typing import Any


class ConfigDict(dict):
    """A nested dict whose keys are attributes too; no locking, no references, no type checks."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        for name, value in (values or {}).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        nested = isinstance(value, Mapping) and not isinstance(value, ConfigDict)
        super().__setitem__(name, ConfigDict(value) if nested else value)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def copy_and_resolve_references(self) -> "ConfigDict":
        """A copy; also of what is nested, but not of tuples."""
        copies = {k: ConfigDict(v) if isinstance(v, ConfigDict) else v for k, v in self.items()}
        return ConfigDict(copies)


def rearrange(x: Any, pattern: str, **sizes: int) -> Any:
    """`einops.rearrange` of an array for names, one level of brackets, and a last "..."."""
    before, after = (_groups(side) for side in pattern.split("->"))
    rest = len(x.shape) - len(before) + 1 if ["..."] in before else 0
    before, after = _spelled_out(before, rest), _spelled_out(after, rest)
    for group, size in zip(before, x.shape, strict=True):
        unknown = [name for name in group if name not in sizes]
        known = math.prod(sizes[name] for name in group if name in sizes)
        if len(unknown) > 1 or size % known or (not unknown and known != size):
            raise ValueError(f"{pattern!r} with {sizes} does not fit the shape {x.shape}")
        sizes |= dict.fromkeys(unknown, size // known)
    names = [name for group in before for name in group]
    order = [names.index(name) for group in after for name in group]
    x = x.reshape([sizes[name] for name in names]).transpose(order)
    return x.reshape([math.prod(sizes[name] for name in group) for group in after])


def _groups(side: str) -> list[list[str]]:
    """ "g (n v) ..." -> [["g"], ["n", "v"], ["..."]]."""
    groups: list[list[str]] = []
    inside = False
    for word in side.replace("(", " ( ").replace(")", " ) ").split():
        if word in "()":
            inside = word == "("
            groups += [[]] if inside else []
        elif inside:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _spelled_out(groups: list[list[str]], rest: int) -> list[list[str]]:
    """The groups with "..." replaced by `rest` names."""
    names = [[f"...{number}"] for number in range(rest)]
    return [new for group in groups for new in (names if group == ["..."] else [group])]


STAND_INS: Mapping[str, Mapping[str, Any]] = {
    "ml_collections": {"ConfigDict": ConfigDict},
    "einops": {"rearrange": rearrange},
}


def install() -> list[str]:
    """Puts a stand-in in the place of each package that is not installed; returns their names."""
    missing = [name for name in STAND_INS if not _installed(name)]
    for name in missing:
        module = types.ModuleType(name, f"A stand-in, see {__name__}.")
        vars(module).update(STAND_INS[name])
        sys.modules[name] = module
    return missing


def _installed(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
