from __future__ import annotations

import copy
import pickle

import msgspec
import pytest

from papyra import ActorAddress
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


def test_an_address_can_be_sent_anywhere() -> None:
    address = ActorAddress("shop", "cart")
    assert msgspec.json.decode(msgspec.json.encode(address), type=ActorAddress) == address


def test_the_error_about_a_name_is_short_and_is_copied_and_pickled() -> None:
    with pytest.raises(InvalidActorName) as caught:
        ActorAddress("shop", "").child("n" * 1_000_000)
    assert len(str(caught.value)) < 200
    for twin in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert str(twin) == str(caught.value)
