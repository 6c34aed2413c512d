"""Reward models: merged into one sequence classifier, whose scores are compared with the run's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prefine.errors import ModelError
from prefine.export.exporter import Progress, Proven, Reload
from prefine.export.formats import ROUNDING_LIMITS, Artefact, ExportOptions, Format
from prefine.export.fresh_process import reload_in_fresh_process
from prefine.export.reload import ProbeInput, ReloadSpec
from prefine.export.reward_model import (
    ProbeScores,
    probe_scores,
    require_known_dtype,
    scores_by_transformers,
    write_merged_reward,
)
from prefine.export.source import ExportSource
from prefine.formatting import figure
from prefine.models.loading.card import plain
from prefine.runs.atomic import JSON

_HEADER = ("export", "answers", "scores differ by at most", "limit", "load")


class RewardExport:
    """See prefine.export.exporter.Exporter.

    Args:
        source: the reward model.
        reload: loads an artefact; in a fresh process, but in tests.
    """

    def __init__(self, source: ExportSource, reload: Reload = reload_in_fresh_process) -> None:
        self._source = source
        self._reload = reload

    def require(self, form: Format, options: ExportOptions) -> None:
        """See Exporter."""
        if form.name != "merged":
            raise ModelError(
                f"{self._source.name} is a reward model, and --to is {form.name}",
                "Write --to merged: one model that AutoModelForSequenceClassification loads. A run's model/ folder is "
                "an adapter that peft loads.",
            )
        dtype = _asked_dtype(options)
        require_known_dtype(dtype)
        form.require(self._source, replace(options, dtype=dtype))

    def make(self, form: Format, folder: Path, options: ExportOptions, progress: Progress) -> list[Proven]:
        """See Exporter."""
        dtype = _asked_dtype(options)
        progress("writing merged", 0, 1)
        probes = write_merged_reward(self._source.name, folder, options.final, dtype)
        progress("writing merged", 1, 1)
        return [self._proven(each, folder, probes, progress) for each in self.artefacts(form, folder, options)]

    def artefacts(self, form: Format, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Exporter."""
        dtype = _asked_dtype(options)
        require_known_dtype(dtype)
        return [Artefact(f"{form.name} {dtype}", ".", "classifier", ROUNDING_LIMITS[dtype])]

    def again(self, folder: Path, artefacts: Sequence[Artefact], progress: Progress) -> list[Proven]:
        """See Exporter."""
        probes = probe_scores(self._source.name)
        return [self._proven(each, folder, probes, progress) for each in artefacts]

    def table(self, proofs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
        """See Exporter."""
        rows = [
            (
                str(each["artefact"]),
                f"{each['answers']}",
                f"{figure(each['scores_apart'])} standard deviations",
                figure(each["limit"]),
                f"{each['load_s']:.1f} s",
            )
            for each in proofs
        ]
        return [_HEADER, *rows]

    def card_lines(self, proven: Sequence[Proven]) -> Iterator[str]:
        """See Exporter."""
        yield "transformers loaded the folder in a fresh process, and its scores were compared with the run's."
        header, *rows = self.table([each.proof for each in proven])
        yield from ("", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}")
        yield from (f"| {' | '.join(map(plain, row))} |" for row in rows)

    def _proven(self, artefact: Artefact, folder: Path, probes: ProbeScores, progress: Progress) -> Proven:
        what, answers = f"comparing {artefact.name}", len(probes.scores)
        asked = [
            (tree.prompt, turns, answer)
            for tree, turns in zip(probes.trees, probes.turns, strict=True)
            for answer in tree.answers
        ]
        inputs = [
            ProbeInput([{"role": turn.role, "content": turn.content} for turn in turns], [*prompt, *answer], 1)
            for prompt, turns, answer in asked
        ]
        progress(what, 0, answers)
        spec = ReloadSpec(artefact.loader, str(folder / artefact.path), {}, inputs, [], 1)
        found = self._reload(spec, lambda done: progress(what, done, answers))
        one_by_one = probes.apart(torch.cat([each[0] for each in found.logits]))
        padded = probes.apart(scores_by_transformers(folder / artefact.path, probes.trees))
        apart = float(torch.tensor([one_by_one, padded]).max())  # NaN if one of them is
        limit = probes.tolerance(artefact.name.split()[-1])
        failures = []
        equal = sum(ids == list(prompt) for ids, (prompt, _, _) in zip(found.rendered, asked, strict=True))
        if equal < answers:
            failures.append(f"{answers - equal} of {answers} prompts have other token ids: its template is another")
        if not apart <= limit:
            failures.append(f"scores are {apart:.2g} standard deviations from the run's, over {limit:g}")
        proof: dict[str, JSON] = {
            "artefact": artefact.name,
            "loader": ", ".join(f"{name} {version}" for name, version in found.libraries.items()),
            "answers": answers,
            "prompts_equal": equal,
            "scores_apart": apart,
            "limit": limit,
            "load_s": found.load_s,
        }
        return Proven(artefact, proof, failures)


def _asked_dtype(options: ExportOptions) -> str:
    """float32 unless asked otherwise: rounding changes scores, and rewards are differences of scores."""
    return options.dtype or "float32"
