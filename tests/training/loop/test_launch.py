"""A launch of several processes: fewer than were asked for are noticed, and what communication raises is explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefine.errors import DataError, TrainingError
from prefine.training.loop.launch import fewer_processes, first_to_say, launch_command, launched, lost_processes

# What `accelerate launch --cpu --num_processes 2` tells the one process that it starts.
ACCELERATE_CPU = {
    "ACCELERATE_USE_CPU": "True",
    "ACCELERATE_MIXED_PRECISION": "no",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def test_accelerate_on_a_cpu_starts_one_process() -> None:
    said = fewer_processes(1, ACCELERATE_CPU)
    assert said == (
        "accelerate launch was asked for several processes and started one. "
        "On a CPU use: torchrun --nproc-per-node N -m prefine …"
    )


@pytest.mark.parametrize(
    ("environment", "running", "asked"),
    [
        ({"WORLD_SIZE": "2"}, 1, 2),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, 4),
        ({"PMI_SIZE": "4"}, 2, 4),
    ],
)
def test_fewer_processes_are_noticed(environment: dict[str, str], running: int, asked: int) -> None:
    said = fewer_processes(running, environment)
    assert said is not None
    assert said.startswith(f"{asked} processes were launched, but {running} of them train together.")


@pytest.mark.parametrize(
    ("environment", "running"),
    [
        ({}, 1),
        ({"MASTER_PORT": "29500"}, 1),
        ({"WORLD_SIZE": "2"} | ACCELERATE_CPU, 2),
        ({"WORLD_SIZE": "1"} | ACCELERATE_CPU, 1),
        ({"WORLD_SIZE": "two"}, 1),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1),
    ],
)
def test_as_many_as_asked_for_are_no_news(environment: dict[str, str], running: int) -> None:
    assert fewer_processes(running, environment) is None


LOST = [
    RuntimeError("[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1234"),
    torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0."),
    torch.distributed.DistNetworkError("The client socket has failed to connect"),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_lost_process_is_one_line(error: RuntimeError) -> None:
    with (
        pytest.raises(TrainingError, match="another process of this launch has ended, so this one ends, too"),
        lost_processes(2),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("gloo"), RuntimeError("shapes do not fit"), DataError("a", "B.")], ids=str
)
def test_other_errors_are_as_they_were(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, lost_processes(2):
        raise error
    assert caught.value is error


def test_one_process_loses_nobody() -> None:
    with pytest.raises(RuntimeError, match="gloo"), lost_processes(1):
        raise LOST[0]


def test_the_first_says_why(tmp_path: Path) -> None:
    ranks = [
        {"WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(tmp_path / f"{rank}" / "error.json")} for rank in (0, 1)
    ]
    assert [first_to_say(rank) for rank in ranks] == [True, False]
    assert first_to_say({"WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "no" / "0" / "error.json")})
    assert first_to_say({"WORLD_SIZE": "2"})  # another launcher: better twice than not at all
    assert first_to_say({})


def test_the_command_that_goes_on() -> None:
    torchrun = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    assert launch_command(["sft", "my recipe.yaml"], {}) == "prefine sft 'my recipe.yaml'"
    assert launch_command(["sft", "a.yaml"], torchrun) == "torchrun --nproc-per-node 2 -m prefine sft a.yaml"
    assert launch_command(["sft", "a.yaml"], {"WORLD_SIZE": "1"}) == "prefine sft a.yaml"
    assert not launched({"WORLD_SIZE": "1"})
