"""kill -9 at random moments, then the same command: the result is that of a straight run."""

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.eval.test_runner import write_pictures as write_classes
from tests.soak import runs

STEPS = 40

Outcome = Callable[[Path], dict[str, bytes]]


def main(kills: int = 20, others: int = 5, seed: int = 14) -> int:
    """Kills a training run at 20 random moments, and embed, eval linear and finetune at 5 each.

    The training run saves every step. Each killed job is started again by the same command and has
    to end bit-equal to a straight one. Options: the kills of training, of each other job, the seed
    of the moments. Takes 20 minutes on two cores.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, rng = Path(folder), random.Random(seed)
        pictures = runs.write_pictures(root / "pictures")
        many = runs.write_pictures(root / "many", 400)
        classes = write_classes(root / "classes")
        arguments = runs.training(pictures, total_steps=STEPS)
        failed = trial("train", arguments, runs.state_of, root, kills, rng)
        weights = root / "train" / "straight"
        jobs = {"embed": runs.embedding(weights, many)}
        for protocol in ("linear", "finetune"):
            jobs[f"eval {protocol}"] = runs.evaluating(protocol, weights, classes)
        for name, arguments in jobs.items():
            failed += trial(name, arguments, runs.files_of, root, others, rng)
    return int(failed > 0)


def trial(
    name: str, arguments: list[str], outcome: Outcome, root: Path, kills: int, rng: random.Random
) -> int:
    """Kills one job several times; prints and returns how many did not end as the straight one."""
    folder = root / name.replace(" ", "_")
    folder.mkdir()
    straight = folder / "straight"
    begin = time.monotonic()
    process = runs.start(arguments, straight)
    runs.wait_for(straight.exists, process)
    opened_s = time.monotonic() - begin
    assert process.wait(timeout=runs.LIMIT_S) == 0, runs.said(straight)
    lasts_s = time.monotonic() - begin
    wanted = outcome(straight)
    assert wanted
    equal, killed, late = 0, 0, 0
    while killed < kills:
        workdir = folder / "killed"
        moment_s = rng.uniform(opened_s, lasts_s)
        process = runs.start(arguments, workdir)
        time.sleep(moment_s)
        if process.poll() is not None:  # it had ended already: another moment
            late, lasts_s = late + 1, opened_s + 0.9 * (lasts_s - opened_s)
            assert late < 5 * kills, "the job ends before it can be killed"
        else:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            status, text = runs.finish(arguments, workdir)
            differ = runs.differences(wanted, outcome(workdir)) if status == 0 else [text[-2000:]]
            equal += not differ
            found = f"differs in {', '.join(differ)}" if differ else "equal"
            print(f"  {name}, kill {killed} after {moment_s:.1f} s: {found}", flush=True)
        shutil.rmtree(workdir, ignore_errors=True)
    print(f"{name}: {equal} of {killed} killed jobs end bit-equal to the straight one", flush=True)
    return killed - equal
