"""How processes are found, what is refused, who loads what; one process notices nothing of it."""

import itertools
import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import default
from dinov2_jax import main
from dinov2_jax.config.checks import check_distributed
from dinov2_jax.config.files import ConfigError
from dinov2_jax.parallel import processes as distributed
from dinov2_jax.parallel.mesh import MeshError, make_mesh, own_mesh
from dinov2_jax.parallel.placement import _groups_of
from dinov2_jax.run.interrupt import StopRequest

PLACE = "10.0.0.1:8476"


def settings(**changes) -> dict:
    return dict(default.distributed()) | changes


@pytest.mark.parametrize(
    ("environment", "changes", "expected"),
    [
        ({}, {}, None),
        # A batch script's own shell has room for four tasks, but is one.
        ({"SLURM_NTASKS": "4"}, {}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, {}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, {}, {"cluster_detection_method": "slurm"}),
        ({"SLURM_STEP_NUM_TASKS": "4"}, {"coordinator": "none"}, None),
        ({}, {"coordinator": PLACE, "processes": 1, "process_id": 0}, None),
    ],
)
def test_what_the_environment_says(environment, changes, expected):
    found = distributed._initialize_arguments(
        settings(**changes), environment | {"JAX_PLATFORMS": "cpu"}
    )
    assert found == expected


def test_explicit_settings():
    chosen = settings(coordinator=PLACE, processes=4, process_id=3)
    found = distributed._initialize_arguments(chosen, {"SLURM_STEP_NUM_TASKS": "2"})
    assert found == {
        "coordinator_address": PLACE,
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


def test_a_machine_with_tpu_chips_asks_the_pod(monkeypatch):
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name)
    assert distributed._initialize_arguments(settings(), {}) == {}
    assert distributed._initialize_arguments(settings(), {"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"processes": 2}, "need a coordinator; add --config.distributed.coordinator="),
        ({"process_id": 0}, "need a coordinator"),
        ({"coordinator": "here"}, "must be auto, none or host:port"),
        ({"coordinator": "here:99999", "processes": 2, "process_id": 0}, "host:port"),
        ({"coordinator": PLACE}, "process_id is -1 of -1 processes"),
        ({"coordinator": PLACE, "processes": 2, "process_id": 2}, "from 0 to N - 1"),
        ({"heartbeat_s": 0}, "heartbeat_s is 0, but must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_distributed(settings(**changes))


class FakeMesh:
    """Devices in the order of a mesh, each given by the process that owns it."""

    def __init__(self, owners: list[int], tensor: int = 1) -> None:
        self.devices = np.array([SimpleNamespace(process_index=p) for p in owners])
        self.shape = {"data": len(owners) // tensor, "fsdp": 1, "tensor": tensor}


@pytest.mark.parametrize(
    ("owners", "tensor", "groups", "expected"),
    [
        ([0, 0, 1, 1], 1, 8, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([0, 0, 1, 1], 1, 2, [[0], [1]]),  # a group on two devices
        ([0, 1, 1, 0], 1, 4, [[0, 3], [1, 2]]),  # as a mesh along a torus may be
        ([0, 0, 1, 1], 2, 4, [[0, 1], [2, 3]]),
        ([0, 1, 0, 1], 2, 4, [[0, 1, 2, 3], [0, 1, 2, 3]]),  # both hold a half of every weight
    ],
)
def test_whose_groups_are_which(owners, tensor, groups, expected):
    mesh = FakeMesh(owners, tensor)
    found = [_groups_of(mesh, groups, process) for process in (0, 1)]  # pyrefly: ignore
    assert found == expected


@pytest.mark.parametrize(("owners", "groups"), [([0, 0, 1, 1], 3), ([0, 1, 1, 0], 2)])
def test_a_group_on_two_processes_is_refused(owners, groups):
    with pytest.raises(MeshError, match=f"{groups} statistical groups do not divide over"):
        _groups_of(FakeMesh(owners), groups, 0)  # pyrefly: ignore


def test_one_process_reads_its_message_at_once():
    heard = []
    exchange = distributed.Exchange(make_mesh(2), heard.append)
    for step, number in itertools.product(range(2), [7]):
        exchange.send(record=np.array([step]), signal=np.array([number]))
        assert len(heard) == step + 1
        assert heard[-1]["record"] == [step] and heard[-1]["signal"] == [7]
    exchange.flush()
    assert len(heard) == 2


def test_one_process_is_the_main_one_and_waits_for_nobody():
    assert distributed.is_main() and distributed.own_name() == ""
    with distributed.main_first():
        distributed.require_same(configuration="a")
    mesh = make_mesh(4, 2)
    assert own_mesh(mesh) is mesh


def test_a_signal_counts_at_once_or_when_all_have_heard():
    for alone in (True, False):
        with StopRequest(alone=alone) as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.number == signal.SIGTERM
            assert stop.signal_name == ("SIGTERM" if alone else None)
            stop.agree([0, 0])
            assert stop.signal_name == ("SIGTERM" if alone else None)
            stop.agree([0, signal.SIGTERM])
            assert stop.signal_name == "SIGTERM"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_every_signal_that_asks_to_end_is_told_at_once(name, capfd):
    """SLURM's --signal, submitit and Lightning send SIGUSR1 or 2, a lost terminal SIGHUP."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # pytest itself may run under nohup
    try:
        with StopRequest() as stop:
            signal.raise_signal(number)
            assert stop.asked() and stop.signal_name == name
            assert f"{name}: the run saves, then ends" in capfd.readouterr().err
            if name != "SIGINT":  # a second one of these is no reason to hurry
                signal.raise_signal(number)
            assert capfd.readouterr().err == ""
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_nohup_is_respected(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_which_errors_mean_a_lost_process(monkeypatch):
    gone = RuntimeError("INTERNAL: [1] Gloo all-reduce failed: Connection closed by peer")
    assert distributed.lost_process(gone) == ""  # there are no others
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert "lost another process of the run" in distributed.lost_process(gone)
    wrapped = ValueError("could not save")
    wrapped.__cause__ = gone
    assert "lost another process of the run" in distributed.lost_process(wrapped)
    for other in (
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes"),
        RuntimeError("INTERNAL: NCCL operation ncclCommInitRank failed: out of memory"),
        RuntimeError("INTERNAL: NCCL operation ncclAllReduce failed: invalid usage"),
        RuntimeError("the feature is unavailable on this device"),
        ConfigError("config.heartbeat is unavailable"),
        FileNotFoundError("/barrier"),
        ValueError('UNAVAILABLE: Error writing "zarr" driver: connection reset'),
        RuntimeError("no barrier islands in /data/coordination, heartbeat missing"),
    ):
        assert distributed.lost_process(other) == ""
    for lost in (
        TimeoutError("Barrier timed out"),
        ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:62638"),
        RuntimeError("INTERNAL: NCCL operation failed: remote process exited or network error"),
        RuntimeError("DEADLINE_EXCEEDED: no NCCL clique id"),
        RuntimeError("UNAVAILABLE: failed to connect to all addresses"),
    ):
        assert "lost another process of the run" in distributed.lost_process(lost)
        assert distributed.nccl_failure(lost) == ""


NCCL = (
    "INTERNAL: NCCL operation ncclGroupEnd() failed: unhandled system error (run with "
    "NCCL_DEBUG=INFO for details).\nLast NCCL warning(error) log entry (may be unrelated) "
    "'Call to bind failed: Cannot assign requested address'"
)


@pytest.mark.parametrize(
    "text",
    [
        NCCL,
        "INTERNAL: NCCL operation ncclCommInitRank failed: unhandled cuda error: out of memory",
        "INTERNAL: NCCL operation ncclAllReduce failed: invalid usage",
        "INTERNAL: NCCL operation failed: 'socketStartConnect: Connection refused'",
    ],
)
def test_an_error_of_nccl_keeps_its_words_and_is_no_lost_process(text, monkeypatch, capsys):
    assert distributed.nccl_failure(RuntimeError(text)) == ""  # alone: the traceback says it
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    wrapped = ValueError("could not save")
    wrapped.__cause__ = RuntimeError(text)
    ended = []
    monkeypatch.setattr(distributed.os, "_exit", ended.append)
    with pytest.raises(ValueError), distributed.end_when_lost():
        raise wrapped
    assert ended == [1]
    told = capsys.readouterr().err
    sentence = told[told.index("error: NCCL failed on process 0 of 1") :]
    assert " ".join(text.split()) in sentence and "lost" not in sentence
    assert "Traceback" in told and main.explain(wrapped) == 1


def test_a_lost_process_ends_this_one_with_traceback_and_sentence(monkeypatch, capsys):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    ended = []
    monkeypatch.setattr(distributed.os, "_exit", ended.append)
    with pytest.raises(RuntimeError), distributed.end_when_lost():
        raise RuntimeError("INTERNAL: NCCL operation failed: remote process exited")
    assert ended == [distributed.LOST]
    told = capsys.readouterr().err
    assert "Traceback" in told and "lost another process of the run" in told


LOOP = """
import os, sys
import numpy as np
from dinov2_jax.parallel import processes
from dinov2_jax.parallel.mesh import make_mesh
from dinov2_jax.parallel.placement import gather
address, me = sys.argv[1], int(sys.argv[2])
processes.start({"coordinator": address, "processes": 2, "process_id": me, "heartbeat_s": 30})
mesh = make_mesh()
with processes.end_when_lost():
    for step in range(100):
        if me == 1 and step == 3:
            os.kill(os.getpid(), 9)
        np.asarray(gather(np.array([step], np.int32), mesh))
"""


def test_the_death_of_a_process_is_told_by_the_other_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    how = {"env": environment, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", LOOP, address]
    both = [subprocess.Popen([*command, str(me)], **how) for me in (0, 1)]
    told = [process.communicate(timeout=100)[1] for process in both]
    assert [process.returncode for process in both] == [distributed.LOST, -signal.SIGKILL], told
    assert "Traceback" in told[0]
    assert "error: process 0 of 2 lost another process of the run" in told[0]
