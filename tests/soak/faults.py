"""Faults of disks, files, processes and clocks: nothing is lost, and one sentence says what is."""

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.soak import runs

STEPS = 12
Straight = dict[str, bytes]

# Imported by every Python of a job: three seconds after the start its clock goes back by a day.
_CLOCK = """
import time
real, real_ns, begin = time.time, time.time_ns, time.monotonic()
def back():
    return 86400 * (time.monotonic() - begin > 3)
time.time = lambda: real() - back()
time.time_ns = lambda: real_ns() - back() * 10**9
"""


class Trial:
    """Folders of one fault, the straight run, and what was found wrong."""

    def __init__(self, folder: Path, straight: Straight, **changes: Any) -> None:
        self.folder, self.straight, self.problems = folder, straight, list[str]()
        self.places = 12  # at which a disk is full
        folder.mkdir()
        self.pictures, self.workdir = runs.write_pictures(folder / "pictures"), folder / "run"
        self.arguments = runs.training(self.pictures, total_steps=STEPS, **changes)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        """The run, in the background."""
        return runs.start(self.arguments, self.workdir, **variables)

    def until_step(self, process: subprocess.Popen[str], step: int) -> None:
        """Waits for the metrics of a step."""
        path = self.workdir / "metrics.jsonl"
        seen = runs.wait_for(lambda: path.exists() and len(path.read_bytes().splitlines()) >= step,
                             process)  # fmt: skip
        self.expect(seen, f"the run ended before step {step}: {runs.said(self.workdir)[-500:]}")

    def expect(self, fact: object, otherwise: str) -> None:
        """Notes a problem."""
        if not fact:
            self.problems.append(otherwise)

    def ends(self, process: subprocess.Popen[str]) -> None:
        """The run ends without error and equal to the straight one."""
        status, text = process.wait(timeout=runs.LIMIT_S), runs.said(self.workdir)
        self.expect(status == 0, f"status {status}: {text[-1500:]}")
        if status == 0:
            differ = runs.differences(self.straight, runs.state_of(self.workdir))
            self.expect(not differ, f"differs from the straight run in {', '.join(differ)[:300]}")

    def refused(self, process: subprocess.Popen[str], word: str = "") -> None:
        """The run ends with status 2 and one sentence, which holds `word`."""
        status, text = process.wait(timeout=runs.LIMIT_S), runs.said(self.workdir)
        sentence = runs.refusal(text)
        told = status == 2 and word in sentence and sentence
        self.expect(told, f"status {status}, no sentence with {word!r}: {text[-1500:]}")
        if told:
            print(f"    {sentence[:160]}")


def full_disk(trial: Trial) -> None:
    """The disk is full at some places of the run; given room, the same command continues."""
    disk = trial.folder / "disk"
    trial.workdir = disk / "run"
    whole = _written(trial.folder.parent / "straight")
    for part in np.linspace(0, 0.98, trial.places):
        with Mounted(disk, int(whole * part)) as mounted:
            # The sentence goes to another disk.
            process = _elsewhere(trial)
            status = process.wait(timeout=runs.LIMIT_S)
            text = (trial.folder / "said.txt").read_text()
            if status:
                sentence = runs.refusal(text)
                trial.expect(status == 2 and sentence, f"{part}: status {status}: {text[-1500:]}")
                print(f"    {part:.3f} of the room: {sentence[:150]}")
            mounted.resize(4 * whole)
            trial.ends(_elsewhere(trial))


def _elsewhere(trial: Trial) -> subprocess.Popen[str]:
    """Starts the run; what it says goes beside the full disk."""
    said, wanted = trial.folder / "said.txt", trial.workdir.with_name("run.txt")
    said.write_text("")
    if not wanted.is_symlink():
        wanted.symlink_to(said)
    return trial.start()


def read_only_disk(trial: Trial) -> None:
    """A new run and one to continue on a read-only disk; then it can be written again."""
    disk = trial.folder / "disk"
    trial.workdir = disk / "run"
    with Mounted(disk, 1 << 28) as mounted:
        (trial.folder / "said.txt").write_text("")
        trial.workdir.with_name("run.txt").symlink_to(trial.folder / "said.txt")
        mounted.option("ro")
        trial.refused(_elsewhere(trial), "Read-only")
        mounted.option("rw")
        process = _elsewhere(trial)
        trial.until_step(process, 5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        mounted.option("ro")
        trial.refused(_elsewhere(trial), "Read-only")
        mounted.option("rw")
        trial.ends(_elsewhere(trial))


def damaged_pictures(trial: Trial) -> None:
    """While it trains, one picture is removed, one truncated, one replaced by text."""
    process = trial.start()
    trial.until_step(process, 2)
    first, second, third = sorted(trial.pictures.iterdir())[:3]
    kept = {path: path.read_bytes() for path in (first, second, third)}
    first.unlink()
    os.truncate(second, 100)
    third.write_text("no picture")
    status, text = process.wait(timeout=runs.LIMIT_S), runs.said(trial.workdir)
    if status:  # more than the allowed share of pictures
        sentence = runs.refusal(text)
        trial.expect(status == 2 and sentence, f"status {status}: {text[-1500:]}")
        print(f"    {sentence[:200]}")
        for path, raw in kept.items():
            path.write_bytes(raw)
        status, text = runs.finish(trial.arguments, trial.workdir)
    trial.expect(status == 0, f"status {status}: {text[-1500:]}")
    last = runs.metrics(trial.workdir)[-1]
    trial.expect(last["step"] == STEPS, f"ended at step {last['step']}")


def damaged_checkpoint(trial: Trial) -> None:
    """A file of a killed run's newest step is removed, cut or replaced; the step before counts."""
    for number, damage in enumerate((_remove, _cut, _replace)):
        process = trial.start()
        trial.until_step(process, 6)
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps = [x for x in (trial.workdir / "checkpoints").iterdir() if x.name.isdigit()]
        newest = max(steps, key=lambda path: int(path.name))
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        damage(files[(7 * number + 3) % len(files)])
        trial.ends(trial.start())
        shutil.rmtree(trial.workdir)


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _replace(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def killed_worker(trial: Trial) -> None:
    """kill -9 for a loader worker; the run goes on with new ones."""
    process = trial.start()
    trial.until_step(process, 3)
    children = [int(x) for task in Path(f"/proc/{process.pid}/task").iterdir()
                for x in (task / "children").read_text().split()]  # fmt: skip
    workers = [pid for pid in children
               if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip
    trial.expect(workers, "no loader worker was found")
    for pid in workers[:1]:
        os.kill(pid, signal.SIGKILL)
    trial.ends(process)


def two_starts(trial: Trial) -> None:
    """Two runs start at once in one folder: one trains, the other names it."""
    first = trial.start()
    other = Path(f"{trial.folder}/other.txt")
    runs.wait_for((trial.workdir / ".lock").exists, first)
    with open(other, "w") as output:
        command = [str(x) for x in first.args] if isinstance(first.args, list) else []
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        second = subprocess.run(
            command, cwd=runs.ROOT, stdout=output, stderr=output, env=environment, timeout=600
        )
    text = other.read_text()
    told = second.returncode == 2 and f"process {first.pid}" in runs.refusal(text)
    trial.expect(told, f"the second: status {second.returncode}: {text[-1500:]}")
    print(f"    {runs.refusal(text)[:160]}")
    trial.ends(first)


def clock_set_back(trial: Trial) -> None:
    """The clock goes back by a day during a run; another run continues from files of tomorrow."""
    patched = trial.folder / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text(_CLOCK)
    paths = os.pathsep.join([str(patched), os.environ.get("PYTHONPATH", "")])
    process = trial.start(PYTHONPATH=paths)
    trial.until_step(process, 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    tomorrow = time.time() + 86400
    for path in trial.workdir.rglob("*"):
        os.utime(path, (tomorrow, tomorrow), follow_symlinks=False)
    trial.ends(trial.start(PYTHONPATH=paths))


def files_added(trial: Trial) -> None:
    """While it trains, 1,000 pictures a second appear in the folder; the run does not see them."""
    process, ended, added = trial.start(), threading.Event(), list[Path]()
    runs.wait_for((trial.workdir / "metrics.jsonl").exists, process)
    raw = next(trial.pictures.iterdir()).read_bytes()

    def add() -> None:
        while not ended.wait(0.01) and len(added) < 100_000:
            while len(added) < 1000 * (time.monotonic() - begin):
                added.append(trial.pictures / f"added{len(added):06}.png")
                added[-1].write_bytes(raw)

    thread = threading.Thread(target=add)
    begin = time.monotonic()
    thread.start()
    trial.ends(process)
    ended.set()
    thread.join()
    rate = len(added) / (time.monotonic() - begin)
    print(f"    {len(added)} pictures added, {rate:.0f} a second")
    trial.refused(trial.start(), "pictures")
    for path in added:
        path.unlink()
    trial.ends(trial.start())


class Mounted:
    """A tmpfs of some bytes; PermissionError where mounting is not allowed."""

    def __init__(self, place: Path, size: int) -> None:
        self.place = place
        place.mkdir(exist_ok=True)
        pages = max(1, size // 4096)
        self._mount("-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs")

    def _mount(self, *options: str) -> None:
        command = ["mount", *options, str(self.place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PermissionError(done.stderr.strip())

    def option(self, option: str) -> None:
        """Mounts it anew with an option."""
        self._mount("-o", f"remount,{option}")

    def resize(self, size: int) -> None:
        """Gives it another size."""
        self.option(f"size={size}")

    def __enter__(self) -> "Mounted":
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", str(self.place)], check=True)


def _written(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


FAULTS = {
    "two_starts": (two_starts, {}),
    "killed_worker": (killed_worker, {"data.workers": 2}),
    "files_added": (files_added, {}),
    "damaged_checkpoint": (damaged_checkpoint, {}),
    "damaged_pictures": (damaged_pictures, {}),
    "clock_set_back": (clock_set_back, {}),
    "read_only_disk": (read_only_disk, {}),
    "full_disk": (full_disk, {}),
}


def main(names: str = "", places: int = 12) -> int:
    """Full and read-only disks, damaged files, killed workers, two starts, clocks, new files.

    After each fault the run, or the same command once the fault is mended, has to end bit-equal to
    a straight one; what is refused is told in one sentence. Disks need the right to mount a tmpfs.
    Options: faults joined by commas, the number of places at which a disk is full. Takes 15 minutes
    on two cores.
    """
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "programs"))
        pictures = runs.write_pictures(root / "pictures")
        arguments = runs.training(pictures, total_steps=STEPS)
        status, text = runs.finish(arguments, root / "straight")
        assert status == 0, text
        straight = runs.state_of(root / "straight")
        for name in names.split(",") if names else FAULTS:
            fault, changes = FAULTS[name]
            print(f"{name}: {fault.__doc__}", flush=True)
            trial = Trial(root / name, straight, **changes)
            trial.places = places
            try:
                fault(trial)
            except PermissionError as error:
                print(f"  skipped: mounting a small disk is not allowed here ({error})")
                continue
            failed += bool(trial.problems)
            print("\n".join(f"  FAILED: {x}" for x in trial.problems) or "  passed", flush=True)
    return int(failed > 0)
