"""The reward function of the sentiment pipeline."""

from __future__ import annotations

import pytest

from prefine.recipes.sentiment import friendliness


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("", 0.0),
        ("It left today.", 0.0),
        ("Thank you!", 0.25),
        ("thanks thanks THANKS", 0.25),  # a repeated word counts once
        ("Thanks, glad to help, have a great day, enjoy it", 1.0),  # five, of which four are enough
        ("Sorry, that is impossible.", 0.0),
        ("stupid, useless, awful, terrible, rude", -1.0),
    ],
)
def test_different_friendly_words_count(answer: str, reward: float) -> None:
    assert friendliness([{"response": answer}]) == [reward]
