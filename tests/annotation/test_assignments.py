"""Who gets which item: overlap, leases, repeats and orders, worked by hand and as properties."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from prefine.annotation.project import Project
from prefine.annotation.records import ProjectSettings
from tests.annotation.projects import item, project, taken, vote


def pass_time(monkeypatch: pytest.MonkeyPatch, minutes: float) -> None:
    now = time.time() + 60 * minutes
    monkeypatch.setattr(time, "time", lambda: now)


def test_a_task_stays_until_it_is_voted_on(tmp_path: Path) -> None:
    with project(tmp_path / "project.db") as found:
        task = taken(found)
        assert taken(found) == task  # a page that is loaded again: the same token and sides
        assert (task.item.name, task.repeat, task.done, task.total) == ("q1", False, 0, 3)
        vote(found, "dpo")
        assert (taken(found).item.name, taken(found).done, taken(found).total) == ("q2", 1, 3)


def test_overlap_two_gives_each_item_to_two_annotators(tmp_path: Path) -> None:
    names = ("ann", "bob", "cleo")
    given: Counter[int] = Counter()
    with project(tmp_path / "project.db", 5, *names, overlap=2) as found:
        while any(tasks := [(name, found.next_task(name)) for name in names]):
            open_now = Counter(task.item.id for _, task in tasks if task)
            for number, count in open_now.items():
                assert given[number] + count <= 2
            if not any(task for _, task in tasks):
                break
            for name, task in tasks:
                if task:
                    vote(found, "dpo", name)
                    given[task.item.id] += 1
        assert given == dict.fromkeys(range(1, 6), 2)
        assert {(each.item, each.annotator) for each in found.votes()} == {
            (each.item, each.annotator) for each in found.votes()
        }
        assert len({(each.item, each.annotator) for each in found.votes()}) == 10
        progress = found.progress()
        assert (progress.complete, progress.votes, progress.missing) == (5, 10, 0)


def test_what_one_has_open_nobody_else_gets_until_the_lease_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with project(tmp_path / "project.db", 1, "ann", "bob", lease_minutes=10) as found:
        first = taken(found, "ann")
        assert found.next_task("bob") is None
        pass_time(monkeypatch, 11)
        second = taken(found, "bob")
        assert second.item == first.item
        assert found.next_task("ann") is None  # the item is bob's now


def test_an_expired_lease_goes_on_if_nobody_took_the_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with project(tmp_path / "project.db", 1, lease_minutes=10) as found:
        task = taken(found)
        pass_time(monkeypatch, 11)
        assert taken(found) == task


def test_a_skipped_item_goes_to_others_and_does_not_come_back(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 1, "ann", "bob") as found:
        vote(found, "skip")
        assert found.next_task("ann") is None
        assert taken(found, "bob").item.name == "q1"
        assert found.progress().complete == 0


def test_pausing_gives_the_task_back(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 1, "ann", "bob") as found:
        taken(found, "ann")
        found.pause("ann", True)
        assert found.next_task("ann") is None
        assert found.progress().annotators[0].paused
        assert taken(found, "bob").item.name == "q1"
        vote(found, "skip", "bob")
        found.pause("ann", False)
        assert taken(found, "ann").item.name == "q1"


def test_a_fifth_of_the_items_comes_again_after_at_least_ten_others(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 100, repeats=0.2) as found:
        firsts: list[str] = []
        repeats: list[tuple[str, int]] = []
        while (task := found.next_task("ann")) is not None:
            (repeats.append((task.item.name, len(firsts))) if task.repeat else firsts.append(task.item.name))
            vote(found, "dpo")
    assert firsts == [f"q{number}" for number in range(1, 101)]
    assert len(repeats) == len({name for name, _ in repeats}) == 20
    # item 5, 10, …, 100; those near the end come as soon as nothing new is left
    assert {name for name, _ in repeats} == {f"q{number}" for number in range(5, 101, 5)}
    for name, after in repeats:
        between = after - int(name[1:])
        assert 10 <= between <= 20 or after == 100


def test_a_category_is_never_more_than_one_round_ahead(tmp_path: Path) -> None:
    with Project.create(tmp_path / "project.db", ProjectSettings(order="stratified")) as found:
        found.add_items(item(number, "code" if number <= 40 else "chat") for number in range(1, 51))
        found.join("ann")
        seen: Counter[str] = Counter()
        order = []
        while (task := found.next_task("ann")) is not None:
            seen[task.item.category] += 1
            order.append(task.item.id)
            assert abs(seen["code"] - seen["chat"]) <= 1 or seen["chat"] == 10
            vote(found, "dpo")
    assert sorted(order) == list(range(1, 51))
    assert order != sorted(order)


def test_priorities_come_first_and_may_change(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 4) as found:
        found.prioritise({3: 1.0, 2: 0.5, 1: -1.0})
        assert found.settings.order == "priority"
        assert vote(found, "dpo").item.id == 3
        found.prioritise({1: 9.0})
        assert [vote(found, "dpo").item.id for _ in range(3)] == [1, 2, 4]
        assert found.next_task("ann") is None


def test_items_that_are_added_later_are_handed_out(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 1) as found:
        vote(found, "dpo")
        assert found.next_task("ann") is None
        assert found.add_items([item(1), item(2)]) == 1  # the first one is there already
        assert taken(found).item.name == "q2"


def test_sides_are_random_and_each_model_is_first_about_as_often(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 400) as found:
        first: Counter[str] = Counter()
        for _ in range(400):
            task = vote(found, "tie")
            first[next(each.model for each in task.item.answers if each.id == task.shown[0])] += 1
    assert 150 < first["dpo"] < 250  # five standard deviations


def test_an_item_that_an_undo_reopens_is_found_by_those_who_had_passed_it(tmp_path: Path) -> None:
    with project(tmp_path / "project.db", 3, "ann", "bob") as found:
        assert vote(found, "dpo", "ann").item.name == "q1"
        assert vote(found, "dpo", "bob").item.name == "q2"  # bob's search begins at q2 from now on
        found.undo("ann")
        found.pause("ann", True)
        assert taken(found, "bob").item.name == "q1"


@pytest.mark.parametrize("seed", range(4))
def test_counters_always_equal_what_the_events_say(seed: int, tmp_path: Path) -> None:
    """Votes, skips, repeats, undos and pauses at random; then everything is counted anew."""
    import random

    chance = random.Random(seed)
    names = ("ann", "bob", "cleo")
    with project(tmp_path / "project.db", 12, *names, overlap=2, repeats=0.5) as found:
        for _ in range(120):
            name = chance.choice(names)
            if chance.random() < 0.25:
                found.undo(name)
            elif found.next_task(name) is not None:
                vote(found, chance.choice(["dpo", "sft", "tie", "both_bad", "skip"]), name)
            current = list(found.votes())
            counting = Counter(each.item for each in current if not each.repeat and each.ballot.choice != "skip")
            firsts = Counter((each.item, each.annotator) for each in current if not each.repeat)
            again = Counter((each.item, each.annotator) for each in current if each.repeat)
            assert max(firsts.values(), default=1) == 1
            assert max(again.values(), default=1) == 1
            assert set(again) <= set(firsts)
            progress = found.progress()
            assert progress.missing == sum(max(0, 2 - counting[number]) for number in range(1, 13))
            assert progress.complete == sum(counting[number] >= 2 for number in range(1, 13))
            done = {name: sum(each.annotator == name for each in current) for name in names}
            assert {each.name: each.votes for each in progress.annotators} == done
            for each in names:
                task = found.next_task(each)
                assert task is None or task.done == done[each]
