"""How a role hears that it is to end."""

import subprocess
import sys

import pytest


def _role(body: str) -> "subprocess.CompletedProcess[str]":
    """Run a process that asks for its stop event and then does something."""
    program = f"import os, signal, time\nfrom daemon.stopping import stop_event\n{body}"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_between_any_two_steps_of_the_main_thread_ends_the_role(name: str) -> None:
    """The main thread is about to wait and holds the event's lock: the signal neither hangs nor is lost."""
    done = _role(f"""
stop = stop_event(20.0)
with stop._cond:
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.2)
print(stop.wait(10.0))
""")
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_the_end_of_the_supervisor_ends_the_role() -> None:
    """Its parent is another process than the one that started it: the supervisor is gone."""
    done = _role("""
os.environ["PACS_ANOMALY_SUPERVISOR"] = "1"
print(stop_event(20.0).wait(10.0))
""")
    assert (done.stdout, done.returncode) == ("True\n", 0)


def test_a_role_that_does_not_end_says_where_it_is() -> None:
    """Asked to end and still there after its time: its threads' places are in the log."""
    done = _role("""
def stuck():
    time.sleep(1.5)
stop_event(0.3)
os.kill(os.getpid(), signal.SIGTERM)
stuck()
""")
    assert "in stuck" in done.stderr
