"""The page of a comparison: what is on it, what can never be, and that it is read and searched in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefine.comparisons.result import AnswerOf, AnswerRow, Comparison, Side, Verdict
from prefine.errors import CheckpointError
from prefine.report.comparison.page import write_comparison
from prefine.report.comparison.reading import read_answers
from tests.report.comparison.made_up import answer_rows, comparison, write_evaluation, write_rows
from tests.report.test_page import HOSTILE, Page

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def html_of(folder: Path) -> str:
    return write_comparison(folder).read_text(encoding="utf-8")


def assert_harmless(html: str) -> None:
    """One script, the page's own, which the policy names by its hash; nothing that a browser would fetch."""
    (script,) = SCRIPT.findall(html)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = Page(SCRIPT.sub("", html))
    assert not {"script", "iframe", "object", "embed", "link", "img", "form", "base"} & set(page.tags)
    policies = [value for tag, name, value in page.attributes if name == "content" and value.startswith("default-src")]
    assert policies == [
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    ]
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in {"src", "srcset", "action", "background", "xlink:href"}, (tag, name)
        assert name != "href" or value.startswith("#")


def text_of(html: str) -> str:
    return Page(SCRIPT.sub("", html)).text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every part."""
    return write_comparison(write_evaluation(tmp_path_factory.mktemp("whole")))


def without_answers(folder: Path) -> Path:
    """The same folder without answers.jsonl, whose charts take time."""
    (folder / "answers.jsonl").unlink(missing_ok=True)
    return folder


def test_the_verdict_comes_first_in_words_and_with_a_symbol(whole: Path) -> None:
    html = whole.read_text(encoding="utf-8")
    assert_harmless(html)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", SCRIPT.sub("", html))
    text = text_of(html)
    parts = (
        "▲ Better",
        "have a higher reward: +0.58",
        "✗ Don’t ship",
        "What got worse",
        "Arithmetic of the regression",
    )
    places = [text.index(part) for part in (*parts, "Win rate qwen", "Side by side The same", "How to reproduce this")]
    assert places == sorted(places)
    assert "1 of 2 rules of the gate failed" in text
    assert "prefine evaluate runs/dpo --against runs/sft --prompts 'held out.jsonl'" in text
    assert "bleu : 32 of 40 prompts have no reference answer." in text
    assert "judge people : The file of votes has none" in text
    assert "At equal length: by the length difference alone" in text
    assert "the difficulty of each instruction, the paper's third term, is left out." in text
    assert "training.learning_rate 5e-05 0.0002" in text


@pytest.mark.parametrize(
    ("decision", "shown"), [("worse", "▼ Worse"), ("no difference shown", "= No difference shown")]
)
def test_other_verdicts(tmp_path: Path, decision: Any, shown: str) -> None:
    verdict = Verdict(decision=decision, decided_by="reward", sentence="It is so.", more_prompts=1180)
    text = text_of(html_of(without_answers(write_evaluation(tmp_path / "eval", verdict=verdict, gate=[]))))
    assert f"{shown} It is so." in text and "About 1,180 more prompts would settle it." in text
    assert "Ship" not in text and "Nothing is shown to be worse." in text


def test_the_same_files_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    assert write_comparison(write_evaluation(tmp_path / "eval")).read_bytes() == whole.read_bytes()


def test_what_is_missing_leaves_no_empty_section(tmp_path: Path) -> None:
    """Only what a comparison must have, of two endpoints, without a file of answers."""
    verdict = Verdict(decision="no difference shown", decided_by="nothing", sentence="Nothing was computed.")
    side = Side(name="http://127.0.0.1:8000/v1", kind="endpoint")
    least = Comparison(
        prefine="0.1.0", made_at="?", candidate=side, baseline=side, prompts={}, sampling={}, verdict=verdict
    )
    (tmp_path / "report.json").write_text(least.model_dump_json(), encoding="utf-8")
    html = html_of(tmp_path)
    page = Page(html)
    assert "script" not in page.tags
    assert [value for _, name, value in page.attributes if name == "id"] == ["data", "reproduce"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    said = " ".join(HOSTILE[:6]) + " \u202egnitpecsus\x1b[2J</script>"
    answer = AnswerOf(text=said, tokens=3, ended=False, degenerate=said, reward=1.0)
    row = AnswerRow(
        id=said,
        category=said,
        prompt=[{"role": said, "content": said}, {"role": "user", "content": {"no": "text"}}],
        reference=said,
        candidate=answer,
        baseline=answer,
        verdicts={said: "tie"},
    )
    found = json.loads(comparison(answer_rows()).model_dump_json())

    def planted(value: Any) -> Any:
        """The same with all free text replaced."""
        if isinstance(value, dict):
            kept = {"finding", "better", "decision", "format", "prefine", "unit"}
            return {key: item if key in kept else planted(item) for key, item in value.items()}
        return (
            [planted(item) for item in value] if isinstance(value, list) else said if isinstance(value, str) else value
        )

    (tmp_path / "report.json").write_text(json.dumps(planted(found)), encoding="utf-8")
    write_rows(tmp_path, [row])
    html = html_of(tmp_path)
    assert_harmless(html)
    for harmless in HOSTILE[:6]:
        assert harmless in text_of(html)


def test_items_that_were_lost_are_shown_side_by_side(tmp_path: Path) -> None:
    """With both answers, not with the answers to a prompt of the user's that has the same id."""
    folder = write_evaluation(tmp_path / "e")
    sides = {
        role: AnswerOf(text=text, tokens=1, ended=True, scores={"passed": float(passed)})
        for role, text, passed in (("candidate", "<b>forty-one</b>", False), ("baseline", "forty-two", True))
    }
    item = AnswerRow(
        id="arithmetic-1", category="arithmetic", prompt=[{"role": "user", "content": "What is 6 × 7?"}], **sides
    )
    (folder / "regression.jsonl").write_text(item.model_dump_json() + "\n", encoding="utf-8")
    html = html_of(without_answers(folder))
    assert "<b>forty-one" not in html
    text = text_of(html)
    lost = text[text.index("passed only with the baseline: arithmetic-1, arithmetic-2") :]
    assert lost.index("What is 6 × 7?") < lost.index("forty-two") < lost.index("forty-one")
    assert "passed only with the baseline: instruction-1" in text


def test_a_line_that_is_being_written_is_ignored(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval")
    with (folder / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "half')
    assert read_answers(folder) == answer_rows()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no comparison"):
        write_comparison(tmp_path)
    folder = write_evaluation(tmp_path / "eval")
    (folder / "answers.jsonl").write_text('{"id": 3}\n', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"answers\.jsonl, line 1 is not valid: id"):
        write_comparison(folder)
    (folder / "report.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"report\.json is not valid: prefine: Field required"):
        write_comparison(folder)
    without_answers(write_evaluation(folder))
    (folder / "report.html").write_text("a page of the user's", encoding="utf-8")
    with pytest.raises(CheckpointError, match="was not written by prefine"):
        write_comparison(folder)


def test_curves_of_runs_with_the_guards_events(
    tmp_path: Path, dpo_run: Path, sft_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"kind": "guard", "step": 40, "at_step": 40, "back_to_step": 30, "action": "roll_back", "words": "KL 0.3"}
    with (dpo_run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
    (dpo_run.parent / "runs").mkdir()
    for run in (dpo_run, sft_run):
        run.rename(run.parent / "runs" / run.name)
    monkeypatch.chdir(dpo_run.parent)
    folder = without_answers(write_evaluation(tmp_path / "eval"))
    text = text_of(html_of(folder))
    assert "Loss, dpo" in text and "Loss, sft" in text  # of two objectives: not in one chart
    assert "candidate, dpo: 0.693 → 0.541" in text and "Dotted: a guard acted." in text
    assert "candidate, dpo, 40 KL 0.3 rolled the run back to step 30" in text
    (Path("runs") / "sft").rename("runs/moved")
    assert "No training curves of the baseline: no run is found at runs/sft." in text_of(html_of(folder))
    again = comparison(answer_rows()).candidate.model_copy(update={"facts": {"started": "2026-01-01T00:00:00+00:00"}})
    manifest = Path("runs/dpo/manifest.json")
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("started_at", "started"), encoding="utf-8")
    text = text_of(html_of(without_answers(write_evaluation(folder, candidate=again))))
    assert "runs/dpo now holds another run than the one that was compared." in text


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, whole: Path) -> Iterator[Open]:
    """Opens the page of a made-up comparison; no error may be left on the browser's console."""
    contexts, problems = [], []

    def open_page(width: int, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text))
        page.goto(whole.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def test_answers_are_searched_and_filtered(opened: Open) -> None:
    page = opened(1280)
    rows = page.locator("#all-answers article:visible")
    assert page.locator("#shown").inner_text() == "40 in all" and rows.count() == 0
    page.fill("#words", "LAMP 23")
    assert rows.count() == 1 and page.locator("#shown").inner_text() == "1 of 40"
    page.fill("#words", "")
    page.select_option("#category", "billing")
    assert rows.count() == 8
    page.select_option("#outcome", "faulty")
    assert page.locator("#shown").inner_text() == "1 of 40"  # case 22, cut at the limit
    page.select_option("#category", "")
    assert rows.count() == 4  # 3, 8, 14 and 22
    page.select_option("#outcome", "")
    assert page.locator("#shown").inner_text() == "40 in all" and rows.count() == 0


def test_it_reads_without_scripts_and_fits_a_phone(opened: Open) -> None:
    page = opened(390, java_script_enabled=False)
    assert page.locator("h1").inner_text().startswith("▲ Better")
    assert not page.locator("#filter").is_visible()
    page.locator("#all-answers summary").first.click()
    assert page.locator("#all-answers article:visible").count() == 8
    wide = opened(390, color_scheme="dark")
    assert wide.evaluate("document.documentElement.scrollWidth") == 390
