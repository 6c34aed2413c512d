"""The stage that evaluates: what it asks, what counts as its result, and what it does when something is missing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefine.comparisons.gate import gate_of
from prefine.comparisons.votes import votes_of, write_votes
from prefine.errors import Paused, PrefineError
from prefine.evaluation.comparing import carrying, judged, parts
from prefine.evaluation.comparing import evaluate as comparing_evaluate
from prefine.evaluation.comparing.folder import MARK
from prefine.generation.sampling import Sampling
from prefine.judges.cache import Reply, ReplyCache
from prefine.pipeline.digests import KnownDigests
from prefine.pipeline.evaluating import DECIDE_ANSWERS, digest_of_result, request_of, same_answers
from prefine.pipeline.records import PipelineRecords
from prefine.pipeline.running import PipelineResult, run_chosen
from prefine.pipeline.standing import StageStanding, chosen, standings
from prefine.pipeline.view import PipelineView
from prefine.recipe.pipeline import checked_pipeline
from prefine.recipe.pipeline_methods import EvaluateRecipe
from tests.evaluation.comparing.test_evaluate import ROWS, answers_in
from tests.evaluation.comparing.test_evaluate import models as models
from tests.judges.fake import Answer, Fake, refusal, running
from tests.pipeline.fake import Desk
from tests.training import tiny

FOLDER = Path("out/better")
VERDICT = '{"verdict": "A"}'


class Stage:
    """A pipeline of one stage, which compares T's two models.

    Attributes:
        said: what the latest run showed.
    """

    def __init__(self, models: tuple[Path, Path]) -> None:
        tiny.write_rows(Path("prompts.jsonl"), ROWS)
        self.fields: dict[str, Any] = {
            **{"method": "evaluate", "candidate": str(models[0]), "against": str(models[1])},
            **{"prompts": "prompts.jsonl", "regression": False, "max_new_tokens": 4, "slots": 2},
            **{"device": "cpu", "dtype": "float32"},
        }
        self.said = ""

    def judged_by(self, fake: Fake) -> None:
        """Name a judge, which is asked once, one request at a time."""
        self.fields |= {"judge": fake.url, "judge_model": "m", "attempts": 1, "at_once": 1}

    def run(self, *, force: bool = False) -> PipelineResult:
        made = checked_pipeline({"folder": "out", "stages": {"better": dict(self.fields)}}, [], "test")
        out = io.StringIO()
        try:
            return run_chosen(made, chosen(made, None, None, force), PipelineView(Console(file=out, width=500)))
        finally:
            self.said = out.getvalue()

    def standing(self) -> StageStanding:
        made = checked_pipeline({"folder": "out", "stages": {"better": dict(self.fields)}}, [], "test")
        (found,) = standings(made, PipelineRecords(made.folder), chosen(made, None, None, False))
        return found


@pytest.fixture
def stage(models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """See Stage. Pages are not drawn: that takes as long as all else."""
    monkeypatch.chdir(tmp_path)
    for module in (comparing_evaluate, judged):
        monkeypatch.setattr(module, "write_comparison", lambda folder: (folder / "report.html").write_text("page"))
    return Stage(models)


def test_all_fields_reach_the_request() -> None:
    recipe = EvaluateRecipe(
        candidate="a",
        against="b",
        prompts=["p"],
        limit=3,
        reward="r",
        judge="http://127.0.0.1:9/v1",
        judge_model="m",
        judge_max_tokens=7,
        price_in=1.0,
        price_out=2.0,
        timeout=5.0,
        attempts=2,
        at_once=4,
        reference="c",
        pairs=["q"],
        demonstrations=["d"],
        regression=False,
        lm_eval=["t"],
        gate={"verdict": "any"},
        samples=2,
        max_new_tokens=9,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        seed=4,
        slots=5,
        chat_template="x",
        device="cpu",
        dtype="float32",
    )
    asked = request_of(recipe, FOLDER)
    assert asked.judge is not None and asked.patience is not None
    settings = asked.judge.settings
    assert (settings.model, settings.max_tokens, settings.price_in, settings.price_out) == ("m", 7, 1.0, 2.0)
    assert vars(asked.patience) == {"timeout_s": 5.0, "attempts": 2, "at_once": 4}
    assert asked.sampling == Sampling(9, 0.5, 3, 0.9, seed=4)
    plain = {name: value for name, value in vars(asked).items() if name not in ("judge", "patience", "sampling")}
    assert plain == {
        **{"candidate": "a", "baseline": "b", "prompts": ("p",), "limit": 3, "reference": "c", "reward": "r"},
        **{"pairs": ("q",), "demonstrations": ("d",), "samples": 2, "slots": 5, "regression": False},
        **{
            "lm_eval": ("t",),
            "gate": gate_of({"verdict": "any"}),
            "out": FOLDER,
            "force": False,
            "device": "cpu",
            "dtype": "float32",
        },
        **{"chat_template": "x", "command": (), "renew": True},
    }


# What is computed from the answers, or how endpoints are asked.
NOT_OF_ANSWERS = {
    *("reward", "judge", "judge_model", "judge_template", "judge_max_tokens", "price_in", "price_out", "timeout"),
    *("attempts", "at_once", "reference", "pairs", "demonstrations", "regression", "lm_eval", "gate"),
}


def test_every_field_decides_the_answers_or_does_not() -> None:
    """The rule is that of question.json: what evaluate refuses to change in a folder."""
    assert {*DECIDE_ANSWERS} | NOT_OF_ANSWERS == EvaluateRecipe.model_fields.keys()
    assert not {*DECIDE_ANSWERS} & NOT_OF_ANSWERS


def test_inputs_that_ask_for_the_same_answers() -> None:
    before = {
        **{"method": "evaluate", "code": "1", "recipe candidate": "stage:dpo", "stage dpo": "a", "stage reward": "b"},
        **{"recipe prompts": ["p.jsonl"], "content p.jsonl": "c", "recipe gate": "g.yaml", "content g.yaml": "d"},
        "recipe reward": "stage:reward",
    }
    for name in ("recipe gate", "content g.yaml", "recipe reward", "stage reward"):
        assert same_answers(before, before | {name: "other"})
    for name in ("code", "recipe candidate", "stage dpo", "recipe prompts", "content p.jsonl", "recipe seed"):
        assert not same_answers(before, before | {name: "other"})


def test_a_template_of_the_judge_s_is_read(tmp_path: Path) -> None:
    template = tmp_path / "short.txt"
    template.write_text("$conversation $answer_a $answer_b Which?")
    recipe = EvaluateRecipe(candidate="a", judge="http://127.0.0.1:9/v1", judge_model="m", judge_template=str(template))
    judge = request_of(recipe, FOLDER).judge
    assert judge is not None and judge.name == "m (short)"


def test_verdicts_and_scores_do_not_change_the_answers(tmp_path: Path) -> None:
    side = {"text": "yes", "tokens": 1, "ended": True, "scores": {}}
    row: dict[str, Any] = {"id": "1", "prompt": [], "candidate": side, "baseline": dict(side), "verdicts": {}}
    file = tmp_path / "answers.jsonl"

    def digest(**changes: Any) -> str:
        file.write_text(json.dumps(row | changes) + "\n")
        return digest_of_result("evaluate", file, KnownDigests(tmp_path / "digests.json"))

    first = digest()
    assert digest(verdicts={"people": "candidate"}) == first
    assert digest(candidate=side | {"reward": 0.5, "scores": {"rouge_1": 1.0}}) == first
    assert digest(candidate=side | {"text": "no"}) != first
    assert digest(candidate={"text": "yes"}) != first  # not a row: its bytes count
    assert digest(prompt=[{"role": "user", "content": "?"}]) != first
    row["verdicts"] = {"people": "tie"}
    file.write_text("")
    assert digest_of_result("sft", file, KnownDigests(tmp_path / "digests.json")) != first


def test_a_judge_that_is_down_for_a_moment_leaves_the_stage_to_resume(stage: Stage) -> None:
    """Its first replies are kept, the same command asks for the others, and only then it is done."""
    down_from = [5]
    with running(lambda body, number: Answer(VERDICT) if number < down_from[0] else refusal(503, "busy")) as fake:
        stage.judged_by(fake)
        with pytest.raises(PrefineError) as caught:
            stage.run()
        pairs = sum(row.candidate.text != row.baseline.text for row in answers_in(FOLDER))  # equal ones are ties
        assert caught.value.lines == (
            f"stage better: the judge m could not be asked about {pairs - 2} of {len(ROWS)} prompts: "
            f"{fake.url} answered with status 503: busy. Check that the server runs and that the URL is right; "
            "the same command then continues. What is finished is kept: the same command goes on from here.",
        )
        assert "not computed: judge m:" in stage.said
        assert "not computed: reward: no reward model was named" in stage.said
        assert stage.standing().state == "to resume"
        first = len(fake.asked)
        down_from[0] = 1000
        assert stage.run().ran == ("better",)
        assert len(fake.asked) - first == 2 * pairs - 4
        stage.fields |= {"attempts": 3, "timeout": 9.0, "at_once": 2}  # how it is asked decides nothing
        assert stage.run().cached == ("better",)
        assert len(fake.asked) - first == 2 * pairs - 4


def test_an_endpoint_that_did_not_answer_one_prompt_leaves_the_stage_to_resume(stage: Stage) -> None:
    is_down = [True]

    def answer(body: dict[str, Any], number: int) -> Answer:
        asked = body["messages"][0]["content"]
        return refusal(503, "busy") if is_down[0] and asked == "question 3" else Answer("good answer")

    with running(answer) as fake:
        stage.fields |= {"candidate": f"{fake.url}#m", "attempts": 1, "at_once": 1}
        with pytest.raises(PrefineError, match=r"candidate: answers: 1 of 7 prompts have no answer: .* 503: busy"):
            stage.run()
        is_down[0] = False
        assert stage.run().ran == ("better",)
        assert len(fake.asked) == len(ROWS) + 1
    assert len(answers_in(FOLDER)) == len(ROWS)


def test_what_an_endpoint_refuses_for_good_does_not_stop_the_stage(stage: Stage) -> None:
    """Another call would be refused, too: it is printed, and the stage is done."""

    def answer(body: dict[str, Any], number: int) -> Answer:
        is_refused = body["messages"][0]["content"] == "question 3"
        return refusal(400, "no such thing") if is_refused else Answer("good answer")

    with running(answer) as fake:
        stage.fields |= {"candidate": f"{fake.url}#m", "at_once": 1}
        assert stage.run().ran == ("better",)
        assert "left out: 1: candidate:" in stage.said and "no such thing" in stage.said
        assert stage.run().cached == ("better",)


def vote(stage: Stage) -> None:
    """People prefer the candidate's answers, as `prefine judge --votes` adds it."""
    won = [each.model_copy(update={"verdicts": {"ann": "candidate"}}) for each in answers_in(FOLDER)]
    write_votes(Path("votes.jsonl"), votes_of(won, "ann", stage.fields["candidate"], stage.fields["against"]))
    judged.judge_comparison([FOLDER], votes=Path("votes.jsonl"))


def test_votes_that_are_added_later_do_not_make_the_stage_out_of_date(stage: Stage) -> None:
    stage.run()
    vote(stage)
    assert answers_in(FOLDER)[0].verdicts == {"people": "candidate"}
    assert stage.standing().state == "cached"
    assert stage.run().cached == ("better",)
    assert answers_in(FOLDER)[0].verdicts == {"people": "candidate"}
    (FOLDER / "answers.jsonl").write_text("")
    assert stage.standing().why == "out/better/answers.jsonl was changed; what was computed stays"


# --- What is computed anew -----------------------------------------------------------------------------------------


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of each block that a model answers."""
    counts: list[int] = []
    real = parts.write_block

    def counted(loaded: Any, prompts: Any, *rest: Any) -> Any:
        counts.append(len(prompts))
        return real(loaded, prompts, *rest)

    monkeypatch.setattr(parts, "write_block", counted)
    return counts


def test_a_changed_gate_and_another_judge_compute_only_what_is_new(stage: Stage, generated: list[int]) -> None:
    gate = Path("gate.yaml")
    gate.write_text("verdict: any\nregression_set: optional\nregressions_allowed: 30\n")
    stage.fields["gate"] = "gate.yaml"
    with running(lambda body, number: Answer(VERDICT)) as fake:
        stage.judged_by(fake)
        assert stage.run().failed_gates == ()
        blocks, asked = len(generated), len(fake.asked)
        gate.write_text("verdict: any\nregression_set: optional\nwin_rate: {judge: m, at_least: 0.9}\n")
        assert stage.standing().why == "the content of gate.yaml has changed; what was computed stays"
        assert stage.run().failed_gates == ("better",)
        assert (len(generated), len(fake.asked)) == (blocks, asked)
        stage.fields["judge_model"] = "n"
        stage.run()
        assert (len(generated), len(fake.asked)) == (blocks, 2 * asked)
        stage.fields["judge_model"] = "m"
        assert stage.run().ran == ("better",)
        (FOLDER / "report.json").unlink()
        assert stage.run().ran == ("better",)
        assert (len(generated), len(fake.asked)) == (blocks, 2 * asked)


def test_answers_that_are_made_again_keep_replies_and_verdicts_of_people(stage: Stage, generated: list[int]) -> None:
    """With other slots the answers are the same here, so nothing is asked twice, and the votes hold for them."""
    with running(lambda body, number: Answer(VERDICT)) as fake:
        stage.judged_by(fake)
        stage.run()
        asked, blocks = len(fake.asked), len(generated)
        vote(stage)
        for fields, force in (({"slots": 3}, False), ({}, True)):
            stage.fields |= fields
            assert stage.run(force=force).ran == ("better",)
            assert len(generated) > blocks and len(fake.asked) == asked
            assert answers_in(FOLDER)[0].verdicts == {"people": "candidate", "m": "tie"}
            blocks = len(generated)
    assert not list(Path("out/.pipeline/old").iterdir())


def test_an_attempt_that_failed_gives_its_replies_to_one_with_other_inputs(stage: Stage) -> None:
    down_from = [5]
    with running(lambda body, number: Answer(VERDICT) if number < down_from[0] else refusal(503, "busy")) as fake:
        stage.judged_by(fake)
        with pytest.raises(PrefineError, match="503"):
            stage.run()
        pairs = sum(row.candidate.text != row.baseline.text for row in answers_in(FOLDER))
        first, down_from[0] = len(fake.asked), 1000
        stage.fields["slots"] = 3
        stage.run()
        assert len(fake.asked) - first == 2 * pairs - 4


def test_a_compared_endpoint_is_asked_again_by_force_alone(stage: Stage) -> None:
    """As by the command's --force: a retrained model may be served under the same name."""
    with running(lambda body, number: Answer("good answer")) as fake:
        stage.fields["candidate"] = f"{fake.url}#m"
        stage.run()
        assert len(fake.asked) == len(ROWS)
        stage.fields["slots"] = 3
        assert stage.run().ran == ("better",)
        assert len(fake.asked) == len(ROWS)
        assert stage.run(force=True).ran == ("better",)
        assert len(fake.asked) == 2 * len(ROWS)


def test_a_forced_attempt_that_was_interrupted_does_not_mix_earlier_answers_in(stage: Stage) -> None:
    """The second call goes on without --force; the endpoint's earlier replies stay out of it."""
    texts, down_at = ["old"], [0]

    def answer(body: dict[str, Any], number: int) -> Answer:
        return refusal(503, "busy") if number == down_at[0] else Answer(f"{texts[0]} answer")

    with running(answer) as fake:
        stage.fields |= {"candidate": f"{fake.url}#m", "attempts": 1, "at_once": 1}
        stage.run()
        texts[0], down_at[0] = "new", len(ROWS) + 3
        with pytest.raises(PrefineError, match="503"):
            stage.run(force=True)
        assert stage.run().ran == ("better",)
    assert {row.candidate.text for row in answers_in(FOLDER)} == {"new answer"}


class Killed(BaseException):
    """In place of the end of the process."""


STEPS = [
    *((owner, name) for owner in (PipelineRecords,) for name in ("write", "write_earlier", "forget_earlier")),
    *((Path, "rename"), (ReplyCache, "add_from"), (ReplyCache, "_begin"), (carrying, "add_judgements")),
]


@pytest.mark.parametrize("first_ends", [True, False])
@pytest.mark.parametrize("step", range(11))
def test_a_kill_between_two_steps_loses_no_reply(desk: Desk, step: int, first_ends: bool) -> None:
    """Each attempt pays for one reply. After a kill anywhere, and a run with the earlier inputs or the new ones, the
    next evaluation has all of them.
    """
    desk.values["stages"] = {"better": {"method": "evaluate", "candidate": "a", "prompts": "questions.jsonl"}}
    paid: list[str] = []
    ends = [first_ends]

    def work(stage: Any) -> None:
        (stage.folder / ".lock").write_bytes(MARK)
        name = f"reply {len(paid)}"
        with ReplyCache(stage.folder / "judge.db") as cache:
            cache.put(name, "m", Reply("A", "stop"))
            paid.append(name)
        if not ends[0]:
            raise KeyboardInterrupt

    desk.work = work
    with suppress(Paused):
        desk.run("stages.better.samples=2")
    ends[0] = True
    reached = 0
    with pytest.MonkeyPatch.context() as patched:

        def killing(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                nonlocal reached
                if reached == step:
                    raise Killed
                reached += 1
                return real(*given, **named)

            return call

        for owner, name in STEPS:
            patched.setattr(owner, name, killing(getattr(owner, name)))
        with suppress(Killed):
            desk.run("stages.better.samples=3")
    desk.run(f"stages.better.samples={2 + step % 2}")
    desk.run("stages.better.samples=4")
    with ReplyCache(FOLDER / "judge.db") as cache:
        assert [name for name in paid if cache.get(name) is None] == []
