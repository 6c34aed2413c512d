"""tests/ mirrors prefine/: tests/X/test_Y.py tests prefine/X/Y.py or a topic of the table below."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]

# Topics: properties of several modules together, of commands, or of the repository.
TOPICS = {
    "": {
        "deploy": "the container",
        "docs": "documents agree with the code",
        "house": "rules for all source files",
        "layers": "imports between packages",
        "makefile": "make",
        "mirror": "this file",
        "package": "the wheel",
        "quickstart": "the quickstart's recipes",
        "results": "the experiments of make results",
    },
    "annotation/page": {
        "annotation_page": "the annotation page in a browser",
        "drafts": "what was begun outlives a pause",
        "annotation_safety": "what models and people write stays text on the page",
        "page_kills": "eight people and a server that is killed",
    },
    "cli": {
        "bad_arguments": "refusals of every verb",
        "chat_terminal": "chat in a pseudo-terminal",
        "option_values": "every option of every verb",
        "row_memory": "memory of generate and score",
        "text_options": "options of commands that read rows",
    },
    "annotation": {
        "kills": "eight writers that are killed",
        "many_items": "the work of a request with 50,000 items",
    },
    "data": {
        "bounds": "memory and limits",
        "dirty_files": "damaged files",
        "documented_formats": "docs/data.md",
        "model_templates": "chat templates of well-known models",
        "row_rules": "data.columns and data.pairs of a run",
        "samples": "the data set of the package",
        "spreadsheets": "CSV as spreadsheets export it",
        "what_is_learned": "which tokens of which rows are supervised",
    },
    "engines": {"real_engines": "vLLM and llama.cpp themselves"},
    "judges": {"own_server": "prefine serve as the judge"},
    "models": {
        "bad_models": "refusals of damaged model folders",
        "deep": "a real vocabulary and depth",
        "hybrid_models": "recurrent layers, gated norms, experts",
        "parts": "trees computed in parts",
        "portable": "saved models on another machine",
        "probe_tolerance": "the probe on deep models",
        "quantization": "bitsandbytes",
        "reward_others": "reward models of other programs",
        "scorer": "packed scores against transformers",
        "vocabulary": "tokens without an embedding",
    },
    "pipeline": {"kills": "kill -9 of a pipeline that trains"},
    "objectives": {"bandit": "the objectives together"},
    "serving/page": {
        "chat_page": "the chat page in a browser",
        "page_safety": "what a model writes stays text on the page",
    },
    "serving": {
        "access": "the key, hosts and origins of all routes",
        "any_request": "no request fails the server",
        "load": "many clients, most of them ill-behaved",
        "openai_client": "what OpenAI's client gets",
        "other_clients": "LangChain and lm-eval",
        "streams": "streams on the wire, and clients that leave",
    },
    "training": {
        "annotation_walk": "people's votes on two runs, and a run that learns from them",
        "api": "the Python API, on runs",
        "damaged_runs": "lost and changed files of a run",
        "disk_full": "a full disk",
        "feedback_runs": "runs on feedback.db",
        "first_loss": "DPO before its first step",
        "golden": "recorded steps of each stage",
        "gradients": "a step depends on its rows alone",
        "grpo_parity": "the losses of GRPO against TRL's",
        "heldout_rows": "figures of held-out rows",
        "interrupts": "signals to a running command",
        "kills": "kill -9 and resume",
        "learning": "what a model learns",
        "memory_rows": "runs on rows in memory",
        "no_network": "no verb uses the network",
        "online_dpo": "online DPO against TRL's and plain DPO",
        "ppo_refusals": "refusals of PPO",
        "ppo_resume": "exact resume of PPO",
        "python_docs": "docs/python.md and the notebooks",
        "refusals": "what a resumed run refuses",
        "resume": "exact resume",
        "reward_hacking": "guards against a hacked reward",
        "reward_parity": "parity of reward models with TRL",
        "template_settings": "model.template_kwargs",
        "trl_parity": "parity of DPO with TRL",
        "watched_runs": "prefine watch on a run's own files",
    },
    "web": {"markdown_patterns": "the patterns of the pages' markdown take linear time"},
}


def names(folder: str, pattern: str) -> set[str]:
    """Paths below a folder of the repository, without suffix: training/loop/guards."""
    return {file.relative_to(ROOT / folder).with_suffix("").as_posix() for file in (ROOT / folder).rglob(pattern)}


def subject_of(test: str) -> str:
    """training/loop/test_guards is of training/loop/guards."""
    folder, slash, file = test.rpartition("/")
    return folder + slash + file.removeprefix("test_")


def test_each_test_file_names_a_module_or_a_topic() -> None:
    modules = {name.removesuffix("/__init__") for name in names("prefine", "*.py")}
    topics = {f"{folder}/{topic}".lstrip("/") for folder, topics in TOPICS.items() for topic in topics}
    tests = {subject_of(name) for name in names("tests", "test_*.py")}
    strays = sorted(tests - modules - topics)
    assert not strays, "move these test files, or give their topics a line in the table"
    assert not sorted(topics - tests), "these topics have no test file"
    assert not sorted(topics & modules), "these are modules, not topics"
