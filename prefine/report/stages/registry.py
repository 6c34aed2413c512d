"""Stage -> its report. Only this module knows the names of stages."""

from __future__ import annotations

from prefine.report.facts import RunFacts
from prefine.report.stages.orpo import OrpoReport
from prefine.report.stages.preference import PreferenceReport
from prefine.report.stages.reward import RewardReport
from prefine.report.stages.rl import RlReport
from prefine.report.stages.stage_report import StageReport
from prefine.report.stages.supervised import SupervisedReport
from prefine.report.stages.votes import VotesReport

STAGE_REPORTS: dict[str, StageReport] = {
    "sft": SupervisedReport(),
    "dpo": PreferenceReport(),
    "kto": VotesReport(),
    "orpo": OrpoReport(),
    "reward": RewardReport(),
    "ppo": RlReport(),
}


def stage_report(facts: RunFacts) -> StageReport:
    """The report of the run's stage; a run of an unknown stage is classified by its figures."""
    known = STAGE_REPORTS.get(facts.stage)
    if known is not None:
        return known
    if facts.has_pair_figures:
        return STAGE_REPORTS["dpo"]
    return STAGE_REPORTS["ppo"] if facts.responses or facts.rollouts else StageReport()


def stage_title(facts: RunFacts) -> str:
    """The stage's name in full; for an unknown stage the name that was recorded."""
    known = STAGE_REPORTS.get(facts.stage)
    return facts.stage if known is None else known.title
