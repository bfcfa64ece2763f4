"""python -m tests.soak NAME [option ...]

Long trials of the whole package, by NAME:

"""

import importlib
import inspect
import sys
import textwrap

NAMES = ("fuzz", "kill", "faults", "long")


def explain() -> str:
    """The help: what each trial does and how long it takes."""
    parts = [str(__doc__).strip()]
    for name in NAMES:
        main = importlib.import_module(f"tests.soak.{name}").main
        shown = " ".join(f"[{x.name}={x.default!r}]" for x in _parameters(main))
        text = inspect.getdoc(main) or ""
        parts.append(f"{name} {shown}\n{textwrap.indent(text, '    ')}")
    return "\n\n".join(parts)


def _parameters(main: object) -> list[inspect.Parameter]:
    return list(inspect.signature(main).parameters.values())  # type: ignore[arg-type]


def main(arguments: list[str]) -> int:
    """Runs one trial; returns 0 if it found nothing."""
    if not arguments or arguments[0] not in NAMES:
        print(explain())
        return 0 if arguments[:1] in ([], ["-h"], ["--help"]) else 2
    trial = importlib.import_module(f"tests.soak.{arguments[0]}").main
    known = _parameters(trial)
    values = [type(x.default)(text) for x, text in zip(known, arguments[1:], strict=False)]
    return trial(*values)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
