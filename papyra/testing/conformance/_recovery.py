"""The rules of scans and recovery."""

from __future__ import annotations

import tempfile

from papyra.persistence.backends.base import PersistenceBackend
from papyra.persistence.backends.store import Batch
from papyra.persistence.records import KINDS
from papyra.persistence.reports import PersistenceRecoveryConfig
from papyra.testing.conformance._fixtures import (
    MakeBackend,
    a_record,
    an_event,
    everything,
    files_outside,
    needs,
)


def recovers(backend: PersistenceBackend) -> bool:
    return backend.capabilities.recovery


class Recovery:
    """Part of the conformance suite."""

    async def damage(self, backend: PersistenceBackend, seq: int) -> None:
        """Make the stored bytes of record `seq` unreadable.

        `backend` is closed when this is called. Needed where its capabilities say ``recovery``.
        """
        raise NotImplementedError(
            f"{type(backend).__name__} has the capability 'recovery': override "
            "PersistenceConformance.damage, so that scan and recover can be tested"
        )

    async def test_a_scan_of_a_sound_store_is_clean_and_changes_nothing(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            assert (await backend.scan()).is_clean
            await backend.append(*map(a_record, range(20)))
            before = await everything(backend)
            for _ in range(2):
                report = await backend.scan()
                assert report.is_clean
                assert report.records_scanned == 20
                assert report.bytes_scanned >= backend.metrics.snapshot().bytes_written
            assert await everything(backend) == before

    async def test_recovery_of_a_sound_store_removes_nothing(
        self, make_backend: MakeBackend
    ) -> None:
        async with make_backend() as backend:
            await backend.append(*map(a_record, range(20)))
            before = await everything(backend)
            for config in (None, PersistenceRecoveryConfig(mode="repair")):
                report = await backend.recover(config)
                assert report.supported == backend.capabilities.recovery
                assert report.scan.is_clean
                assert (report.records_kept, report.records_removed) == (20, 0)
            assert await everything(backend) == before

    @needs(recovers)
    async def test_a_scan_finds_damage_and_changes_nothing(self, make_backend: MakeBackend) -> None:
        async with await self._damaged(make_backend) as backend:
            reports = [await backend.scan() for _ in range(2)]
            for report in reports:
                assert [anomaly.seq for anomaly in report.anomalies if anomaly.seq] in ([], [4])
                assert report.anomalies
                assert not report.is_clean

    @needs(recovers)
    async def test_what_can_not_be_read_is_passed_over(self, make_backend: MakeBackend) -> None:
        async with await self._damaged(make_backend) as backend:
            left = [1, 2, 3, 5, 6, 7, 8, 9, 10]
            assert [record.seq for record in await everything(backend)] == left
            for kind in KINDS:
                pages = [await backend.read(kind, newest=newest) for newest in (False, True)]
                assert pages[0].records == pages[1].records
            assert backend.last_seq == 10

    @needs(recovers)
    async def test_recovery_keeps_every_record_that_can_be_read(
        self, make_backend: MakeBackend
    ) -> None:
        async with await self._damaged(make_backend) as backend:
            report = await backend.recover()
            assert report.supported
            assert report.scan.is_clean
            assert report.records_kept == 9
            assert [r.seq for r in await everything(backend)] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
            assert (await backend.scan()).is_clean
            assert (await backend.append(an_event(11))).first_seq == 11

    @needs(recovers)
    async def test_recovery_keeps_what_a_newer_version_has_written(
        self, make_backend: MakeBackend
    ) -> None:
        newer = b'{"kind":"from_the_future","system_id":"s","payload":{},"timestamp":1.0}'
        async with make_backend() as backend:
            await backend.append(an_event(1), an_event(2))
            await backend.store.claim()
            await backend.store.append(Batch(3, [an_event(3)], [newer]))
        async with make_backend() as backend:
            report = await backend.recover()
            assert report.records_removed == 0
            for scan in (report.scan, await backend.scan()):
                assert [anomaly.kind for anomaly in scan.anomalies] == ["unknown_kind"]
            assert [record.seq for record in await everything(backend)] == [1, 2]
            assert (await backend.append(an_event(4))).first_seq == 4

    @needs(recovers)
    async def test_a_quarantine_says_where_the_originals_are(
        self, make_backend: MakeBackend
    ) -> None:
        with tempfile.TemporaryDirectory() as aside:
            async with await self._damaged(make_backend) as backend:
                report = await backend.recover(PersistenceRecoveryConfig("quarantine", aside))
                assert report.scan.is_clean
                assert report.records_kept == len(await everything(backend)) == 9
                assert report.quarantined
                assert not files_outside(aside, report.quarantined)

    async def test_a_report_names_its_store(self, make_backend: MakeBackend) -> None:
        async with make_backend() as backend:
            await backend.append(an_event(1))
            names = [
                (await backend.scan()).backend,
                (await backend.recover()).backend,
                (await backend.compact()).backend,
                (await backend.summarize()).backend,
            ]
            assert set(names) == {backend.store.name}

    async def _damaged(self, make_backend: MakeBackend) -> PersistenceBackend:
        """Return a closed backend with ten records, of which number 4 is damaged."""
        async with make_backend() as backend:
            await backend.append(*map(a_record, range(1, 11)))
        await self.damage(backend, 4)
        return make_backend()
