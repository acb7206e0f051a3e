"""Every exception that the daemon raises on purpose.

::

    DaemonError
    ├── SettingsError          a key of settings.toml is wrong; names the key
    ├── SpoolError             an instance cannot be written or read
    │   └── DiskReserveError   the disk is below its reserve (answered 0xA700)
    ├── DatabaseError          index and queue cannot be opened, or do not answer
    │   └── DatabaseFullError  they are out of disk, memory or connections (answered 0xA700)
    ├── StudyError             a study cannot be put together or is unknown
    ├── EncodeError            a SEG or SR cannot be made from a finding
    └── SendError              a destination did not take an instance

Exceptions about pixels, weights and bundles are in ``adapters.errors``; they share no base
because ``adapters`` knows nothing of the daemon.
"""


class DaemonError(Exception):
    """The daemon cannot go on with this; the message says what is wrong and what to do."""


class SettingsError(DaemonError):
    """A setting is unknown, of the wrong type, out of range or contradicts another."""


class SpoolError(DaemonError):
    """An instance could not be written to, or read from, the spool."""


class DiskReserveError(SpoolError):
    """The disk is below its reserve: free space or lower ``receiver.reserve_bytes``."""


class DatabaseError(DaemonError):
    """The database of index and queue cannot be opened."""


class DatabaseFullError(DatabaseError):
    """The database of index and queue is out of disk, memory or connections."""


class StudyError(DaemonError):
    """The study is unknown or cannot be put together."""


class EncodeError(DaemonError):
    """A result object could not be made."""


class SendError(DaemonError):
    """A destination did not accept an instance."""
