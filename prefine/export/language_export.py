"""Language models: written by any format, and compared on the probes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefine.export.exporter import Progress, Proven, Reload
from prefine.export.formats import Artefact, ExportOptions, Format
from prefine.export.fresh_process import reload_in_fresh_process
from prefine.export.proof import GreedySample, Proof, compare, proof_rows
from prefine.export.reference import Reference, compute_reference
from prefine.export.reload import ReloadSpec
from prefine.export.source import ExportSource
from prefine.models.loading.card import plain

_SAMPLE_CHARACTERS = 300


class LanguageExport:
    """See prefine.export.exporter.Exporter.

    Args:
        source: the model.
        reload: loads an artefact; in a fresh process, but in tests.
    """

    def __init__(self, source: ExportSource, reload: Reload = reload_in_fresh_process) -> None:
        self._source = source
        self._reload = reload

    def require(self, form: Format, options: ExportOptions) -> None:
        """See Exporter."""
        form.require(self._source, options)

    def make(self, form: Format, folder: Path, options: ExportOptions, progress: Progress) -> list[Proven]:
        """See Exporter."""
        reference = self._reference(progress)  # before the adapter is merged
        template = self._source.loaded.template
        progress(f"writing {form.name}", 0, 1)
        artefacts = form.write(self._source, folder, options)
        progress(f"writing {form.name}", 1, 1)
        self._source.release()
        return [self._proven(each, folder, reference, template, progress) for each in artefacts]

    def artefacts(self, form: Format, folder: Path, options: ExportOptions) -> list[Artefact]:
        """See Exporter."""
        return form.artefacts(self._source, folder, options)

    def again(self, folder: Path, artefacts: Sequence[Artefact], progress: Progress) -> list[Proven]:
        """See Exporter."""
        reference = self._reference(progress)
        template = self._source.loaded.template
        self._source.release()
        return [self._proven(each, folder, reference, template, progress) for each in artefacts]

    def table(self, proofs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
        """See Exporter."""
        return proof_rows([Proof.from_json(each) for each in proofs])

    def card_lines(self, proven: Sequence[Proven]) -> Iterator[str]:
        """See Exporter."""
        proofs = [Proof.from_json(each.proof) for each in proven]
        yield (
            f"Each artefact was loaded in a fresh process by the libraries that are named, and compared with the run "
            f"at {proofs[0].positions} answer tokens of {proofs[0].prompts} prompts, {proofs[0].heldout} of them "
            "held-out rows of the run."
        )
        header, *rows = proof_rows(proofs)
        yield from ("", f"| {' | '.join(header)} | loaded by |", f"|{'---|' * (len(header) + 1)}")
        for row, proof in zip(rows, proofs, strict=True):
            yield f"| {' | '.join(map(plain, row))} | {plain(proof.loader)}, in {plain(proof.dtype)} |"
        yield ""
        for each in proven:
            limits = each.artefact.limits
            yield (
                f"Limits of {plain(each.artefact.name)}: top-1 agreement at least {limits.top1:.1%}; KL at most "
                f"{limits.kl_mean:g} nats a token (mean) and {limits.kl_p99:g} (99th percentile); perplexity within "
                f"{limits.perplexity:.2%}."
            )
        for number, sample in enumerate(proofs[0].samples, start=1):
            yield from ("", *_sample(number, sample))

    def _reference(self, progress: Progress) -> Reference:
        progress("loading the model", 0, 1)
        _ = self._source.loaded
        progress("loading the model", 1, 1)
        what = "computing the run's figures"
        return compute_reference(self._source, lambda done, total: progress(what, done, total))

    def _proven(
        self, artefact: Artefact, folder: Path, reference: Reference, template: Any, progress: Progress
    ) -> Proven:
        options = dict(artefact.options)
        if artefact.loader == "peft":
            options |= {"base": self._source.location.base, "revision": self._source.revision}
        if artefact.loader == "llama.cpp":
            longest = max(len(probe.prompt) + len(probe.answer) for probe in reference.probes)
            options["context"] = longest + reference.new_tokens
        path, total = folder / artefact.path, len(reference.probes)
        spec = ReloadSpec(
            loader=artefact.loader,
            path=str(path),
            options=options,
            probes=[probe.input() for probe in reference.probes],
            greedy=list(range(len(reference.greedy))),
            new_tokens=reference.new_tokens,
        )
        progress(f"comparing {artefact.name}", 0, total)
        found = self._reload(spec, lambda done: progress(f"comparing {artefact.name}", done, total))
        proof = compare(artefact.name, reference, found, template, _size(path, options))
        return Proven(artefact, proof.as_json(), proof.failures(artefact.limits))


def _size(path: Path, options: Mapping[str, Any]) -> int:
    """Bytes of an artefact's files; of a GGUF that transformers reads, of that file."""
    path = path / str(options.get("gguf_file") or "")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _sample(number: int, sample: GreedySample) -> Iterator[str]:
    yield f"Greedy answers to prompt {number}; {sample.same_tokens} of {sample.tokens} tokens are the same:"
    yield ""
    for name, text in {"prompt": sample.prompt, "run": sample.run, "export": sample.export}.items():
        yield f"- {name}: {plain(text[:_SAMPLE_CHARACTERS])}"
