"""Worker: a child process that runs the native decoders, so that a damaged frame cannot end the daemon.

Fuzzing made three of the C and C++ decoders segfault or abort. The child takes one frame at a time over
its standard input and returns the pixels over its standard output; when it dies, that frame is refused
and the next one gets a new child. No pickle crosses the pipe: a header in JSON, then bytes.
"""

from __future__ import annotations

import atexit
import dataclasses
import json
import os
import resource
import select
import struct
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from pydicom.uid import UID

from adapters.decoders import Pixels, decode_codestream
from adapters.errors import DecodeError
from adapters.image_pixel import PixelFormat

# Address space of the child; a frame at the usual limit needs a tenth of it.
MEMORY_LIMIT_BYTES = 8 * 2**30
# A frame that takes longer is not decoded: fuzzing also found an endless loop.
TIME_LIMIT_S = 30.0
# The child imports the decoders first, which takes half a second on an idle machine.
START_LIMIT_S = 60.0


class DecodeWorker:
    """One child process, started when the first frame comes and restarted when it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, frame: bytes, syntax: UID, form: PixelFormat) -> Pixels:
        """Decode one compressed frame.

        Parameters
        ----------
        frame, syntax, form
            As for `adapters.decoders.decode_codestream`.

        Returns
        -------
        ndarray
            (rows, columns) or (rows, columns, samples), colour as RGB.

        Raises
        ------
        DecodeError
            The frame is damaged, takes too long, or ended the child.
        """
        with self._lock:
            child = self._running()
            assert child.stdin is not None and child.stdout is not None  # both are pipes
            try:
                _send(child.stdin, {"syntax": str(syntax), "form": dataclasses.asdict(form)}, frame)
                head, body = _receive(child.stdout, time.monotonic() + TIME_LIMIT_S)
            except (OSError, EOFError, TimeoutError) as error:
                self._end()
                reason = "takes too long" if isinstance(error, TimeoutError) else "makes the decoder crash"
                raise DecodeError(f"the compressed frame {reason}; it is damaged") from error
        if "error" in head:
            raise DecodeError(str(head["error"]))
        return np.frombuffer(body, np.dtype(head["dtype"])).reshape(head["shape"])

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end()
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "adapters.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # The decoders' own complaints may quote what they read.
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._wait_until_ready(self._child)
        return self._child

    def _wait_until_ready(self, child: subprocess.Popen[bytes]) -> None:
        """Tell a child that cannot start from a frame that ends it: the frame is not to blame."""
        assert child.stdout is not None  # a pipe
        try:
            _receive(child.stdout, time.monotonic() + START_LIMIT_S)
        except (OSError, EOFError, TimeoutError) as error:
            self._end()
            raise DecodeError(
                "the decoding process does not start; run `python -m adapters.worker` to see why"
            ) from error

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()


@cache
def decode_worker() -> DecodeWorker:
    """Return this process's worker; its child ends with the process."""
    worker = DecodeWorker()
    atexit.register(worker.close)
    return worker


def _send(stream: IO[bytes], head: dict[str, Any], body: bytes) -> None:
    text = json.dumps(head).encode()
    stream.write(struct.pack("<QQ", len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


def _receive(stream: IO[bytes], deadline: float) -> tuple[dict[str, Any], bytes]:
    text, body = struct.unpack("<QQ", _read(stream, 16, deadline))
    return json.loads(_read(stream, text, deadline)), _read(stream, body, deadline)


def _wait_s(deadline: float) -> float | None:
    return None if deadline == float("inf") else max(0.0, deadline - time.monotonic())


def _read(stream: IO[bytes], count: int, deadline: float) -> bytes:
    """Read from the pipe itself: a buffered read would block beyond the deadline."""
    parts, left = [], count
    while left:
        ready, _, _ = select.select([stream], [], [], _wait_s(deadline))
        if not ready:
            raise TimeoutError
        part = os.read(stream.fileno(), min(left, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    while True:
        try:
            head, frame = _receive(requests, float("inf"))
        except EOFError:
            return
        try:
            pixels = decode_codestream(frame, UID(head["syntax"]), PixelFormat(**head["form"]))
        except DecodeError as error:
            _send(answers, {"error": str(error)}, b"")
        except MemoryError:
            _send(answers, {"error": "the frame does not fit into memory"}, b"")
        else:
            _send(answers, {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels.tobytes())


def main() -> None:
    """Serve frames until the parent closes the pipe."""
    # A limit that the service already has may be lower, and cannot be raised.
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(hard, MEMORY_LIMIT_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Decoders print; the pipe must carry answers only.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _send(answers, {"ready": True}, b"")
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
