"""Tests of code that persists.

Probes wait for facts and messages; `given` puts facts there first; `FaultyPersistence` fails;
`ManualClock` moves when it is told to; `crash_everywhere` and `explore` run a scenario with every
crash and in many orders. Fixtures for pytest are in `papyra.testing.pytest_plugin`, the tests that
every backend has to pass in `papyra.testing.conformance`.
"""

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
from papyra.testing.preloaded import Given, given
from papyra.testing.probes import PersistenceProbe, TestProbe
from papyra.testing.wait_idle import wait_until_idle

__all__ = (
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
    "Hang",
    "InjectedFault",
    "Injection",
    "Leftover",
    "ManualClock",
    "Operation",
    "PersistenceProbe",
    "Reject",
    "ScheduleFailed",
    "TestProbe",
    "crash_everywhere",
    "explore",
    "given",
    "wait_until_idle",
)
