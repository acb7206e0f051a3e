"""How a role hears that it is to end: a signal, or the death of its supervisor."""

import faulthandler
import os
import select
import signal
import threading

from daemon.supervisor import PARENT_VARIABLE

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_S = 0.5


def stop_event(timeout_s: float) -> threading.Event:
    """Return what SIGTERM and SIGINT set, and the end of the supervisor (it may have been killed).

    A role that is still there after ``timeout_s`` writes to its log where each of its threads is:
    it will be killed, and nobody would know what held it up.
    """
    stop = threading.Event()
    heard, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # Python runs handlers in the main thread, between any two steps of it. One that set the event
    # would wait for ever if that thread held the event's lock just then.
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    # By the supervisor's word: it may be dead before we come as far as to ask who our parent is.
    parent = int(os.environ.get(PARENT_VARIABLE, os.getppid()))

    def watch() -> None:
        while not _is_told(heard) and os.getppid() == parent:
            pass
        faulthandler.dump_traceback_later(timeout_s)
        stop.set()

    threading.Thread(target=watch, name="stop-watch", daemon=True).start()
    return stop


def _is_told(heard: int) -> bool:
    """Wait a moment for one of the signals."""
    readable, _, _ = select.select([heard], [], [], _LOOK_S)
    return bool(readable) and any(number in _SIGNALS for number in os.read(heard, 64))
