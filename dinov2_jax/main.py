"""python -m dinov2_jax.main --config=NAME --workdir=DIR [--config.FIELD=VALUE ...]

--config   a recipe's name, such as quickstart or eval/knn, or a Python file with get_config()
--workdir  the run directory; the same one again continues the run (task "train")
           a recipe of several stages continues too, and without a workdir its plan is printed
--config.task=plan compiles the step for config.plan.topology and says what a run would take
--config.a.b=value overrides a field; --help together with --config explains every field

User errors print one sentence and exit with status 2; DINOV2_JAX_TRACEBACK=1 shows a traceback.
"""

# Loader workers are spawned and import this module again: nothing heavy at module level, no JAX.
import io
import logging
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags

from dinov2_jax.config.checks import check_values, require_fields
from dinov2_jax.config.comments import field_comments
from dinov2_jax.config.files import ConfigError, leaves, load_config, nearest
from dinov2_jax.config.overrides import Arguments, override, parse_arguments
from dinov2_jax.errors import sentence
from dinov2_jax.stages.settings import override_recipe


def resolve_config(arguments: Arguments) -> ml_collections.ConfigDict:
    """The configuration file with the overrides of the command line, locked.

    Raises:
      ConfigError: a missing file, an unknown field or a value of the wrong type.
    """
    config = load_config(arguments.config_path)
    if config.get("task") == "stages":
        override_recipe(config, arguments.overrides)
    else:
        override(config, arguments.overrides)
    return config.lock()


# Each imports what it needs when it runs: mistakes on the command line must not wait for JAX.
def train(config: ml_collections.ConfigDict, workdir: str) -> None:
    if not workdir:
        raise ConfigError("training needs a run directory; add --workdir=runs/<name>")
    from dinov2_jax.parallel import processes
    from dinov2_jax.train.checks import RULES

    require_fields(config, RULES)
    processes.start(config.distributed)
    from dinov2_jax.train import loop

    loop.train(config, workdir)


def evaluate(config: ml_collections.ConfigDict, workdir: str) -> None:
    from dinov2_jax.eval.rules import RULES
    from dinov2_jax.parallel import processes

    check_values(config, RULES)
    processes.start(config.distributed)
    from dinov2_jax.eval import runner

    runner.evaluate(config, workdir)


def embed(config: ml_collections.ConfigDict, workdir: str) -> None:
    from dinov2_jax.features.rules import RULES
    from dinov2_jax.parallel import processes

    check_values(config, RULES)
    processes.start(config.distributed)
    from dinov2_jax.features import embed as task

    task.embed(config, workdir)


def plan(config: ml_collections.ConfigDict, workdir: str) -> None:
    from dinov2_jax.plan import plan as task

    task.plan(config, workdir)


def export(config: ml_collections.ConfigDict, workdir: str) -> None:
    from dinov2_jax.weights import export as task

    check_values(config, task.RULES)
    task.run(config, workdir)


def visualize(config: ml_collections.ConfigDict, workdir: str) -> None:
    from dinov2_jax.viz import visualize as task
    from dinov2_jax.viz.rules import RULES

    check_values(config, RULES)
    task.visualize(config, workdir)


def stages(config: ml_collections.ConfigDict, workdir: str) -> None:
    from dinov2_jax.parallel import processes
    from dinov2_jax.stages.rules import check_recipe

    check_recipe(config)
    processes.start(config.distributed)
    from dinov2_jax.stages import run as task

    task.run(config, workdir)


def curate(config: ml_collections.ConfigDict, workdir: str) -> None:
    from dinov2_jax.curation.rules import RULES
    from dinov2_jax.parallel import processes

    check_values(config, RULES)
    processes.start(config.distributed)
    from dinov2_jax.curation import task

    task.curate(config, workdir)


TASKS: dict[str, Callable[[ml_collections.ConfigDict, str], None]] = {
    "train": train,
    "eval": evaluate,
    "embed": embed,
    "plan": plan,
    "export": export,
    "visualize": visualize,
    "stages": stages,
    "curate": curate,
}


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs the task that the configuration names.

    Raises:
      UserError: an unknown task; what the task refuses.
    """
    require_task(config)
    from dinov2_jax.parallel import runtime

    runtime.configure()
    TASKS[config.task](config, workdir)


def require_task(config: ml_collections.ConfigDict) -> None:
    if config.task not in TASKS:
        near = nearest(config.task, tuple(TASKS))
        raise ConfigError(f"unknown config.task {config.task!r}; did you mean {near!r}?")


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, 2 for user errors, 130 after Ctrl-C.

    With several processes also 3, when another one is lost.
    """
    quiet_libraries()
    # Grain refuses to start workers before absl has parsed flags; none of its own are offered here.
    flags.FLAGS([argv[0]])
    try:
        wants_help = {"-h", "--help"} & set(argv)
        given = [argument for argument in argv[1:] if argument not in wants_help]
        if wants_help:
            print(__doc__)
            if not given:
                return 0
        arguments = parse_arguments(given)
        config = resolve_config(arguments)
        if wants_help:
            print(explained(config, arguments.config_path))
            return 0
        run(config, arguments.workdir)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return leave(130)
    except Exception as error:
        return leave(explain(error))
    return 0


def explained(config: ml_collections.ConfigDict, config_path: str) -> str:
    """Every field with its value, and below it the comment of its configuration file."""
    values, lines = leaves(config), []
    for name, (_, comment) in field_comments(config_path).items():
        lines.append(f"--config.{name}={values[name]!r}")
        lines += textwrap.wrap(comment, 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def explain(error: Exception) -> int:
    """Says on stderr what went wrong; returns the exit status, or raises what has no sentence."""
    from jax import distributed

    from dinov2_jax.parallel.processes import LOST, lost_process, nccl_failure

    text, lost, nccl = sentence(error), lost_process(error), nccl_failure(error)
    # The signs of a lost process or of NCCL may have another cause.
    if lost or nccl or (text and "DINOV2_JAX_TRACEBACK" in os.environ):
        traceback.print_exception(error)
    if lost or nccl or text:
        if isinstance(error, BrokenPipeError):  # Python would fail once more to write what is left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: {lost or nccl or text}", file=sys.stderr)
        return LOST if lost else 1 if nccl else 2
    if not distributed.is_initialized():
        raise error
    traceback.print_exception(error)
    return 1


def leave(status: int) -> int:
    """Ends one of several processes at once.

    An orderly exit would wait for the other processes, which wait for this one in a collective.
    """
    import jax

    if jax.distributed.is_initialized():
        if jax.process_index() == 0:
            time.sleep(2)  # without it, the others abort before they can tell the same mistake
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def quiet_libraries() -> None:
    """XLA's and TensorFlow's start-up chatter hides the one line that matters.

    So do the tracebacks of the threads of a failed save; `Checkpoints` raises its first error.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "2")
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    if "DINOV2_JAX_TRACEBACK" not in os.environ:
        logging.getLogger("absl").addFilter(_is_of_no_save)
        logging.getLogger("asyncio").addFilter(_is_of_no_save)
        sys.unraisablehook = _tell_unraisable


def _is_of_no_save(record: logging.LogRecord) -> bool:
    """Nothing here but Orbax writes errors with absl, and nothing but Orbax has asyncio's tasks."""
    return record.levelno < logging.ERROR or not {"orbax", "asyncio"} & set(
        Path(record.pathname).parts
    )


def _tell_unraisable(unraisable: Any) -> None:
    """Tensorstore has an error for each write that a failed save no longer waits for."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
