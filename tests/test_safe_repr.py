"""Words for users' objects, of which only what shows is looked at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from papyra._runtime.recorder import storable
from papyra._safe_repr import has_short_traceback, shown, text_of

MANY = 100_000_000


class Note(msgspec.Struct):
    text: Any
    more: Any = None


@dataclasses.dataclass
class Card:
    text: Any
    hidden: int = dataclasses.field(default=1, repr=False)


class Own(msgspec.Struct):
    text: str

    def __repr__(self) -> str:
        return "x" * 1000 + "\udcff"


def endless(join: Callable[[Any], Any]) -> Any:
    value: Any = None
    for _ in range(60):
        value = join(value)
    return value


@pytest.mark.parametrize(
    "value",
    [Note(1), Note("a", Note([])), Card(("a",)), ValueError(), ValueError(1, "a"), [Card({})]],
)
def test_what_is_small_is_shown_whole(value: object) -> None:
    assert shown(value) == repr(value)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        ValueError("a"),
        ValueError([1, "a"]),
        ValueError(1, 2),
        KeyError("a"),
        KeyError(),
        ValueError(Card(1)),
        ValueError(Note(1)),
        OSError(2, "no", "file"),
        ValueError(ValueError(1)),
    ],
)
def test_the_text_of_an_error_is_what_it_says(error: Exception) -> None:
    assert text_of(error) == str(error)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Note("x" * MANY),
        lambda: Card("x" * MANY),
        lambda: [Note("x" * MANY)] * 3,
        lambda: ValueError("x" * MANY),
        lambda: endless(lambda value: Note(value, value)),
        lambda: endless(lambda value: Card([value, value])),
        lambda: endless(lambda value: ValueError(value, value)),
    ],
)
def test_a_large_or_endless_value_is_shown_by_a_bounded_part_of_it(make: Callable[[], Any]) -> None:
    value = make()
    for show in (
        shown,
        lambda value: text_of(ValueError(value)),
        lambda value: str(storable(value)),
    ):
        assert len(show(value)) <= 10_000


def test_the_long_text_of_an_error_is_cut_in_its_middle() -> None:
    for error in (ValueError("x" * MANY), KeyError("x" * MANY), ValueError("a", "x" * MANY)):
        assert len(text_of(error)) <= 10_000
    assert text_of(ValueError("a" * 20_000 + "b")).endswith("ab")


def test_of_a_long_repr_that_somebody_wrote_both_ends_are_shown() -> None:
    assert shown(Own("")).startswith("xxx")
    assert shown(Own("")).endswith("...x" + "x" * 96 + "\\udcff")


def test_errors_that_hold_each_other_again_and_again_have_no_short_traceback() -> None:
    group: Exception = ValueError("one")
    for _ in range(60):
        group = ExceptionGroup("both", [group, group])
    assert not has_short_traceback(group)
    chain: Exception | None = None
    for number in range(1000):
        error = ValueError(number)
        error.__cause__ = chain
        chain = error
    assert chain is not None
    assert has_short_traceback(chain)
