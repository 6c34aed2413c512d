"""prefine serve as the judge: its JSON schemas hold even a random model to a verdict."""

from __future__ import annotations

from pathlib import Path

from prefine.judges.cache import ReplyCache
from prefine.judges.endpoint import Endpoint
from prefine.judges.endpoint_judge import EndpointJudge, JudgeSettings
from prefine.judges.judging import judge_answers
from tests.judges.fake import rows
from tests.models.tiny import save_folder
from tests.serving.live import make_service, running


def test_a_random_model_that_prefine_serves_gives_verdicts(tmp_path: Path, no_cache_outside: None) -> None:
    model = save_folder(tmp_path / "tiny", max_position_embeddings=4096)
    with (
        running(make_service([model], slots=4, max_tokens=300)) as live,
        ReplyCache(tmp_path / "judge.db") as cache,
        Endpoint(f"{live.url}/v1", attempts=1) as endpoint,
    ):
        name = live.get("/v1/models").json()["data"][0]["id"]
        found = judge_answers(rows(3), EndpointJudge(endpoint, JudgeSettings(name, max_tokens=300), cache), at_once=4)
        rate = found.win_rate
        assert found.problem is None
        assert rate.failed == {}, rate.failed
        assert rate.wins + rate.ties + rate.losses == 3
        assert (rate.spent["requests"], rate.spent["requests_without_usage"]) == (6, 0)
        assert rate.spent["prompt_tokens"] > 6 * 300, rate.spent
        assert rate.spent["completion_tokens"] <= 6 * 300
