"""python -m benchmarks.audit FILE: time and memory of an audit of 100,000 pairs, and precision and recall.

Faults of known kinds are planted. The pairs are recombined from the sentences of FILE (pairs of human preferences):
they are as long and as varied as real ones, and repeat each other only where a fault was planted. `--rows` sets their
number; `--peer` measures rensa and datasketch on the same texts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefine.data.audit.drops import Why
from prefine.data.audit.entries import entry_of
from prefine.data.audit.personal import personal_matches
from prefine.data.audit.run import Audit, AuditSettings, audit_sources
from prefine.data.audit.similar import shingles
from prefine.data.reading.quarantine import Quarantine
from prefine.data.records.stream import read_records
from prefine.records import Preference

_PLANTED_OF_A_KIND = 500
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
Row = dict[str, str]


class Pool:
    """Sentences of real pairs, by what they are said as."""

    def __init__(self, source: str, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311
        sides: tuple[set[str], set[str], set[str]] = (set(), set(), set())
        with Quarantine() as quarantine:
            for record in read_records(source, Preference, quarantine=quarantine):
                asked = " ".join(turn.content for turn in record.prompt)
                for side, text in zip(sides, (asked, record.chosen, record.rejected), strict=True):
                    side.update(each for each in _SENTENCES.split(text) if len(each.split()) > 2)
        self.asked, self.better, self.worse = (sorted(side) for side in sides)

    def row(self) -> Row:
        """A new pair."""
        return {
            "prompt": self._text(self.asked, 3, 6),
            "chosen": self._text(self.better, 3, 7),
            "rejected": self._text(self.worse, 3, 7),
        }

    def _text(self, sentences: Sequence[str], fewest: int, most: int) -> str:
        return " ".join(self.draw.sample(sentences, self.draw.randint(fewest, most)))

    def edited(self, text: str, share: float = 0.0) -> str:
        """The text with one word in another form, or that share of its words."""
        words = text.split(" ")
        for place in self.draw.sample(range(len(words)), max(1, round(share * len(words)))):
            words[place] = "somewhat" if words[place] != "somewhat" else "rather"
        return " ".join(words)


def planted_faults(pool: Pool, clean: Sequence[Row], heldout: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows with a fault, by kind; each copies another clean or held-out row."""
    rows = iter(pool.draw.sample(clean, 5 * _PLANTED_OF_A_KIND))

    def some(change: Callable[[Row], Row]) -> list[Row]:
        return [change(next(rows)) for _ in range(_PLANTED_OF_A_KIND)]

    def leaked(edit: bool) -> list[Row]:
        prompts = pool.draw.sample(heldout, _PLANTED_OF_A_KIND)
        return [pool.row() | {"prompt": pool.edited(row["prompt"]) if edit else row["prompt"]} for row in prompts]

    return {
        "exact duplicates": some(dict),
        "near duplicates": some(lambda row: {name: pool.edited(text, 0.02) for name, text in row.items()}),
        "contradictions": some(lambda row: row | {"chosen": row["rejected"], "rejected": row["chosen"]}),
        "near contradictions": some(
            lambda row: row | {"chosen": pool.edited(row["rejected"]), "rejected": pool.edited(row["chosen"])}
        ),
        "equal answers": some(lambda row: row | {"prompt": pool.row()["prompt"], "rejected": row["chosen"]}),
        "leaks": leaked(False),
        "near leaks": leaked(True),
    }


def write_rows(source: str, rows: int, folder: Path) -> None:
    """Write train.jsonl, heldout.jsonl and planted.json, which lists the lines of each kind of fault."""
    pool = Pool(source, seed=7)
    heldout = [pool.row() for _ in range(2_000)]
    clean = [pool.row() for _ in range(rows - 7 * _PLANTED_OF_A_KIND)]
    planted = planted_faults(pool, clean, heldout)
    lines: list[tuple[str, Row]] = [("", row) for row in clean]
    lines += [(kind, row) for kind, faults in planted.items() for row in faults]
    places: dict[str, list[int]] = {kind: [] for kind in planted}
    with (folder / "train.jsonl").open("w") as file:
        for number, (kind, row) in enumerate(lines, start=1):
            file.write(json.dumps(row) + "\n")
            if kind:
                places[kind].append(number)
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heldout))
    (folder / "planted.json").write_text(json.dumps(places))


def found_lines(audit: Audit, places: Sequence[tuple[str, int]]) -> dict[str, set[int]]:
    """Lines that the audit found, by the kind of fault."""
    whys = {
        Why.DUPLICATE: "exact duplicates",
        Why.NEAR_DUPLICATE: "near duplicates",
        Why.CONTRADICTION: "contradictions",
        Why.EQUAL_ANSWERS: "equal answers",
        Why.LEAK: "leaks",
        Why.NEAR_LEAK: "near leaks",
    }
    found: dict[str, set[int]] = {kind: set() for kind in [*whys.values(), "near contradictions"]}
    for (_, line), row in audit.drops.rows().items():
        found[whys[row.why]].add(line)
    if audit.checks.near is not None:
        found["near contradictions"] = {places[number][1] for number in audit.checks.near.opposed}
    return found


def scored(found: set[int], planted: set[int]) -> dict[str, float]:
    """Precision and recall."""
    right = len(found & planted)
    return {
        "planted": len(planted),
        "found": len(found),
        "precision": right / len(found) if found else 0.0,
        "recall": right / len(planted) if planted else 0.0,
    }


def luhn_completed(digits: str) -> str:
    """Digits with their check digit."""
    total = sum(d if place % 2 else d * 2 - 9 * (d > 4) for place, d in enumerate(map(int, reversed(digits))))
    return digits + str(-total % 10)


def personal_data(draw: random.Random) -> Iterator[tuple[str, str, bool]]:
    """Kinds of personal data with a text, and whether it is really one: others only look like it."""
    for _ in range(_PLANTED_OF_A_KIND):
        card = luhn_completed("4" + "".join(draw.choices("0123456789", k=14)))
        spaced = f"{card[:4]} {card[4:8]} {card[8:12]} {card[12:]}"
        for beside in ("{}", "{} 12/25", "{} 123", "no.{}", "2024 {}"):
            yield "card", beside.format(draw.choice((card, spaced, spaced.replace(" ", "-")))), True
        for between in ("\u00a0", "\u202f", "–", ".", "  ", "\n"):
            groups = [card[:8], card[8:]] if between == "\n" else spaced.split(" ")
            yield "card", between.join(groups), True
        for beside in ("_{}_", "card{}", "a,{},12/25"):
            yield "card", beside.format(draw.choice((card, spaced))), True
        yield "card", f"0.{card}", False
        yield "card", f"{card[:4]}.{card[4:]}", False  # a decimal
        yield "card", card[:-1] + str((int(card[-1]) + 1) % 10), False
        yield "card", "".join(draw.choices("0123456789", k=20)), False
        account = "".join(draw.choices("0123456789", k=18))
        check = 98 - int(account + "131400") % 97
        yield "iban", f"DE{check:02d}{account}", True
        yield (
            "iban",
            f"de{check:02d} {account[:4]} {account[4:8]} {account[8:12]} {account[12:16]} {account[16:]}",
            True,
        )
        for between in ("\u00a0", "."):
            groups = [f"DE{check:02d}", *(account[place : place + 4] for place in range(0, 18, 4))]
            yield "iban", between.join(groups), True
        yield "iban", f"DE{(check + 1) % 97 + 2:02d}{account}" if (check + 1) % 97 + 2 != check else "DE00", False
        name = "".join(draw.choices("abcdefghij", k=6))
        yield "email", f"{name}@{name[::-1]}.org", True
        yield "email", draw.choice((f"{name}@example.com", f"@{name}", f"{name}@home")), False
        digits = "".join(draw.choices("346789", k=7))
        yield "phone", f"+44 20 7{digits[:3]} {digits[3:]}", True
        yield (
            "phone",
            draw.choice((f"2024-0{digits[0]}-1{digits[1]}", f"{digits}", f"order {digits}-{digits[:3]}")),
            False,
        )
        yield (
            "ip",
            f"{draw.randint(60, 90)}.{draw.randint(20, 250)}.{draw.randint(0, 250)}.{draw.randint(1, 250)}",
            True,
        )
        yield "ip", draw.choice((f"192.168.0.{digits[0]}", f"{digits[0]}.{digits[1]}.0.{digits[2]}", "8.8.8.8")), False
        yield "key", "ghp_" + "".join(draw.choices("ABCDEFGHabcdefgh0123", k=36)), True
        yield "key", "sk-" + name, False


def personal_scores() -> dict[str, dict[str, float]]:
    """Precision and recall for each kind of personal data."""
    draw = random.Random(3)  # noqa: S311
    cases = list(personal_data(draw))
    scores = {}
    for kind in dict.fromkeys(kind for kind, _, _ in cases):
        planted = {number for number, (each, _, real) in enumerate(cases) if each == kind and real}
        found = {
            number
            for number, (each, text, _) in enumerate(cases)
            if each == kind and any(match.kind == kind for match in personal_matches(f"Write to {text} today."))
        }
        scores[kind] = scored(found, planted)
    return scores


def noise_scores(folder: Path, rows: int = 10_000, flipped: float = 0.05) -> dict[str, float]:
    """Precision and recall of suspected labels: words decide nine of ten pairs, 5 % of the labels are flipped."""
    draw = random.Random(11)  # noqa: S311
    words = [f"w{''.join(draw.choices('abcdefghijklmnop', k=4))}" for _ in range(400)]
    path, planted = folder / "noise.jsonl", set()
    with path.open("w") as file:
        for line in range(1, rows + 1):
            better, worse = (draw.choices(words, k=25) for _ in range(2))
            if draw.random() < 0.9:
                better += draw.choices(("thorough", "because", "step", "careful"), k=2)
                worse += draw.choices(("sure", "whatever", "maybe", "lol"), k=2)
            if draw.random() < flipped:
                better, worse = worse, better
                planted.add(line)
            row = {"prompt": f"question {line}", "chosen": " ".join(better), "rejected": " ".join(worse)}
            file.write(json.dumps(row) + "\n")
    audit = audit_sources(AuditSettings([str(path)]), find_near=False)
    suspects = {line for _, line in audit.checks.cues.suspects()}
    return scored(suspects, planted) | {"at most": audit.checks.cues.noise_at_most or 0.0}


def measured(folder: Path) -> dict[str, Any]:
    """Seconds, memory, and precision and recall for each kind of planted fault."""
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    before = _peak_mib()
    begin, cpu = time.perf_counter(), time.process_time()
    settings = AuditSettings([str(train)], heldout=[str(heldout)], contradictions="drop", near=True)
    audit = audit_sources(settings)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    planted = {kind: set(lines) for kind, lines in json.loads((folder / "planted.json").read_text()).items()}
    originals = _originals(train, planted["contradictions"])
    places = audit.checks.judgements.places
    found = found_lines(audit, places)
    found["contradictions"] -= originals  # both sides of a contradiction are found
    return {
        "rows": audit.rows,
        "seconds": seconds,
        "processor_seconds": cpu,
        "peak_mib": _peak_mib(),
        "peak_before_mib": before,
        "faults": {kind: scored(found[kind], planted[kind]) for kind in planted},
        "personal": personal_scores(),
        "noise": noise_scores(folder),
    }


def _originals(train: Path, contradictions: set[int]) -> set[int]:
    """The lines that planted contradictions contradict."""
    rows = [json.loads(line) for line in train.open()]
    by_answers = {(row["chosen"], row["rejected"]): line for line, row in enumerate(rows, start=1)}
    swapped = [rows[line - 1] for line in contradictions]
    return {by_answers[row["rejected"], row["chosen"]] for row in swapped}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peers(train: Path, rows: int = 20_000) -> dict[str, dict[str, float]]:
    """Processor seconds of signatures and index for the same shingles: rensa, and datasketch if it is installed."""
    entries = []
    with Quarantine() as quarantine:
        for number, record in enumerate(read_records(str(train), Preference, quarantine=quarantine)):
            entries.append(shingles(entry_of(number, ("", 0), record, {}).text))
            if len(entries) == rows:
                break
    import rensa

    start, memory = time.process_time(), _peak_mib()
    index = rensa.RMinHashLSH(0.8, 128, 16)
    for place in range(0, rows, 1_000):
        index.insert_pairs(enumerate(rensa.RMinHash.from_token_sets(entries[place : place + 1_000], 128, 42), place))
    found = {"rensa": {"seconds": time.process_time() - start, "mib": _peak_mib() - memory}}
    try:
        import datasketch
    except ImportError:
        return found
    start, memory = time.process_time(), _peak_mib()
    other = datasketch.MinHashLSH(threshold=0.8, num_perm=128)
    for place in range(0, rows, 1_000):
        tokens = [[token.encode() for token in set(each)] for each in entries[place : place + 1_000]]
        for offset, sketch in enumerate(datasketch.MinHash.bulk(tokens, num_perm=128)):
            other.insert(place + offset, sketch)
    found["datasketch"] = {"seconds": time.process_time() - start, "mib": _peak_mib() - memory}
    return found


def main() -> None:
    """Write the rows in another process, whose memory does not count, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="pairs of human preferences")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--peer", action="store_true", help="compare rensa with datasketch")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        write_rows(options.source, options.rows, options.write)
        return
    with tempfile.TemporaryDirectory() as name:
        own = [sys.executable, "-m", "benchmarks.audit", options.source, "--rows", str(options.rows), "--write", name]
        subprocess.run(own, check=True)
        result = peers(Path(name) / "train.jsonl") if options.peer else measured(Path(name))
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
