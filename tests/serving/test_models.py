"""Several models on one base: each answers as it does alone, whatever the others do."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prefine.errors import ModelError
from prefine.models.loading.load import load_model
from prefine.models.loading.location import base_hash
from prefine.models.scoring.scorer import Question
from prefine.recipe.sections import ModelSection
from prefine.records import Message
from prefine.serving.models import Models, load_models
from prefine.web.errors import ApiError
from tests.models.tiny import save_folder, with_lora
from tests.serving.live import Live, make_service, running


def adapter(folder: Path, base: Path, seed: int, **settings: Any) -> Path:
    """A random adapter on a base, saved as a run saves it."""
    from transformers import AutoModelForCausalLM

    model = with_lora(AutoModelForCausalLM.from_pretrained(base), seed, **settings)
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    (folder / "prefine.json").write_text(json.dumps({"base": str(base), "base_sha256": base_hash(str(base))}))
    return folder


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base, three adapters on it (one on fewer layers), and an adapter on another base."""
    root = tmp_path_factory.mktemp("adapters")
    other = save_folder(root / "other", max_position_embeddings=512, rms_norm_eps=1e-3)
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    save_file({name: 1.1 * each for name, each in weights.items()}, other / "model.safetensors", {"format": "pt"})
    return {
        "tiny": tiny_model,
        "one": adapter(root / "one", tiny_model, 11),
        "two.b": adapter(root / "two.b", tiny_model, 12),
        "small": adapter(root / "small", tiny_model, 13, target_modules=["q_proj"]),
        "strange": adapter(root / "strange", other, 14),
    }


def answer(live: Live, model: str, seed: int) -> str:
    found = live.chat("Say something.", model=model, seed=seed, max_tokens=20, temperature=0.7)
    assert found.status_code == 200, found.text
    text: str = found.json()["choices"][0]["message"]["content"]
    return text


def test_models_on_one_base_answer_as_each_does_alone(folders: dict[str, Path]) -> None:
    names = ["one", "tiny", "two.b", "small"]
    alone = {}
    for name in names:
        with running(make_service([folders[name]])) as live:
            alone[name] = [answer(live, name, seed) for seed in range(2)]
    assert len({texts[0] for texts in alone.values()}) == len(names)
    service = make_service([folders[name] for name in names])
    bases = {id(each.loaded.packed.model) for each in service.models.languages.values()}
    assert len(bases) == 1
    with running(service) as live, ThreadPoolExecutor(8) as threads:
        assert [model["id"] for model in live.get("/v1/models").json()["data"]] == names
        asked = [(name, seed) for name in names for seed in range(2)]
        found = list(threads.map(lambda each: answer(live, *each), asked))
    assert found == [alone[name][seed] for name, seed in asked]


def test_an_adapter_of_another_base_is_refused_with_what_to_do(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError) as refused:
        make_service([folders["one"], folders["strange"]])
    assert "another base model" in str(refused.value)
    assert f"prefine serve {folders['strange']} --port 8001" in str(refused.value)


def test_an_adapter_whose_weights_find_no_place_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(folders["two.b"], tmp_path / "broken")
    weights = load_file(broken / "adapter_model.safetensors")
    save_file(
        {name.replace("q_proj", "x_proj"): each for name, each in weights.items()}, broken / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match="do not match"):
        make_service([folders["one"], broken])


def test_a_name_is_the_last_part_of_a_path_unless_two_have_it(folders: dict[str, Path], tmp_path: Path) -> None:
    twin = shutil.copytree(folders["one"], tmp_path / "one")
    from prefine.recipe.sections import named_model

    section = named_model(str(twin), device="cpu", dtype="float32")
    names = [str(folders["one"]), str(twin), str(folders["small"])]
    assert list(load_models(names, section).languages) == [names[0], names[1], "small"]


def test_a_request_without_a_model_needs_there_to_be_one_only(folders: dict[str, Path]) -> None:
    several: Any = {name: type("Served", (), {"id": name, "name": f"runs/{name}"}) for name in ("a", "b")}
    models = Models(languages=several, rewards={"r": type("Served", (), {"id": "r", "name": "r"})})  # type: ignore[dict-item]
    assert models.language("runs/b").id == "b"
    assert models.reward(None).id == "r"
    for name, status in ((None, 400), ("c", 404), ("r", 400)):
        with pytest.raises(ApiError) as refused:
            models.language(name)
        assert refused.value.status == status
        assert "a, b" in refused.value.message
    with pytest.raises(ApiError, match="gives no scores"):
        models.reward("a")


def test_a_reward_model_scores_beside_the_model_whose_base_it_shares(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.training import tiny
    from tests.training.conftest import draw_nothing

    draw_nothing(monkeypatch)

    root = tmp_path_factory.mktemp("reward")
    base = tiny.save_model(root / "model")
    data = tiny.write_rows(root / "pairs.jsonl", tiny.pairs(26))
    run = root / "judge"
    tiny.train(tiny.recipe("reward", run, base, data, {"training.max_steps": 2, "training.save_every_steps": None}))
    policy = adapter(root / "policy", base, 3)
    service = make_service([policy, run])
    assert list(service.models.rewards) == ["judge"]
    from prefine import load

    rows = [{"prompt": "question 1", "response": text} for text in ("good answer yes", "bad")]
    expected = [row["score"] for row in load(str(run), device="cpu").score(rows)]
    with running(service) as live:
        body = {
            "model": "judge",
            "messages": [{"role": "user", "content": "question 1"}],
            "completions": ["good answer yes", "bad"],
        }
        before = answer(live, "policy", 1)
        found = live.post("/v1/score", body)
        assert found.status_code == 200, found.text
        assert [each["score"] for each in found.json()["data"]] == pytest.approx(expected, abs=1e-5)
        assert answer(live, "policy", 1) == before
        many = live.post("/v1/score", body | {"completions": ["good answer yes", "bad"] * 5}).json()["data"]
        assert [each["score"] for each in many] == pytest.approx(expected * 5, abs=1e-5)
        assert [each["index"] for each in many] == list(range(10))
        long = live.post("/v1/score", body | {"completions": ["x" * 600]})
        assert (long.status_code, long.json()["error"]["param"]) == (400, "completions")
        with monkeypatch.context() as patched:
            reward, jobs = service.models.rewards["judge"].reward, []
            lengths = reward.lengths(
                Question((Message(role="user", content="question 1"),), ("good answer yes", "bad"))
            )
            assert lengths is not None
            scored = reward.score
            patched.setattr(reward, "score", lambda some: jobs.append(len(some[0].answers)) or scored(some))
            patched.setattr("prefine.serving.routes.score._TOKENS_A_JOB", sum(lengths))
            few = live.post("/v1/score", body | {"completions": ["good answer yes", "bad", "bad"]}).json()["data"]
            assert jobs == [2, 1]
            assert [each["score"] for each in few] == pytest.approx([*expected, expected[1]], abs=1e-5)
            patched.setitem(service._scoring_rooms, "judge", lengths[0] - 1)
            beyond = live.post("/v1/score", body | {"completions": ["bad", "good answer yes"]})
            assert (beyond.status_code, beyond.json()["error"]["code"]) == (400, "context_length_exceeded")
            assert f"number 2 has {lengths[0]} tokens with its prompt" in beyond.json()["error"]["message"]
        wrong = live.post("/v1/score", body | {"model": "policy"})
        assert wrong.status_code == 400
        assert live.chat(model="judge").status_code == 400
    with running(make_service([run])) as live:  # by itself
        alone = live.post("/v1/score", body).json()["data"]
        assert [each["score"] for each in alone] == pytest.approx(expected, abs=1e-5)
        assert live.chat().json()["error"]["code"] == "missing_required_parameter"


def test_models_are_loaded_in_a_thread_that_ends(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP's helper threads of a thread that has ended are gone; those of the main thread would slow the worker."""
    threads: list[threading.Thread] = []

    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        return load_model(*arguments, **options)

    monkeypatch.setattr("prefine.models.shared_base.load_model", noting)
    load_models([str(folders["tiny"])], ModelSection())
    assert threads
    assert all(each is not threading.main_thread() and not each.is_alive() for each in threads)
