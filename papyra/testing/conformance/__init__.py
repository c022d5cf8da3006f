"""The specification of a persistence backend, as tests.

Subclass `PersistenceConformance` and give it a fixture that makes your store::

    class TestMyStore(PersistenceConformance):
        @pytest.fixture
        def make_store(self, tmp_path):
            return functools.partial(MyStore, tmp_path / "store")

        async def damage(self, backend, seq):  # if it has the capability `recovery`
            with sqlite3.connect(backend.location) as database:
                database.execute("UPDATE records SET data = '{' WHERE seq = ?", (seq,))

Then ``pytest`` runs it: every rule on each event loop, under the name of the rule. A store that
syncs is tested sooner with ``--basetemp`` on a file system in memory. What no rule can see is an
append that fails half-way, how durable it is, and a thread that outlives its call.

The form is that of Pekko's journal TCK.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from papyra.exceptions import MissingExtra

try:
    import pytest
except ImportError as error:
    raise MissingExtra(
        "the conformance suite needs pytest, which Papyra's extra 'test' brings: "
        "pip install '.[test]' in Papyra's checkout"
    ) from error

from papyra.persistence.backends.base import PersistenceBackend
from papyra.testing.conformance._appending import Appending
from papyra.testing.conformance._copying import Moving
from papyra.testing.conformance._fixtures import MakeBackend, MakeStore
from papyra.testing.conformance._following import Following
from papyra.testing.conformance._histories import OneActor
from papyra.testing.conformance._hosting import Sharing
from papyra.testing.conformance._inbox import Asking
from papyra.testing.conformance._positions import Noting
from papyra.testing.conformance._reading import Reading
from papyra.testing.conformance._recovery import Recovery
from papyra.testing.conformance._retention import Retention
from papyra.testing.conformance._snapshots import Beside
from papyra.testing.conformance._trimming import Trimming

__all__ = ("MakeBackend", "MakeStore", "PersistenceConformance")


class PersistenceConformance(
    Appending,
    Reading,
    Following,
    OneActor,
    Beside,
    Noting,
    Asking,
    Retention,
    Trimming,
    Recovery,
    Moving,
    Sharing,
):
    """The rules for every store. Subclass it, with a fixture ``make_store``: a `MakeStore`.

    A backend with a class of its own overrides ``make_backend`` instead. What is optional is
    decided by the store's own `Capabilities`, and by the protocols that it has: a test of what
    it leaves out does nothing. Where it says ``recovery``, override ``damage(backend, seq)``, which
    makes the stored bytes of one record unreadable while the backend is closed, and leaves its
    position and its neighbours alone. The tests are marked for anyio's plugin, so they run on the
    event loops that the fixture ``anyio_backend`` names.
    """

    pytestmark: ClassVar[Sequence[pytest.MarkDecorator]] = [pytest.mark.anyio]

    @pytest.fixture
    def make_store(self) -> MakeStore:
        """Return a function that makes a store; see `MakeStore`."""
        raise NotImplementedError("a subclass of PersistenceConformance has to make its store")

    @pytest.fixture
    def make_backend(self, make_store: MakeStore) -> MakeBackend:
        """Return a function that makes a backend; see `MakeBackend`."""

        def make(**options: Any) -> PersistenceBackend:
            return PersistenceBackend(make_store(), **options)

        return make
