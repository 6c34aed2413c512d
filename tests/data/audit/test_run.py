"""The audit as a whole: every layout, severities, what reading sets aside, languages, lengths, categories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefine.data.audit.facts import data_facts, facts_of
from prefine.data.audit.findings import Severity
from prefine.data.audit.result_file import audit_json
from prefine.data.audit.run import AuditSettings, audit_sources
from prefine.errors import DataError
from tests.data.audit.writing import audited, found, pair, text, written

GERMAN = "Das Paket liegt seit gestern in der Filiale und kann dort mit einem Ausweis abgeholt werden."
ENGLISH = "Your parcel has been at the branch since yesterday and can be collected there with an identity card."


@pytest.mark.parametrize("name", ["preferences", "votes", "prompts"])
def test_every_sample_can_be_audited(name: str) -> None:
    audit = audit_sources(AuditSettings([f"sample:support_desk/{name}"]))
    assert audit.kind == name and audit.records == audit.rows
    held = audit_json(audit)
    assert json.loads(json.dumps(held)) == held
    assert [found(audit, check).count for check in ("duplicates", "near_duplicates", "personal_data")] == [0, 0, 0]


@pytest.mark.skipif("PREFINE_DATA" not in os.environ, reason="PREFINE_DATA names no folder of real data")
def test_real_pairs_give_no_false_alarms() -> None:
    source = str(Path(os.environ["PREFINE_DATA"]) / "hh-harmless-base.jsonl.gz")
    audit = audit_sources(AuditSettings([source]))
    assert audit.records == 1_795
    assert [found(audit, check).count for check in ("duplicates", "contradictions", "near_duplicates")] == [0, 0, 0]
    assert found(audit, "quarantined").count == 5
    assert found(audit, "languages").severity is Severity.NONE
    assert 0.55 < found(audit, "shallow_cues").figures["accuracy"] < 0.67
    assert not [finding.title for finding in audit.findings if finding.severity is Severity.HIGH]


def test_equal_answers_are_apart_from_other_rows_that_cannot_be_used(tmp_path: Path) -> None:
    rows = [
        pair(1),
        pair(2) | {"rejected": pair(2)["chosen"]},
        '{"prompt":',
        pair(3) | {"chosen": "Yes!", "rejected": "yes"},
    ]
    audit = audited(tmp_path, rows)
    finding = found(audit, "equal_answers")
    assert (finding.count, finding.figures) == (2, {"equal": 1, "nearly_equal": 1})
    assert [each.places for each in finding.examples] == [[f"{tmp_path}/rows.jsonl:2"], [f"{tmp_path}/rows.jsonl:4"]]
    assert found(audit, "quarantined").count == 1


def test_answers_in_another_language_than_the_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": ENGLISH, "completion": f"{GERMAN if n < 3 else ENGLISH} {text(n, 4)}"} for n in range(30)]
    finding = found(audited(tmp_path, rows), "languages")
    assert (finding.count, finding.severity) == (3, Severity.MEDIUM)
    assert finding.figures["shares"] == {"en": 0.9, "de": 0.1}
    assert finding.examples[0].note == "en → de"


def test_lengths_are_estimated_or_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "abcd" * 10, "completion": "abcd" * 20}, {"prompt": "abcd" * 10, "completion": "x " * 2_000}]
    finding = found(audited(tmp_path, rows, context=500), "token_lengths")
    # Four characters a token, five tokens for each of two turns.
    assert (finding.figures["minimum"], finding.figures["maximum"]) == (40, 1020)
    assert (finding.count, finding.figures["estimated"]) == (1, True) and "estimated" in finding.says
    counted = found(audited(tmp_path, rows, context=500, count=lambda record: 7, model="m"), "token_lengths")
    assert (counted.figures["maximum"], counted.count) == (7, 0) and "tokenizer of m" in counted.says


def test_personal_data_is_counted_and_never_shown(tmp_path: Path) -> None:
    secret = "4111 1111 1111 1111"
    rows = [pair(1), pair(2) | {"prompt": f"my card {secret}"}, pair(2) | {"prompt": f"my card {secret}"}]
    audit = audited(tmp_path, rows)
    finding = found(audit, "personal_data")
    assert (finding.count, finding.severity) == (2, Severity.HIGH)
    assert secret not in json.dumps(audit_json(audit), ensure_ascii=False)
    assert "[card …1111]" in found(audit, "duplicates").examples[0].text


def _with_a_system_turn(system: str) -> dict[str, object]:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "abcd"}]
    return {"prompt": turns, "chosen": "yes", "rejected": "no"}


def test_system_turns_count_as_tokens_and_are_not_compared(tmp_path: Path) -> None:
    audit = audited(tmp_path, [_with_a_system_turn("abcd" * 100), _with_a_system_turn("wxyz" * 100)])
    # 100 + 1 + 1 tokens, and five for each of three turns.
    assert found(audit, "token_lengths").figures["maximum"] == 117
    assert (found(audit, "duplicates").count, found(audit, "near_duplicates").count) == (0, 1)
    tool = {"type": "function", "function": {"name": "look_up", "description": "d" * 4_000}}
    audit = audited(tmp_path, [pair(1), pair(2, tools=[tool])])
    assert found(audit, "token_lengths").figures["maximum"] > 1_000


IBAN = "DE89 3704 0044 0532 0130 00"
CALL = {"type": "function", "function": {"name": "pay", "arguments": json.dumps({"to": f"Jane\n{IBAN}"})}}


def test_a_number_does_not_go_on_in_another_turn(tmp_path: Path) -> None:
    rows = [{"prompt": "Say 4111 1111", "completion": "1111 1111 it is"}]
    assert found(audited(tmp_path, rows), "personal_data").count == 0


@pytest.mark.parametrize(
    "row",
    [
        _with_a_system_turn(f"Refunds go to {IBAN}."),
        pair(1, tools=[{"type": "function", "function": {"name": "pay", "description": f"to {IBAN}"}}]),
        {
            "messages": [
                {"role": "user", "content": "Pay"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "content": "done"},
                {"role": "assistant", "content": "Paid."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": "Pay"},
                {"role": "assistant", "content": "Paid.", "reasoning_content": f"It must go to {IBAN}."},
            ]
        },
    ],
    ids=["system turn", "tool", "tool call", "reasoning"],
)
def test_personal_data_is_found_wherever_it_is_said(tmp_path: Path, row: dict[str, object]) -> None:
    finding = found(audited(tmp_path, [row]), "personal_data")
    assert finding.figures["matches"]["iban"] == 1


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    name = written(tmp_path / "rows.jsonl", [pair(1)])
    with pytest.raises(DataError, match="is named twice"):
        audit_sources(AuditSettings([name, str(tmp_path / ".." / tmp_path.name / "rows.jsonl")]))


def test_facts(tmp_path: Path) -> None:
    rows = [pair(n) for n in range(250)] + [pair(0), {"prompt": "q", "completion": "a", "label": True}]
    facts = data_facts([written(tmp_path / "rows.jsonl", rows)])
    assert (facts.kind, facts.rows, facts.records, facts.duplicates) == ("preferences", 252, 251, 1)
    assert facts.rows_by_kind == {"preferences": 251, "votes": 1}
    assert facts.complete and facts.thumbs_up is None
    assert facts.shallow_accuracy is not None and 0.35 < facts.shallow_accuracy < 0.65
    some = data_facts([str(tmp_path / "rows.jsonl")], most_records=100)
    assert (some.records, some.complete, some.rows, some.rows_by_kind) == (100, False, 100, {"preferences": 100})
    whole = data_facts([str(tmp_path / "rows.jsonl")], most_records=251)
    assert (whole.records, whole.complete, whole.rows_by_kind) == (251, True, facts.rows_by_kind)


def test_contradictions_are_counted_as_the_finding_counts_them(tmp_path: Path) -> None:
    """Two records on one item, and a copy of one, which is no judgement of its own."""
    other = pair(1) | {"chosen": pair(1)["rejected"], "rejected": pair(1)["chosen"]}
    audit = audited(tmp_path, [pair(1), pair(2), other, other])
    finding = found(audit, "contradictions")
    assert (facts_of(audit).contradictions, finding.count, finding.of, finding.figures["items"]) == (2, 2, 3, 1)


def test_an_audit_imports_no_torch() -> None:
    code = (
        "import sys; from prefine.data.audit.facts import data_facts; data_facts(['sample:support_desk/votes']);"
        "import prefine.report.audit.page; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
