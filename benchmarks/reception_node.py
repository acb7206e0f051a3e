"""The reception path alone, in a process of its own: a receiver whose index forgets everything.

python -m benchmarks.reception_node PORT FOLDER fast|stock
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from daemon.index import Index
from daemon.receiver import Receiver
from daemon.spool import Spool, StoredInstance


class NoIndex(Index):
    """An index that takes everything and keeps nothing."""

    def add_instance(self, instance: StoredInstance, spool: Spool | None = None) -> bool:
        """Forget it."""
        del instance, spool
        return True

    def add_instances(self, instances: Sequence[StoredInstance], spool: Spool) -> list[StoredInstance]:
        """Forget them."""
        del instances, spool
        return []


def main() -> None:
    """Receive until SIGTERM."""
    port, folder, way = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    spool, index = Spool(folder / "spool"), NoIndex(f"sqlite:///{folder}/index.sqlite")
    node = Receiver(
        "ANOMALYD", "127.0.0.1", port, spool, index, b"benchmark", accept_unknown_peers=True, reception=way
    )
    node.start()
    stop.wait()
    node.stop(5.0)
    index.close()


if __name__ == "__main__":
    main()
