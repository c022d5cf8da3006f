"""The newest commits of a backend, for those who follow it in the process that writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from papyra._signal import NewSignal, Signal, wake
from papyra.persistence import codec
from papyra.persistence.records import Record

__all__ = ("MAX_RECENT_BYTES", "MAX_RECENT_RECORDS", "CommitFeed", "RecentCommits")

#: Records, and encoded bytes, of the commits that are kept, at most; the newest is in any case.
MAX_RECENT_RECORDS = 10_000
MAX_RECENT_BYTES = 8 * 1024 * 1024


class Commit(Protocol):
    """Records that were stored together, at positions one after the other."""

    @property
    def first_seq(self) -> int:
        """The position of the first."""
        ...

    @property
    def encoded(self) -> Sequence[bytes]:
        """All of them, as they are stored."""
        ...


class RecentCommits:
    """Keeps the newest commits, decodes each once for all who follow, and wakes those who wait.

    However many there are and however slow, they cost no more memory: who is behind the oldest of
    these commits has to read pages.
    """

    def __init__(self) -> None:
        #: whether nothing more will come
        self.has_ended = False
        #: how often those who waited were woken
        self.changes = 0
        self._commits: deque[_Recent] = deque()
        self._records = self._bytes = 0
        #: who wait, and who follows with each
        self._waiting: dict[Signal, Follower] = {}
        #: who looks at the store for all that wait
        self._looker: Follower | None = None
        #: the end of the store, as far as anybody has seen it
        self._end = 0

    def add(self, commit: Commit) -> None:
        """Keep a commit, in place of the oldest ones."""
        recent = _Recent(commit)
        if self._commits and self._commits[-1].last_seq + 1 != recent.first_seq:
            # What is between them is not known here: it was in doubt, say.
            self._commits.clear()
            self._records = self._bytes = 0
        self._commits.append(recent)
        self._end = recent.last_seq
        self._records += recent.count
        self._bytes += recent.size
        while len(self._commits) > 1 and (
            self._records > MAX_RECENT_RECORDS or self._bytes > MAX_RECENT_BYTES
        ):
            oldest = self._commits.popleft()
            self._records -= oldest.count
            self._bytes -= oldest.size
        self._wake()

    def forget_commits(self) -> None:
        """Keep no commit, and wake everybody who waits: the store holds other than these."""
        self._commits.clear()
        self._records = self._bytes = 0
        self._wake()

    def saw(self, end: int) -> None:
        """Note where a page has found the end of the store; wake everybody if that is new."""
        if end > self._end:
            self.forget_commits()
            self._end = end

    def forget_end(self) -> None:
        """Forget where the end was: the store is another one."""
        self._end = 0

    def end(self) -> None:
        """Wake everybody who waits: nothing more will come."""
        self.has_ended = True
        self._wake()

    def after(self, position: int) -> Sequence[Record] | None:
        """Return the records of the commit after a position, all of them if it has begun there.

        They are none at the end; `None` is returned if it is not known what is there.
        """
        commits = self._commits
        if not commits or position < commits[0].first_seq - 1:
            return None
        if position >= commits[-1].last_seq:
            return ()
        # Who follows closely finds it at the end.
        for commit in reversed(commits):
            if commit.first_seq <= position + 1:
                return commit.records[position + 1 - commit.first_seq :]
        raise AssertionError(position)  # they follow each other

    def next_commit(self, new_signal: NewSignal, changes: int, follower: Follower) -> Signal:
        """Return what is set once there are more than so many `changes`. One task may wait for it.

        It is also set once it is up to `follower` to look at the store. Take their number before
        looking for records: by the time that a page of the store is with who has asked for it,
        there may have been a commit that is not in it.
        """
        signal = new_signal()
        if self.has_ended or self.changes != changes:
            signal.set_result(None)
        else:
            self._waiting[signal] = follower
        return signal

    def forget(self, signal: Signal) -> None:
        """Let go of a signal for which nobody waits any more."""
        self._waiting.pop(signal, None)

    def is_looker(self, follower: Follower) -> bool:
        """Return whether it is up to this one to look at the store, for all: if no other does."""
        if self._looker is None:
            self._looker = follower
        return self._looker is follower

    def leave(self, follower: Follower) -> None:
        """Have another one look at the store that waits, if this one did."""
        if self._looker is not follower:
            return
        self._looker = None
        for signal, waiting in tuple(self._waiting.items()):
            if not signal.done():
                self._looker = waiting
                del self._waiting[signal]
                wake(signal)
                return

    def _wake(self) -> None:
        self.changes += 1
        waiting, self._waiting = self._waiting, {}
        for signal in waiting:
            wake(signal)


class Follower(Protocol):
    """Who follows a store."""

    @property
    def position(self) -> int:
        """The position up to which it has read."""
        ...


class CommitFeed:
    """Has the newest commits kept as long as somebody follows."""

    def __init__(self, watch: Callable[[Callable[[Commit], None]], Callable[[], None]]) -> None:
        self._watch = watch
        self._followers: set[Follower] = set()
        self._recent: RecentCommits | None = None
        self._unwatch: Callable[[], None] = lambda: None

    def positions(self) -> tuple[int, ...]:
        """Return how far each of those has read that follow now; from any thread."""
        return tuple(each.position for each in tuple(self._followers))

    def follow(self, follower: Follower) -> RecentCommits:
        """Return the commits from now on, the same ones for all who follow at a time."""
        if self._recent is None:
            self._recent = RecentCommits()
            self._unwatch = self._watch(self._recent.add)
        self._followers.add(follower)
        return self._recent

    def unfollow(self, follower: Follower) -> None:
        """Let go of commits; they are kept no more once the last one has done so."""
        if follower in self._followers:
            self._followers.remove(follower)
            if not self._followers:
                self._stop()

    @property
    def is_followed(self) -> bool:
        """Whether somebody follows."""
        return self._recent is not None

    def overtaken(self) -> None:
        """Have everybody who follows look at the store: it holds other than what was committed."""
        if self._recent is not None:
            self._recent.forget_commits()

    def end(self) -> None:
        """Tell everybody who follows that nothing more will come."""
        if self._recent is not None:
            self._recent.end()
            self._stop()

    def _stop(self) -> None:
        self._recent = None
        self._followers.clear()
        self._unwatch()


class _Recent:
    """A commit, decoded when the first one asks for it."""

    __slots__ = ("_encoded", "_records", "count", "first_seq", "last_seq", "size")

    def __init__(self, commit: Commit) -> None:
        self._encoded: Sequence[bytes] = commit.encoded
        self._records: Sequence[Record] | None = None
        self.count = len(commit.encoded)
        self.size = sum(map(len, commit.encoded))
        self.first_seq = commit.first_seq
        self.last_seq = commit.first_seq + self.count - 1

    @property
    def records(self) -> Sequence[Record]:
        """Its records, as reads give them out."""
        if self._records is None:
            seqs = range(self.first_seq, self.last_seq + 1)
            self._records = codec.decode_many(self._encoded, seqs)
            self._encoded = ()
        return self._records
