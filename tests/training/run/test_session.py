"""What a session records in the manifest."""

from __future__ import annotations

from prefine.training.run.session import Session


def test_checks_of_a_resumed_run_keep_their_order() -> None:
    """A check that is made once a run stays where it was among those that are repeated."""
    session = object.__new__(Session)
    session.checks = [{"name": "tokens", "value": 1}, {"name": "leaks", "value": 1}, {"name": "ratio", "value": 1}]
    session.record_checks([{"name": "leaks", "value": 2}, {"name": "tokens", "value": 2}, {"name": "new", "value": 2}])
    found = [(row["name"], row["value"]) for row in session.checks]
    assert found == [("tokens", 2), ("leaks", 2), ("ratio", 1), ("new", 2)]
