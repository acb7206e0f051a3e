"""association → spool → study → slices → scores → findings → SEG/SR → destination.

Each noun of that sentence is one file of this package (slices and scores live in
``adapters``); ``daemon.pipeline`` is the sentence in code. Research use only, not for diagnosis.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pacs-anomaly-daemon")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
