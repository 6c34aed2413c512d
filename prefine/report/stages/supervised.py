"""The report of an SFT run: its loss is per token, so it has a perplexity."""

from __future__ import annotations

from prefine.report.stages.stage_report import StageReport


class SupervisedReport(StageReport):
    """SFT."""

    title = "Supervised fine-tuning"
    has_token_loss = True
