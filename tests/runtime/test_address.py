from __future__ import annotations

import copy
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from papyra import ActorAddress
from papyra.address import escaped, unescaped
from papyra.exceptions import InvalidActorName


def test_an_address_is_the_path_from_the_system_down() -> None:
    address = ActorAddress("shop", "").child("cart").child("line-1")
    assert str(address) == "shop/cart/line-1"
    assert address.name == "line-1"
    assert str(address.parent) == "shop/cart"


def test_a_top_level_actor_has_no_parent() -> None:
    assert ActorAddress("shop", "cart").parent is None


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "\udcff", "a\u202eb", "n" * 1_001, None, 7])
def test_a_name_that_would_break_an_address_is_refused(name: object) -> None:
    with pytest.raises(InvalidActorName, match="can't be part of an address"):
        ActorAddress("shop", "").child(name)  # type: ignore[arg-type]


def test_an_actors_address_can_be_encoded_and_decoded() -> None:
    address = ActorAddress("shop", "cart")
    assert msgspec.json.decode(msgspec.json.encode(address), type=ActorAddress) == address


def test_the_error_about_an_invalid_actor_name_is_short_and_can_be_pickled() -> None:
    with pytest.raises(InvalidActorName) as caught:
        ActorAddress("shop", "").child("n" * 1_000_000)
    assert len(str(caught.value)) < 200
    for twin in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert str(twin) == str(caught.value)


@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_any_text_becomes_a_name_and_the_name_the_text_again(text: str) -> None:
    name = escaped(text)
    assert ActorAddress("shop", "").child(name[:1_000]).name == name[:1_000]
    assert unescaped(name) == text


def test_the_name_of_a_text_is_the_same_for_ever() -> None:
    # A history is kept under it. So this is no list to add to when something else comes out.
    assert escaped("order 42: 3.5 <a@b.c> ~!") == "order 42: 3.5 <a@b.c> ~!"
    assert escaped("a/b%2F$\n\x7f") == "a%2Fb%252F%24%0A%7F"
    assert escaped("Z\u00fcrich \U0001f600 \ud83d") == "Z%C3%BCrich %F0%9F%98%80 %ED%A0%BD"
