"""Ten thousand steps of a tiny model: memory stays flat, and nothing is left open."""

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.soak import runs

EVERY = 1000  # steps between two rows of the table
TOLERANCE = 0.02  # of resident memory, after the first `EVERY` steps
ON_THE_WAY = 9  # files and mappings of batches; one lost at each save alone would be twice this
TINY = {
    "batch_size": 4, "model.depth": 1, "model.dim": 12, "model.drop_path_rate": 0.0,
    "crops.local_number": 1, "log_every_steps": 50,
    "checkpoint.every_steps": EVERY // 2,  # the first row is behind a save, which loads libraries
    "checkpoint.keep_last": 1,
}  # fmt: skip


class Held(NamedTuple):
    """What a job and its loader workers hold."""

    resident_mb: float
    own_mb: float  # of it, pages that no file stands behind: what a leak grows
    of_job_mb: float  # of `own_mb`, the job's own without its workers
    handles: int
    shared: int  # mappings of files in /dev/shm
    threads: int


def main(steps: int = 10_000, workers: int = 1) -> int:
    """Trains a tiny model for 10,000 steps; prints what it holds every 1,000 steps.

    Resident memory must stay within 2 % of that at step 1,000, open files and shared memory must
    not grow by more than batches on their way, and nothing may be left in /dev/shm. Options: the
    steps and the loader processes. Takes one to ten minutes on two free cores.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures, workdir = runs.write_pictures(Path(folder) / "pictures"), Path(folder) / "run"
        changes = TINY | {"total_steps": steps, "data.workers": workers}
        process = runs.start(runs.training(pictures, **changes), workdir)
        table, shared = _watch(process, workdir, steps)
        status = process.wait(timeout=runs.LIMIT_S)
        if status:
            print(runs.said(workdir)[-3000:])
    left = sorted(name for name in shared if Path("/dev/shm", name).exists())
    flat = _is_flat(table)
    bad = status != 0 or bool(left) or not flat
    print(f"left in /dev/shm: {', '.join(left) or 'nothing'}; {'FAILED' if bad else 'passed'}")
    return int(bad)


def _watch(
    process: subprocess.Popen[str], workdir: Path, steps: int
) -> tuple[dict[int, Held], set[str]]:
    """A row at each multiple of EVERY, the median of three looks; names of shared memory seen."""
    print("   step  resident MB   own MB  of job MB  handles  shared  threads  steps/s", flush=True)
    table: dict[int, Held] = {}
    shared: set[str] = set()
    begin, last = time.monotonic(), 0
    for wanted in range(EVERY, steps + 1, EVERY):
        looks = []
        for at in range(wanted - 150, wanted, 50):
            runs.wait_for(lambda at=at: _step(workdir) >= at, process)
            if process.poll() is None:
                looks.append(_held(process.pid))
                shared |= _shared_by(process.pid)
        if not looks:
            break
        table[wanted] = row = sorted(looks)[len(looks) // 2]
        rate = (wanted - last) / (time.monotonic() - begin)
        begin, last = time.monotonic(), wanted
        print(f"{wanted:7}{row.resident_mb:13.1f}{row.own_mb:9.1f}{row.of_job_mb:11.1f}"
              f"{row.handles:9}{row.shared:8}{row.threads:9}{rate:9.1f}", flush=True)  # fmt: skip
    return table, shared


def _is_flat(table: dict[int, Held]) -> bool:
    rows = list(table.values())
    if len(rows) < 2:
        return False
    first, rest = rows[0], rows[1:]
    change = max(row.resident_mb / first.resident_mb - 1 for row in rest)
    print(f"most resident memory after step {EVERY}: {change:+.2%}")
    growing = any(
        row.handles > first.handles + ON_THE_WAY or row.shared > first.shared + ON_THE_WAY
        for row in rest
    )
    return change <= TOLERANCE and not growing


def _step(workdir: Path) -> int:
    """The last step with a line of metrics."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _held(pid: int) -> Held:
    """The sum over a process and its children."""
    pids = [pid, *_children(pid)]
    job, *workers = (_held_by(each) for each in pids)
    total = Held(*(sum(column) for column in zip(job, *workers, strict=True)))
    return total._replace(of_job_mb=job.own_mb)


def _children(pid: int) -> list[int]:
    own = [int(x) for task in Path(f"/proc/{pid}/task").iterdir()
           for x in (task / "children").read_text().split()]  # fmt: skip
    return own + [grandchild for child in own for grandchild in _children(child)]


def _held_by(pid: int) -> Held:
    process = Path(f"/proc/{pid}")
    _, resident, of_files, *_ = map(int, (process / "statm").read_text().split())
    page_mb = os.sysconf("SC_PAGE_SIZE") / 1e6
    handles = len(list((process / "fd").iterdir()))
    shared = (process / "maps").read_text().count("/dev/shm/")
    threads = len(list((process / "task").iterdir()))
    own = (resident - of_files) * page_mb
    return Held(resident * page_mb, own, own, handles, shared, threads)


def _shared_by(pid: int) -> set[str]:
    """Names in /dev/shm that a job maps; other programs have files there too."""
    maps = [Path(f"/proc/{each}/maps").read_text() for each in (pid, *_children(pid))]
    return set(re.findall(r"/dev/shm/(\S+)$", "\n".join(maps), re.MULTILINE))
