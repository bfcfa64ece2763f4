"""python -m dinov2_jax.main --config=FILE --workdir=DIR [--config.FIELD=VALUE ...]

--config   a Python file with get_config(), such as configs/quickstart.py
--workdir  the run directory; the same one again continues the run (task "train")
--config.task=plan compiles the step for config.plan.topology and says what a run would take
--config.a.b=value overrides a field; --help together with --config lists all fields

An error of yours is one sentence and exit status 2; DINOV2_JAX_TRACEBACK=1 shows where it arose.
"""

# Loader workers are spawned and import this module again: nothing heavy at module level, no JAX.
import os
import sys
import time
import traceback
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from dinov2_jax.config.checks import check_config
from dinov2_jax.config.files import CHOICES, ConfigError, leaves, load_config, nearest
from dinov2_jax.config.overrides import Arguments, parse_arguments, spelled, validate_overrides
from dinov2_jax.errors import UserError


def resolve_config(arguments: Arguments) -> ml_collections.ConfigDict:
    """The configuration file with the overrides of the command line, locked.

    Raises:
        ConfigError: for a missing file, an unknown field or a value of the wrong type.
    """
    config = load_config(arguments.config_path)
    validate_overrides(arguments.overrides, config)
    fields = leaves(config)
    given = {name: spelled(text, fields[name]) for name, text in arguments.overrides}
    argv = ["main", *(f"--config.{name}={text}" for name, text in given.items())]
    # The file is run once, above: DEFINE_config_file would run it again, through a loader that
    # Python has deprecated.
    flag_values = flags.FlagValues()
    holder = config_flags.DEFINE_config_dict(
        "config", config, flag_values=flag_values, sys_argv=argv
    )
    flag_values(argv)
    return holder.value


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Starts `config.task`; the imports are here because they load JAX."""
    from dinov2_jax.parallel import processes

    if config.task == "train":
        if not workdir:
            raise ConfigError("training needs a run directory; add --workdir=runs/<name>")
        processes.start(config.distributed)
        from dinov2_jax.train import loop

        loop.train(config, workdir)
    elif config.task == "eval":
        check_config(config, device_count=1)
        processes.start(config.distributed)
        from dinov2_jax.eval import runner

        runner.evaluate(config, workdir)
    elif config.task == "embed":
        check_config(config, device_count=1)
        processes.start(config.distributed)
        from dinov2_jax.features import embed as task

        task.embed(config, workdir)
    elif config.task == "plan":
        from dinov2_jax.plan import plan

        plan.plan(config, workdir)
    elif config.task == "export":
        from dinov2_jax.weights import export

        export.run(config, workdir)
    elif config.task == "visualize":
        check_config(config, device_count=1)
        from dinov2_jax.viz import visualize

        visualize.visualize(config, workdir)
    else:
        tasks = CHOICES["task"]
        raise ConfigError(
            f"unknown config.task {config.task!r}; did you mean {nearest(config.task, tasks)!r}?"
        )


def main(argv: Sequence[str]) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C.

    Of several processes also 3, when another one is lost.
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
            print("\n".join(f"--config.{k}={v!r}" for k, v in leaves(config).items()))
            return 0
        run(config, arguments.workdir)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return leave(130)
    except Exception as error:
        return leave(explain(error))
    return 0


def explain(error: Exception) -> int:
    """Says on stderr what went wrong; returns the exit status, or raises what has no sentence."""
    from jax import distributed

    from dinov2_jax.parallel.processes import LOST, lost_process

    show_all = "DINOV2_JAX_TRACEBACK" in os.environ
    lost = lost_process(error)
    if lost or (isinstance(error, UserError | OSError | ImportError) and not show_all):
        print(f"error: {lost or error}", file=sys.stderr)
        return LOST if lost else 2
    if not distributed.is_initialized():
        raise error
    traceback.print_exception(error)
    return 1


def leave(status: int) -> int:
    """Ends one of several processes at once: an orderly exit would wait for the others' own end.

    They wait for this one in a collective meanwhile.
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
    """XLA's and TensorFlow's start-up chatter hides the one line that matters."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("ABSL_MIN_LOG_LEVEL", "2")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
