"""``python -m benchmarks.fault_pacs``: a Storage SCP that misbehaves on demand and keeps a journal.

Its behaviour is the content of a file, read again for each association and each object: ``normal``,
``slow SECONDS``, ``reject``, ``abort`` (in mid-transfer, every other object), or ``status HEX``.
Each time somebody meets it the file ``met`` gets a line. The journal has one line per C-STORE: time,
SOP Class UID, SOP Instance UID, Study Instance UID, SHA-256 of the data set, status answered. Objects
answered with Success or a warning count as stored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, _config, evt
from pynetdicom.sop_class import _STORAGE_CLASSES, Verification  # type: ignore[attr-defined]

_config.UNRESTRICTED_STORAGE_SERVICE = True


class _Pacs:
    def __init__(self, folder: Path) -> None:
        self._behaviour, self._journal = folder / "behaviour", folder / "journal.jsonl"
        self._met = folder / "met"
        self._lock, self._count = threading.Lock(), 0

    def _wanted(self) -> list[str]:
        try:
            return self._behaviour.read_text().split() or ["normal"]
        except OSError:
            return ["normal"]

    def requested(self, event: evt.Event) -> None:
        """Reject the association if that is wanted (PS3.8 9.3.4: transient, local limit)."""
        if self._wanted()[0] == "reject":
            self._note("reject")
            assoc: Any = event.assoc
            assoc.acse.send_reject(0x02, 0x03, 0x02)
            assoc.kill()

    def store(self, event: evt.Event) -> int:
        """Answer one C-STORE request."""
        kind, *arguments = self._wanted()
        if kind not in ("normal", "reject"):
            self._note(kind)
        request: Any = event.request
        data = request.DataSet.getvalue()
        status = int(arguments[0], 16) if kind == "status" else 0
        with self._lock:
            self._count += 1
            aborts = kind == "abort" and self._count % 2 == 0
        if kind == "slow":
            time.sleep(float(arguments[0]))
        if not aborts:
            self._write(event, data, status)
        if kind == "abort":
            event.assoc.abort()
        return status

    def _note(self, kind: str) -> None:
        """Note that somebody met this behaviour: a run in which nobody did says nothing."""
        with self._lock, self._met.open("a") as file:
            file.write(f"{kind}\n")

    def _write(self, event: evt.Event, data: bytes, status: int) -> None:
        request: Any = event.request
        line = {
            "at": time.time(),
            "sop_class": str(request.AffectedSOPClassUID),
            "sop": str(request.AffectedSOPInstanceUID),
            "study": str(event.dataset.StudyInstanceUID),
            "sha256": hashlib.sha256(data).hexdigest(),
            "status": status,
        }
        with self._lock, self._journal.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Return what was stored, oldest first; a last line that is cut off is left out."""
    try:
        lines = (folder / "journal.jsonl").read_text().splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="A Storage SCP that misbehaves on demand.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    pacs = _Pacs(options.folder)
    ae = AE("PACS")
    ae.maximum_associations = 100
    for uid in [*_STORAGE_CLASSES.values(), Verification]:
        ae.add_supported_context(uid, ALL_TRANSFER_SYNTAXES)
    handlers = [(evt.EVT_REQUESTED, pacs.requested), (evt.EVT_C_STORE, pacs.store)]
    ae.start_server((options.host, options.port), evt_handlers=handlers)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
