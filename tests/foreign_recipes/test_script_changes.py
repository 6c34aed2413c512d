"""What a script changes in its configuration after the call that makes it is taken or listed, never dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefine.foreign_recipes.python_file import Script, ScriptCall
from prefine.foreign_recipes.trl import from_trl


def configuration(tmp_path: Path, text: str) -> ScriptCall:
    (tmp_path / "train.py").write_text(text)
    (call,) = Script(tmp_path / "train.py").calls("DPOConfig")
    return call


@pytest.mark.parametrize(
    "text",
    [
        "cfg = DPOConfig(beta=0.1)\ncfg.beta = 0.3\n",
        "cfg: DPOConfig = DPOConfig(beta=0.1)\nB = 0.3\ncfg.beta: float = B\n",
        "cfg = DPOConfig(beta=0.1)\nsetattr(cfg, 'beta', 0.3)\n",
        "cfg = DPOConfig(beta=0.1)\ncfg = dataclasses.replace(cfg, beta=0.3)\n",
        "cfg = DPOConfig(beta=0.1)\nother = replace(cfg, beta=0.3)\n",
        "cfg = DPOConfig(beta=0.1)\nother = copy.deepcopy(cfg)\nother.beta = 0.3\n",
        "cfg = DPOConfig(beta=0.1)\nalias = cfg\nalias.beta = 0.3\n",
        "cfg = DPOConfig(beta=0.1)\ntrainer = DPOTrainer(args=cfg)\ntrainer.args.beta = 0.3\ntrainer.train()\n",
        "def main():\n    cfg = DPOConfig(beta=0.1)\n    cfg.beta = 0.3\n",
        "if True:\n    cfg = DPOConfig(beta=0.1)\ncfg.beta = 0.3\n",
    ],
)
def test_the_only_literal_that_is_assigned_later_counts(tmp_path: Path, text: str) -> None:
    assert configuration(tmp_path, text).settings["beta"].value == 0.3


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("cfg.beta = find()", "find()"),
        ("cfg.beta *= 2", "cfg.beta *= 2, line 2"),
        ("cfg.beta = 0.3\ncfg.beta = 0.4", "cfg.beta = 0.3, line 2; cfg.beta = 0.4, line 3"),
        ("if small:\n    cfg.beta = 0.3", "cfg.beta = 0.3, line 3"),
        ("for each in range(3):\n    cfg.beta = 0.3", "cfg.beta = 0.3, line 3"),
        ("def change(cfg):\n    cfg.beta = 0.3", "cfg.beta = 0.3, line 3"),
        ("for cfg.beta in (1, 2):\n    pass", "for cfg.beta in (1, 2):"),
        ("cfg.beta, x = 0.3, 1", "= (0.3, 1), line 2"),
        ("del cfg.beta", "del cfg.beta, line 2"),
        ("cfg = DPO()\ncfg.beta = 0.3", "cfg.beta = 0.3, line 3"),
        ("t = DPOTrainer(args=cfg)\nt.train()\nt.args.beta = 0.3", "t.args.beta = 0.3, line 4"),
        ("t = DPOTrainer(args=cfg)\nt = wrap(t)\nt.args.beta = 0.3", "t.args.beta = 0.3, line 4"),
    ],
)
def test_any_other_change_is_listed_and_no_value_is_taken(tmp_path: Path, change: str, shown: str) -> None:
    setting = configuration(tmp_path, f"cfg = DPOConfig(beta=0.1)\n{change}\n").settings["beta"]
    assert setting.value is None
    assert setting.expression is not None
    assert shown in setting.expression


def test_an_attribute_of_an_object_is_followed_by_its_text(tmp_path: Path) -> None:
    text = "class A:\n    def f(self):\n        self.args = DPOConfig(beta=0.1)\n        self.args.beta = 0.3\n"
    assert configuration(tmp_path, text).settings["beta"].expression == "self.args.beta = 0.3, line 4"


def test_a_name_that_is_known_only_when_the_script_runs_is_listed(tmp_path: Path) -> None:
    call = configuration(tmp_path, "cfg = DPOConfig(beta=0.1)\nfor k, v in more:\n    setattr(cfg, k, v)\n")
    assert [what for what, _ in call.unread] == ["setattr(cfg, k, v), line 3"]


def test_other_objects_change_nothing(tmp_path: Path) -> None:
    text = "cfg = DPOConfig(beta=0.1)\nmodel = load()\nmodel.beta = 0.3\nmodel.config.beta = 2\n'a'.replace('a', 'b')\n"
    call = configuration(tmp_path, text)
    assert call.settings["beta"].value == 0.1
    assert not call.unread


def test_the_recipe_has_the_later_value_and_lists_what_is_not_known(tmp_path: Path) -> None:
    text = (
        "cfg = DPOConfig(learning_rate=1e-6)\ncfg.learning_rate = 3e-4\ncfg.beta += 1\nlora = LoraConfig(r=8)\n"
        "lora.r = 32\ntrainer = DPOTrainer(args=cfg, peft_config=lora)\ntrainer.ref_model = None\n"
    )
    (tmp_path / "train.py").write_text(text)
    done = from_trl(tmp_path / "train.py")
    values: dict[str, Any] = {path: written.value for path, written in done.fields.items()}
    assert values["training.learning_rate"] == 3e-4
    assert values["lora.r"] == 32
    assert "dpo.beta" not in values
    names = [each.name for each in done.left]
    assert "beta" in names
    assert "trainer.ref_model = None, line 7" in names
