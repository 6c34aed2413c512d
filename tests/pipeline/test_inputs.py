"""Which inputs of a stage differ is said in words."""

from __future__ import annotations

from prefine.pipeline.inputs import changes, key_of


def test_a_field_of_a_new_release_is_said_to_be_new() -> None:
    before = {"method": "sft", "recipe lora.r": 4, "code": "a", "prefine": "0.1.0"}
    now = {"method": "sft", "recipe lora.r": 8, "recipe lora.dora": False, "code": "b", "prefine": "0.2.0"}
    assert changes(before, now) == [
        "lora.r was 4 and is 8",
        "lora.dora is false, and was not a field before",
        "prefine's code of this stage has changed (0.1.0 → 0.2.0)",
    ]
    assert changes(now, before)[1] == "prefine's code of this stage has changed (0.2.0 → 0.1.0)"
    assert changes(now, before)[2] == "lora.dora was false, and is not a field any more"


def test_a_release_with_the_same_code_has_the_same_key() -> None:
    assert key_of({"code": "a", "prefine": "1"}) == key_of({"code": "a", "prefine": "2"})
    assert key_of({"code": "a"}) != key_of({"code": "b"})
    assert key_of({"recipe x": "1"}) != key_of({"recipe x": 1})
