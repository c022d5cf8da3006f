"""The store passes the conformance suite, on every server there is.

That is, on asyncio; in CI on all event loops.
"""

from __future__ import annotations

import pytest
import redis

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.redis import RedisStreamsPersistence
from papyra.testing.conformance import MakeBackend, PersistenceConformance
from tests.conftest import event_loops
from tests.persistence.backends.redis.conftest import MakeStore

anyio_backend = event_loops("asyncio")


class TestRedisStreamsPersistence(PersistenceConformance):
    @pytest.fixture
    def make_backend(self, make: MakeStore) -> MakeBackend:
        return make

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        """Replace an entry by one with other content, which Redis has no command for.

        The stream is written anew without it, and it comes last, as ids must rise.
        """
        assert isinstance(backend, RedisStreamsPersistence)
        with redis.Redis.from_url(backend.config.url) as client:
            for key in backend.config.keys.streams.values():
                entries = client.xrange(key)
                if not any(identifier.endswith(b"-%d" % seq) for identifier, _ in entries):
                    continue
                client.delete(key)
                for identifier, fields in entries:
                    if identifier.endswith(b"-%d" % seq):
                        fields[b"record"] = b"rubbish" + fields[b"record"][7:]
                    client.xadd(key, fields, identifier)
