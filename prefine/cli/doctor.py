"""`prefine doctor`: what this machine has, what a run would use, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prefine.cli.options import AsJson
from prefine.terminal import echo, visible

if TYPE_CHECKING:
    from rich.table import Table

    from prefine.doctor import Diagnosis
    from prefine.models.loading.device import DeviceReport

# Names of `prefine.models.loading.device.cpu_instructions`, and the vendor's names.
_FASTER_ON_X86 = {"AVX512": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}


def doctor(
    device: Annotated[str, typer.Option(help="As in a recipe: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Show what this machine has, what a run would use, and why: devices, measured speeds, optional packages."""
    import dataclasses
    import json

    from prefine.doctor import diagnose

    diagnosis = diagnose(device)
    if as_json:
        echo(json.dumps(dataclasses.asdict(diagnosis), indent=2))
    else:
        _print(diagnosis)


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(_table("what will be used", _choices(diagnosis)))
    console.print(_table("devices", [(each["device"], _described(each)) for each in diagnosis.devices]))
    console.print(_table("measured matrix products", _rates(diagnosis)))
    console.print(_table("optional parts", _optional(diagnosis)))
    console.print(_table("versions", [(name, found or "missing") for name, found in diagnosis.versions.items()]))
    for warning in diagnosis.warnings:
        console.print(Text(visible(f"warning: {warning}"), style="yellow"), soft_wrap=True)


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=False)
    # Equal column widths align the tables.
    table.add_column(min_width=14, style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(visible(name)), Text(visible(value)))
    return table


def _choices(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    return [
        ("device", diagnosis.devices[0]["device"]),
        ("dtype", f"{diagnosis.dtype}: {diagnosis.dtype_reason}"),
        ("attention", f"{diagnosis.kernel}: {diagnosis.kernel_reason}"),
        ("cache", f"{diagnosis.cache} ({diagnosis.cache_free_gb:.0f} GB free)"),
        ("hub", diagnosis.hub),
    ]


def _described(device: DeviceReport) -> str:
    parts = [device["name"]]
    if device["cores"] is not None:
        parts.append(f"{_count(device['cores'], 'core')}, {_count(device['threads'] or 0, 'thread')}")
    parts.append(f"{device['memory_total_gb']:.1f} GB memory, {device['memory_free_gb']:.1f} GB free")
    parts.append(_instructions(device["instructions"]))
    return " · ".join(filter(None, parts))


def _instructions(found: list[str]) -> str:
    """The instruction sets of a processor, and those for faster training on x86 that it lacks."""
    if not any(name in found for name in ("AVX2", "AVX512")):
        return " ".join(found)
    lacking = [said for name, said in _FASTER_ON_X86.items() if name not in found]
    return " ".join(found) + (f" (no {', '.join(lacking)})" if lacking else "")


def _rates(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    from prefine.rounding import two_digits

    return [(name, f"{two_digits(gflops)} GFLOP/s") for name, gflops in diagnosis.matmul_gflops.items()]


def _optional(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    return [
        (
            part.name,
            f"{part.installed} · {part.purpose}" if part.installed else f"missing · {part.purpose}\n{part.remedy}",
        )
        for part in diagnosis.optional
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
