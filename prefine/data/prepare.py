"""From a recipe's data section to two token stores, train and held-out, that share no prompt.

Done once for a run. A resumed run opens the same stores, and is refused if the data, the tokenizer or the template has
changed since. Stores that were lost, damaged or changed are made again from the same sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefine.data.reading.content import content_hash
from prefine.data.reading.quarantine import Quarantine, refusal_of
from prefine.data.reading.source_names import SAMPLE, listed_sources, source_names
from prefine.data.reading.sources import locate
from prefine.data.records.column_names import ColumnNames
from prefine.data.records.selection import Place, group_of, is_heldout, sample_of
from prefine.data.records.stream import RecordStream, read_records
from prefine.data.tokens.fitting import fit
from prefine.data.tokens.store import FitCounts, StoreWriter, TokenStore
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import CheckpointError, DataError, TemplateError
from prefine.json_reading import JsonError, read_json_object
from prefine.recipe.sections import DataSection, Sources
from prefine.records import Demonstration, Prompt
from prefine.runs.atomic import sha256_of_file, sweep_temporaries, write_json

R = TypeVar("R", bound=Prompt | Demonstration)

# Increase it when the same file would give other tokens.
PREPARATION_VERSION = 3
_SUMMARY = "prepared.json"
_STORES = ("train", "heldout")


@dataclass(frozen=True)
class Prepared:
    """The run's data.

    Attributes:
        train, heldout: token stores; heldout may be empty.
        digests: hash of the token ids of each, by name.
        counts: of rows, by store, for the manifest.
        key: hash of everything that decides the stores' contents.
        made_again: why existing stores had to be made again; None if they had not.
    """

    train: TokenStore
    heldout: TokenStore
    digests: dict[str, str]
    counts: dict[str, dict[str, Any]]
    key: str = ""
    made_again: str | None = None


def require_sources(section: DataSection) -> None:
    """Check every source of a recipe before a run's folder is created or a model loaded.

    Raises:
        DataError: a source does not exist or has an unknown format; data.columns names a column that no format has.
    """
    ColumnNames(section.columns)
    for name in (*source_names(section.train), *source_names(section.heldout or [])):
        locate(name)


class Preparation(Generic[R]):
    """Turns one recipe's records into stores in `folder`.

    Args:
        folder: of the stores; created if missing.
        section: the recipe's data section.
        kind: record type of the stage.
        template: turns records into token trees; rows that it refuses are quarantined.
        seed: of the held-out split and of the sample for section.limit.
        quarantine: receives invalid rows, and those that the template refuses.
        usable: whether the stage can learn from a valid record (DPO cannot from a tie); others are counted and dropped.
        progress: called with the number of records read so far.
        answer_tokens: kept free within the length limit for answers that will be generated.
    """

    def __init__(
        self,
        folder: Path,
        section: DataSection,
        kind: type[R],
        template: ChatTemplate,
        seed: int,
        quarantine: Quarantine,
        usable: Callable[[R], bool] = lambda record: True,
        progress: Callable[[int], None] = lambda done: None,
        *,
        answer_tokens: int = 0,
    ) -> None:
        self._room = section.max_length_tokens - answer_tokens
        self._folder = folder
        self._section = section
        self._kind: type[R] = kind
        self._template = template
        self._usable: Callable[[R], bool] = usable
        self._seed = seed
        self._quarantine = quarantine
        self._progress = progress

    def stores(self, began_with: Mapping[str, Any] | None = None) -> Prepared:
        """Open the stores; make them if they do not exist, or again if they are damaged.

        Args:
            began_with: `key` and `digests` of a resumed run's stores.

        Raises:
            DataError: a source cannot be read, too many records do not fit the length, or nothing is left to train on.
            CheckpointError: the stores are of other data, another tokenizer or other settings.
        """
        key, files_read = self._key()
        self._require_key(key, began_with)
        summary, flaw = _read_summary(self._folder)
        if summary is not None:
            self._require_key(key, summary)
        elif flaw is None and began_with is not None:
            flaw = "its files were deleted"
        if summary is None or flaw is not None:
            expected = began_with or summary
            self._folder.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(self._folder)
            summary = {"key": key, **self._build()}
            for name, read in files_read.items():
                summary["counts"][name]["files"] = read
            if expected is not None and expected["digests"] != summary["digests"]:
                raise CheckpointError(
                    f"{self._folder}: the rows prepared again differ from those that this run started with ({flaw})",
                    "Restore the data sources, or start a run under another name.",
                )
            write_json(self._folder / _SUMMARY, summary)
        train, heldout = (TokenStore(self._folder / f"{name}.arrow") for name in _STORES)
        return Prepared(train, heldout, summary["digests"], summary["counts"], key, flaw)

    def require_same(self, began_with: Mapping[str, Any]) -> None:
        """Raise CheckpointError if the sources or settings differ from those of the run; DataError if a source is
        gone.
        """
        self._require_key(self._key()[0], began_with)

    def _require_key(self, key: str, began_with: Mapping[str, Any] | None) -> None:
        if began_with is not None and began_with["key"] != key:
            raise CheckpointError(
                f"{self._folder}: the data, the tokenizer or the data settings differ from those that this run "
                "started with",
                "Restore them, or start a run under another name.",
            )

    def _key(self) -> tuple[str, dict[str, list[dict[str, str]]]]:
        """Hash of everything that decides the stores' contents, and the files with their hashes."""
        read = {"train": self._file_hashes(self._section.train)}
        if self._section.heldout is not None:
            read["heldout"] = self._file_hashes(self._section.heldout)
        hashes = {name: [file["sha256"] for file in listed] for name, listed in read.items()}
        settings = self._section.model_dump(exclude={"train", "heldout", "max_dropped_fraction"})
        settings["max_length_tokens"] = self._room
        # Without these the key is that of earlier releases.
        for name, nothing in (("delimiter", None), ("encoding", None), ("columns", {}), ("pairs", "best_worst")):
            if settings[name] == nothing:
                del settings[name]
        decides = [PREPARATION_VERSION, self._kind.__name__, self._seed, self._template.fingerprint, settings, hashes]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(), read

    def _file_hashes(self, sources: Sources) -> list[dict[str, str]]:
        """A dataset that is not a local file is represented by its id. Samples keep their short name."""
        return [
            {
                "path": name if name.startswith(SAMPLE) else part.name,
                "sha256": content_hash(part),
            }
            for name in listed_sources(sources)
            for part in locate(source_names(name)[0])
        ]

    def _build(self) -> dict[str, Any]:
        heldout_groups: set[str] = set()
        counts: dict[str, dict[str, Any]] = {}
        digests: dict[str, str] = {}
        apart = self._section.heldout is not None
        if self._section.heldout is not None:
            stream = self._read(self._section.heldout, self._section.heldout_split)
            with StoreWriter(self._folder / "heldout.arrow") as writer:
                fitted = FitCounts()
                for record in stream:
                    heldout_groups.add(group_of(record))
                    self._add(stream, record, stream.place, writer, fitted)
            counts["heldout"] = {**stream.counts.as_dict(), **asdict(fitted)}
            digests["heldout"] = writer.digest.hexdigest()
        stream = self._read(self._section.train, self._section.split)
        fitted, held, leaks = FitCounts(), FitCounts(), 0
        with ExitStack() as writers:
            train = writers.enter_context(StoreWriter(self._folder / "train.arrow"))
            heldout = None if apart else writers.enter_context(StoreWriter(self._folder / "heldout.arrow"))
            for record, place in self._limited(stream):
                group = group_of(record)
                if group in heldout_groups:
                    leaks += 1
                elif heldout is not None and is_heldout(group, self._seed, self._section.heldout_fraction):
                    self._add(stream, record, place, heldout, held)
                else:
                    self._add(stream, record, place, train, fitted)
            self._check(fitted, stream)
        counts["train"] = {**stream.counts.as_dict(), **asdict(fitted), "leaks_removed": leaks}
        digests["train"] = train.digest.hexdigest()
        if heldout is not None:
            counts["heldout"] = {"split_off": True, **asdict(held)}
            digests["heldout"] = heldout.digest.hexdigest()
        hashes = {name: sha256_of_file(self._folder / f"{name}.arrow") for name in _STORES}
        return {"counts": counts, "digests": digests, "sha256": hashes}

    def _read(self, sources: Sources, split: str) -> RecordStream[R]:
        return read_records(
            source_names(sources),
            self._kind,
            quarantine=self._quarantine,
            split=split,
            deduplicate=self._section.deduplicate,
            text=self._section.text_form,
            rules=self._section.row_rules,
        )

    def _limited(self, stream: RecordStream[R]) -> Iterator[tuple[R, Place]]:
        records = self._counted(stream)
        limit = self._section.limit
        return records if limit is None else sample_of(records, self._kind, limit, self._seed)

    def _counted(self, stream: RecordStream[R]) -> Iterator[tuple[R, Place]]:
        for done, record in enumerate(stream):
            if done % 500 == 0:
                self._progress(done)
            yield record, stream.place

    def _add(self, stream: RecordStream[R], record: R, place: Place, writer: StoreWriter, counts: FitCounts) -> None:
        if not self._usable(record):
            counts.records += 1
            counts.dropped_unusable += 1
            return
        try:
            tree = fit(self._template, record, self._room, counts)
        except TemplateError as error:
            stream.set_aside(record, place, refusal_of(error))
            return
        if tree is not None:
            writer.add(tree, record.model_dump_json())

    def _check(self, counts: FitCounts, stream: RecordStream[R]) -> None:
        limit = self._section.max_length_tokens
        if counts.dropped > self._section.max_dropped_fraction * counts.records:
            raise DataError(
                f"{counts.dropped} of {counts.records} records cannot be used ({counts.dropped_too_long} "
                f"do not fit into data.max_length_tokens {limit} even when cut, {counts.dropped_identical} have two "
                f"answers of the same tokens, {counts.dropped_unusable} cannot be used in this stage, such as ties)",
                "Raise data.max_length_tokens, or data.max_dropped_fraction to continue with the rest.",
                field="data.train",
            )
        if not counts.rows:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in stream.counts.reasons.most_common(3))
            raise DataError(
                "no record is left to train on after held-out prompts are split off"
                + (f"; others were refused: {reasons}" if reasons else ""),
                "Give more data, or set data.heldout_fraction to 0.",
                field="data.train",
            )


def open_stores(folder: Path) -> tuple[TokenStore, TokenStore]:
    """The train and held-out stores in a run's data folder.

    Raises:
        DataError: they are missing, or differ from what was prepared.
    """
    summary, flaw = _read_summary(folder)
    if summary is None or flaw is not None:
        raise DataError(
            f"{folder}: {flaw or 'holds no prepared data'}", "Restore the folder from a copy, or name the data."
        )
    train, heldout = (TokenStore(folder / f"{name}.arrow") for name in _STORES)
    return train, heldout


def _read_summary(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The content of prepared.json, and a fault in it or in the stores; both empty if all are missing."""
    path = folder / _SUMMARY
    if not path.exists():
        stores = any((folder / f"{name}.arrow").exists() for name in _STORES)
        return None, f"{_SUMMARY} is missing" if stores else None
    try:
        summary = read_json_object(path)
    except (OSError, JsonError):
        return None, f"{_SUMMARY} is damaged"
    parts = {name: summary.get(name) for name in ("counts", "digests", "sha256")}
    if not isinstance(summary.get("key"), str) or not all(
        isinstance(part, dict) and set(_STORES) <= part.keys() for part in parts.values()
    ):
        return None, f"{_SUMMARY} is damaged"
    for name in _STORES:
        store = folder / f"{name}.arrow"
        if not store.is_file():
            return summary, f"{store.name} is missing"
        if sha256_of_file(store) != summary["sha256"][name]:
            return summary, f"{store.name} was changed or damaged"
    return summary, None
