"""Who gets which run."""

from __future__ import annotations

from pathlib import Path

from lora_exp.grid.queue import Queue, Ticket


def queue(*runs: str, workers: int = 2, most: int | None = None) -> Queue:
    """A queue of runs `NAME KEY LABEL`; key and label may be missing."""
    tickets = []
    for run in runs:
        name, key, label = [*run.split(), None, None][:3]
        tickets.append(Ticket(Path(str(name)), key, most, label))
    return Queue(tickets, set(range(1, workers + 1)))


def names(paths: list[Path]) -> str:
    return " ".join(path.name for path in paths)


def test_runs_are_given_in_order_and_once() -> None:
    given = queue("a", "b", "c")
    assert [names(given.take(worker, None, 1)) for worker in (1, 2, 1, 2)] == ["a", "b", "c", ""]


def test_a_pack_is_a_fair_share_of_the_runs_that_fit() -> None:
    given = queue(*(f"r{number} k" for number in range(12)))
    (first,) = given.take(1, None, 1)
    assert len(given.take(1, first, 99)) == 5
    (second,) = given.take(2, None, 1)
    assert len(given.take(2, second, 99)) == 5
    assert given.pending == []


def test_no_more_than_asked_for() -> None:
    given = queue(*(f"r{number} k" for number in range(12)))
    (first,) = given.take(1, None, 1)
    assert len(given.take(1, first, 2)) == 2
    assert given.take(1, first, 0) == []


def test_a_pack_is_filled_up_when_runs_of_it_end() -> None:
    given = queue(*(f"r{number} k" for number in range(8)), workers=1)
    (first,) = given.take(1, None, 1)
    second, third = given.take(1, first, 2)
    given.ended(first, "done")
    assert names(given.take(1, first, 1)) == "r3"
    given.ended(second, "done")
    given.ended(third, "failed")
    assert names(given.take(1, first, 9)) == "r4 r5 r6 r7"


def test_workers_that_are_busy_with_other_runs_do_not_count() -> None:
    given = queue("other", *(f"r{number} k" for number in range(6)), workers=3)
    given.take(1, None, 1)
    (first,) = given.take(2, None, 1)
    assert len(given.take(2, first, 99)) == 2


def test_only_runs_of_the_same_key_go_together() -> None:
    given = queue("a k", "b", "c other", "d k", workers=1)
    (first,) = given.take(1, None, 1)
    assert names(given.take(1, first, 9)) == "d"
    (alone,) = given.take(1, None, 1)
    assert alone.name == "b"
    assert given.take(1, alone, 9) == []


def test_the_size_of_packs_can_be_limited() -> None:
    given = queue(*(f"r{number} k" for number in range(9)), workers=1, most=3)
    (first,) = given.take(1, None, 1)
    assert names(given.take(1, first, 9)) == "r1 r2"
    assert given.take(1, first, 9) == []


def test_a_former_pack_stays_together_whatever_would_be_fair() -> None:
    given = queue("a k", "b k P", "c k Q", "d k P", "e k P", "f k P", "g k Q")
    (first,) = given.take(1, None, 1)
    assert first.name == "a"
    assert given.take(1, first, 0) == []
    (labelled,) = given.take(2, None, 1)
    assert names(given.take(2, labelled, 9)) == "d e f"


def test_other_packs_are_left_alone_while_there_are_new_runs() -> None:
    given = queue("a k P", "b k Q", "c k", "d k", "e k Q", workers=1)
    (first,) = given.take(1, None, 1)
    assert names(given.take(1, first, 9)) == "c d"
    assert names(given.take(1, first, 9)) == "b e"


def test_a_pack_that_another_worker_is_busy_with_is_avoided() -> None:
    given = queue("a k P", "b k P", "c k P", "d k Q")
    given.take(1, None, 1)
    assert names(given.take(2, None, 1)) == "d"
    given.ended(Path("d"), "done")
    assert names(given.take(2, None, 1)) == "b", "there is nothing else"


def test_a_run_that_kills_two_workers_has_failed() -> None:
    given = queue("a", "b")
    for state in ("pending", "failed"):
        assert names(given.take(1, None, 1)) == "a"
        (lost,) = given.died(1)
        assert lost.state == state
    assert names(given.take(2, None, 1)) == "b"


def test_runs_that_died_together_are_suspected_and_given_alone() -> None:
    given = queue("a k P", "b k P", "c k P", "d k", workers=1)
    (first,) = given.take(1, None, 1)
    given.take(1, first, 2)
    given.ended(Path("c"), "done")
    assert [(lost.path.name, lost.state) for lost in given.died(1)] == [
        ("a", "pending"),
        ("b", "pending"),
    ]
    given.workers.add(2)
    assert names(given.take(2, None, 1)) == "a"
    assert given.take(2, Path("a"), 9) == []
    assert [lost.state for lost in given.died(2)] == ["failed"]
    assert names(given.take(3, None, 1)) == "b"
    given.ended(Path("b"), "done")


def test_a_run_that_was_stopped_goes_back_to_its_place() -> None:
    given = queue("a k", "b k", "c k", workers=1)
    (first,) = given.take(1, None, 1)
    given.came_back(first, "P")
    assert names(given.take(1, None, 1)) == "a"
    given.came_back(first, "P")
    assert names(given.take(1, None, 1)) == "b", "but not for ever"
    assert given.tickets[0].state == "preempted"
