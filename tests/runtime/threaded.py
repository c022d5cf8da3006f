"""Programs without an event loop, whose system runs in a thread: the first argument says which."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from papyra import Actor, ActorSystem, Decision, OneForOne
from papyra.exceptions import SystemForked
from papyra.persistence.backends.json import JsonFilePersistence


class Counter(Actor):
    async def on_start(self) -> None:
        self.count = 0

    async def receive(self, message: Any) -> int:
        if isinstance(message, Exception):
            raise message
        self.count += 1
        await self.context.persist(("Counted", {"number": self.count}))
        return self.count

    async def on_stop(self) -> None:
        print("stopped", flush=True)


def main(which: str, path: str, backend: str) -> None:
    system = ActorSystem(
        "program",
        persistence=JsonFilePersistence(path),
        supervision=OneForOne(default=Decision.ESCALATE),
    )
    thread = system.run_in_thread(backend)
    counter = thread.spawn(Counter)
    print(thread.ask(counter, "go"), flush=True)
    match which:
        case "ends":
            thread.tell(counter, "last")  # handled before it stops
        case "exits":
            sys.exit(7)
        case "fails":
            raise KeyError("the program's own")
        case "escalates":
            with thread:
                thread.tell(counter, ValueError("boom"))
                system.portal.call(system.wait_stopped)
        case "waits":
            while True:
                print(thread.ask(counter, "go"), flush=True)
        case "daemon":
            # It asks on and on; the process ends all the same.
            threading.Thread(target=ask_on, args=(thread, counter), daemon=True).start()
        case "worker":
            # A thread that is no daemon may use it to its end.
            threading.Thread(target=ask_late, args=(thread, counter)).start()
        case "forks":
            fork(thread, counter)
        case _:
            raise AssertionError(which)


def ask_on(thread: Any, counter: Any) -> None:
    while True:
        thread.ask(counter, "go")


def ask_late(thread: Any, counter: Any) -> None:
    threading.main_thread().join()
    print(thread.ask(counter, "go"), flush=True)


def fork(thread: Any, counter: Any) -> None:
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(thread.ask(counter, "go"), flush=True)
        return
    for use in (lambda: thread.ask(counter, "go"), lambda: thread.spawn(Counter), thread.call):
        try:
            use(*[print] if use == thread.call else [])
        except SystemForked as error:
            print("refused:", "start one here" in str(error), thread.is_alive, flush=True)
    thread.stop()
    sys.exit(0)  # with what was registered to be done at the end


if __name__ == "__main__":
    # A shell may have started the tests in the background, where it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(*sys.argv[1:])
