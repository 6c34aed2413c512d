"""What each engine can serve, and the one line for what it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefine.engines.target import Adapter, client_name, gguf_target, transformers_target
from prefine.errors import ModelError
from prefine.models.loading.location import base_hash
from tests.engines.folders import adapter_run, model_folder


def test_a_run_is_its_base_with_its_adapter_in_the_type_it_was_trained_in(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    run = adapter_run(tmp_path / "runs" / "dpo", base, r=24)
    target = transformers_target([str(run)])
    assert (target.name, target.model, target.dtype) == ("base", str(base), "bfloat16")
    assert target.adapters == (Adapter("dpo", run / "model", 24),)
    assert target.settings == run / "model"  # whose template and ends of turn count


def test_several_runs_of_one_base_are_served_together(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    runs = [str(adapter_run(tmp_path / name, base)) for name in ("sft", "dpo")]
    assert [each.name for each in transformers_target(runs).adapters] == ["sft", "dpo"]


def test_an_adapter_called_like_its_base_is_not_hidden_by_it(tmp_path: Path) -> None:
    run = adapter_run(tmp_path / "runs" / "smol", model_folder(tmp_path / "smol"))
    target = transformers_target([str(run)])
    assert (target.name, target.adapters[0].name) == ("smol-base", "smol")


def test_a_base_with_other_weights_is_refused(tmp_path: Path) -> None:
    run = adapter_run(tmp_path / "runs" / "dpo", model_folder(tmp_path / "base"))
    (run / "model" / "prefine.json").write_text(json.dumps({"base_sha256": "0" * 64}))
    with pytest.raises(ModelError, match="was trained on other weights than"):
        transformers_target([str(run)])


@pytest.mark.parametrize("noted", ["recipe", "adapter"])
def test_a_base_of_the_hub_is_that_of_the_runs_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: str
) -> None:
    snapshots = {revision: model_folder(tmp_path / str(revision)) for revision in (None, "v1")}
    (snapshots["v1"] / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}     \n")
    monkeypatch.setattr("prefine.engines.target.fetched_whole", lambda base, revision: snapshots[revision])
    monkeypatch.chdir(tmp_path)
    run = adapter_run(tmp_path / "run", Path("some/tiny"), **({"revision": "v1"} if noted == "adapter" else {}))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["recipe"]["model"]["revision"] = "v1" if noted == "recipe" else None
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "model" / "prefine.json").write_text(json.dumps({"base_sha256": base_hash(str(snapshots["v1"]))}))
    assert transformers_target([str(run)]).model == str(snapshots["v1"])
    (run / "model" / "prefine.json").write_text(json.dumps({"base_sha256": base_hash(str(snapshots[None]))}))
    with pytest.raises(ModelError, match="other weights than some/tiny at revision 'v1' holds now"):
        transformers_target([str(run)])


def test_a_whole_model_is_its_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "merged")
    target = transformers_target([str(folder)])
    assert (target.name, target.model, target.adapters, target.dtype) == ("merged", str(folder), (), None)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "has DoRA"),
        ({"modules_to_save": ["lm_head"]}, "has whole layers beside the adapter"),
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
        ({"task_type": "SEQ_CLS"}, "is a reward model"),
        ({"quantization": "nf4"}, "was trained on nf4 weights"),
        ({"rank_pattern": {"q_proj": 24}}, "has ranks that differ by layer"),
        ({"alpha_pattern": {"q_proj": 4}}, "has scales that differ by layer"),
        ({"bias": "lora_only"}, "has trained biases"),
    ],
)
def test_what_vllm_would_serve_wrongly_is_refused(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    run = adapter_run(tmp_path / "run", model_folder(tmp_path / "base"), **settings)
    with pytest.raises(ModelError, match=reason):
        transformers_target([str(run)])


def test_an_adapter_of_quantised_weights_is_refused_outside_its_run_too(tmp_path: Path) -> None:
    run = adapter_run(tmp_path / "run", model_folder(tmp_path / "base"))
    (run / "manifest.json").unlink()
    (run / "model" / "prefine.json").write_text(json.dumps({"quantization": "none", "compute_dtype": "float32"}))
    assert transformers_target([str(run / "model")]).dtype == "float32"
    (run / "model" / "prefine.json").write_text(json.dumps({"quantization": "int8", "compute_dtype": "float32"}))
    with pytest.raises(ModelError, match="was trained on int8 weights"):
        transformers_target([str(run / "model")])


def test_a_reward_model_that_is_whole_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "reward", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ModelError, match="reward model"):
        transformers_target([str(folder)])


def test_other_bases_whole_models_among_others_and_equal_names_are_refused(tmp_path: Path) -> None:
    one, two = model_folder(tmp_path / "one"), model_folder(tmp_path / "two")
    first, second = adapter_run(tmp_path / "a" / "run", one), adapter_run(tmp_path / "b" / "other", two)
    same = adapter_run(tmp_path / "c" / "run", one)
    with pytest.raises(ModelError, match=r"was trained on .*two, and .* on .*one"):
        transformers_target([str(first), str(second)])
    with pytest.raises(ModelError, match="is a whole model"):
        transformers_target([str(first), str(one)])
    with pytest.raises(ModelError, match="two of the models are called 'run'"):
        transformers_target([str(first), str(same)])


def test_a_gguf_file_is_found_by_itself_and_in_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "export" / "dpo-q8_0.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    for name in (file, file.parent):
        target = gguf_target([str(name)])
        assert (target.name, target.model) == ("dpo-q8_0", str(file))
        with pytest.raises(ModelError, match="GGUF files, which vLLM"):
            transformers_target([str(name)])


def test_llama_cpp_is_refused_what_holds_no_gguf_or_several(tmp_path: Path) -> None:
    run = adapter_run(tmp_path / "dpo", model_folder(tmp_path / "base"))
    with pytest.raises(ModelError, match=r"prefine export .*dpo --to gguf:q8_0"):
        gguf_target([str(run)])
    with pytest.raises(ModelError, match="one model at a time"):
        gguf_target([str(run), str(run)])
    with pytest.raises(ModelError, match="there is no folder"):
        gguf_target([str(tmp_path / "nothing")])
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"2 GGUF files \(a\.gguf, b\.gguf\)"):
        gguf_target([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "called"),
    [("runs/dpo", "dpo"), ("runs/dpo/", "dpo"), ("Org/Model-1.5B", "Model-1.5B"), ("x/dpo-q4_k_m.gguf", "dpo-q4_k_m")],
)
def test_clients_call_a_model_by_the_last_part_of_its_name(name: str, called: str) -> None:
    assert client_name(name) == called
