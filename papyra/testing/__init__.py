"""Tests of code that persists.

Probes wait for facts and messages; `given` puts facts there first; `given_history` gives commands
to an event-sourced actor alone, and `projected` events to a projection; `check_history` reads old
histories with the classes of today; `FaultyPersistence` fails;
`ManualClock` moves when it is told to; `crash_everywhere`, `crash_projection_everywhere` and
`explore` run a scenario with every crash and in many orders. Fixtures for pytest are in
`papyra.testing.pytest_plugin`, the tests that every backend has to pass in
`papyra.testing.conformance`.
"""

from papyra.testing.check_history import (
    CheckedHistories,
    HistoryCheckFailed,
    HistoryProblem,
    check_history,
)
from papyra.testing.checked_system import CheckedSystem, Leftover
from papyra.testing.clock import ManualClock
from papyra.testing.crash import (
    Crashed,
    Crashes,
    CrashPoint,
    CrashPointFailed,
    CrashRun,
    crash_everywhere,
)
from papyra.testing.crash_projection import ProjectionCrashRun, crash_projection_everywhere
from papyra.testing.explore import Exploration, ScheduleFailed, explore
from papyra.testing.fault_rules import (
    Delay,
    Fail,
    Fault,
    FaultPolicy,
    Hang,
    InjectedFault,
    Injection,
    Operation,
    Reject,
)
from papyra.testing.faulty_persistence import FaultyPersistence
from papyra.testing.given_history import (
    GivenHistory,
    Outcome,
    ReplayMismatch,
    SetTimer,
    given_history,
)
from papyra.testing.preloaded import Given, given
from papyra.testing.probes import PersistenceProbe, TestProbe
from papyra.testing.projected import ProjectedView, projected
from papyra.testing.wait_idle import wait_until_idle

__all__ = (
    "CheckedHistories",
    "CheckedSystem",
    "CrashPoint",
    "CrashPointFailed",
    "CrashRun",
    "Crashed",
    "Crashes",
    "Delay",
    "Exploration",
    "Fail",
    "Fault",
    "FaultPolicy",
    "FaultyPersistence",
    "Given",
    "GivenHistory",
    "Hang",
    "HistoryCheckFailed",
    "HistoryProblem",
    "InjectedFault",
    "Injection",
    "Leftover",
    "ManualClock",
    "Operation",
    "Outcome",
    "PersistenceProbe",
    "ProjectedView",
    "ProjectionCrashRun",
    "Reject",
    "ReplayMismatch",
    "ScheduleFailed",
    "SetTimer",
    "TestProbe",
    "check_history",
    "crash_everywhere",
    "crash_projection_everywhere",
    "explore",
    "given",
    "given_history",
    "projected",
    "wait_until_idle",
)
