"""A PostgreSQL store against the plainest model of it: a list.

``PAPYRA_EXAMPLES=1000`` makes it a long run.
"""

from __future__ import annotations

import secrets
from typing import Any
from unittest import mock

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from papyra.exceptions import InvalidRecord
from papyra.persistence import Read
from papyra.persistence.backends import paging
from papyra.persistence.backends.postgres import PostgresPersistence
from papyra.persistence.backends.retention import RetentionPolicy
from papyra.persistence.records import KINDS
from papyra.testing._list_model import ListModel, read_to_the_end
from tests.extent import count
from tests.persistence.backends.postgres.small_blocks import small_blocks
from tests.persistence.backends.test_memory_model import NOW, batches, policies, reads

steps = st.lists(st.one_of(batches, st.just("reopen")), max_size=10)


@settings(
    max_examples=count("PAPYRA_EXAMPLES", 15, 300),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    policy=policies,
    steps=steps,
    compacts=st.booleans(),
    queries=st.lists(reads, max_size=6),
)
def test_a_postgres_database_holds_what_a_list_would_hold(
    database: str,
    policy: RetentionPolicy,
    steps: list[Any],
    compacts: bool,
    queries: list[dict[str, Any]],
) -> None:
    model = ListModel(policy)

    async def run(system_id: str) -> None:
        def store() -> PostgresPersistence:
            return PostgresPersistence(
                database,
                schema="papyra_model",
                system_id=system_id,
                retention_policy=policy,
                clock=lambda: NOW,
            )

        persistence, last = store(), 0
        for step in steps:
            if step == "reopen":
                await persistence.aclose()
                persistence = store()
            else:
                try:
                    appended = await persistence.append(*step)
                except InvalidRecord:
                    continue
                assert appended.first_seq == last + 1
                last += len(step)
                model.append(*step)
        if compacts:
            dry = await persistence.compact(dry_run=True)
            assert await persistence.compact() == dry
            shown = [each for kind in KINDS for each in model.visible(kind, NOW)]
            assert dry.records_after == len(shown)
        for query in queries:
            request = Read(**query)
            assert await read_to_the_end(persistence, request) == model.read(request, NOW)
        for kind in KINDS:
            page = await persistence.read(kind, limit=1000)
            assert list(page.records) == model.visible(kind, NOW)[: len(page.records)]
        summary = await persistence.summarize()
        assert summary.last_seq == last
        assert (await persistence.scan()).is_clean
        await persistence.aclose()

    with (
        mock.patch.object(paging, "MAX_PAGE_RECORDS", 3),
        mock.patch.object(paging, "MAX_PAGE_BYTES", 300),
        small_blocks(),
    ):
        anyio.run(run, secrets.token_hex(16))
