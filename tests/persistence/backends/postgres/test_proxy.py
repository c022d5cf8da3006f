"""The proxy that the tests of PostgreSQL cut connections with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.persistence.backends.postgres.proxy import PLACES, Cut, Place, Proxy
from tests.postgres_server import query


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(database).port or 5432) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def numbers(database: str) -> Iterator[None]:
    query(database, "CREATE TABLE numbers (number int)")
    yield
    query(database, "DROP TABLE numbers")


def insert(url: str, number: int, proxy: Proxy, cut: Cut) -> bool:
    """Insert a number, with a cut on the way; return whether that is acknowledged."""
    try:
        with psycopg.connect(url) as connection:
            proxy.arm(cut)
            connection.execute("INSERT INTO numbers VALUES (%s)", (number,))
            connection.commit()
            return True
    except psycopg.OperationalError:
        return False


@pytest.mark.parametrize("place", PLACES)
def test_the_tests_postgres_proxy_cuts_at_every_message_there_is(
    proxy: Proxy, database: str, place: Place
) -> None:
    """What happens there is as it is without Papyra: doubt is doubt only after the commit."""
    url = proxy.url(database)
    outcomes: dict[tuple[bool, bool], int] = {}
    for number in itertools.count():
        acknowledged = insert(url, number, proxy, Cut(number, place))
        if not proxy.disarm():
            break
        assert proxy.is_late or proxy.are_closed()
        if proxy.is_late:
            assert not query(database, "SELECT 1 FROM numbers WHERE number = %s", number)
            proxy.release()
        assert proxy.are_closed()
        stored = bool(query(database, "SELECT 1 FROM numbers WHERE number = %s", number))
        outcomes[acknowledged, stored] = outcomes.get((acknowledged, stored), 0) + 1
    assert acknowledged
    assert (True, False) not in outcomes
    # In doubt there were some, but for what is cut off before it gets there.
    assert outcomes[False, False] > 5
    assert outcomes.get((False, True), 0) > 0


def test_the_tests_postgres_proxy_calls_what_happens_meanwhile_at_every_message(
    proxy: Proxy, database: str
) -> None:
    calls = 0

    def meanwhile() -> None:
        nonlocal calls
        calls += 1

    proxy.meanwhile = meanwhile
    for number in itertools.count():
        assert insert(proxy.url(database), number, proxy, Cut(number, "at"))
        if not proxy.disarm():
            break
    assert calls == number > 10
    assert proxy.seen[:1] == [">P"] or proxy.seen[:1] == [">Q"]
