"""One instance in the journal: its record, the memory that it arrives in, and how both are read again.

A segment is a sequence of blocks of 4 KB::

    segment header | record header | data set … | record header | data set … | …

Every header is JSON with its length and checksum. A record counts when it names the segment's present
generation, which no peer can guess, and its data set has the checksum that it states.
"""

import contextlib
import hashlib
import json
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from daemon.part import StoredInstance

BLOCK = 4096
# Instances up to this size go through the journal.
SMALL_BYTES = 1024 * 1024
SEGMENT, RECORD = b"ADJS", b"ADJR"
_HEAD = struct.Struct("<4sLL")


@dataclass(frozen=True, slots=True)
class Record:
    """What the journal says of one data set."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    size_bytes: int
    checksum: str

    def fields(self) -> dict[str, object]:
        """Return it as JSON writes it."""
        return {name: getattr(self, name) for name in self.__slots__}

    def stored(self, path: str, received_at: float) -> StoredInstance:
        """Return it as what it becomes under a path, unless the same UID came with other bytes before."""
        return StoredInstance(
            study_instance_uid=self.study_instance_uid,
            series_instance_uid=self.series_instance_uid,
            sop_instance_uid=self.sop_instance_uid,
            sop_class_uid=self.sop_class_uid,
            transfer_syntax_uid=self.transfer_syntax_uid,
            path=path,
            size_bytes=self.size_bytes,
            received_at=received_at,
            calling_ae=self.calling_ae,
        )


class Page:
    """Memory for one instance on its way into the journal: a block for its header, then its data set."""

    def __init__(self) -> None:
        # Direct writes want memory that starts at a block; untouched pages of it cost nothing.
        self._view = memoryview(mmap.mmap(-1, BLOCK + SMALL_BYTES))
        self.used = 0

    @property
    def data(self) -> memoryview:
        """The data set so far."""
        return self._view[BLOCK : BLOCK + self.used]

    def append(self, pieces: list[memoryview]) -> None:
        """Copy bytes behind those that are there."""
        at = BLOCK + self.used
        for piece in pieces:
            self._view[at : at + len(piece)] = piece
            at += len(piece)
        self.used = at - BLOCK

    def sealed(self, record: Record, generation: str) -> memoryview:
        """Write the record's header before the data set and return all of it, in whole blocks."""
        self._view[:BLOCK] = header(RECORD, {"generation": generation} | record.fields())
        return self._view[: blocks(self.used)]


def read_segment(path: Path) -> Iterator[tuple[Record, bytes]]:
    """Yield every complete record of a segment that a process left behind."""
    with path.open("rb") as stream:
        start = _read_header(stream.read(BLOCK), SEGMENT)
        if start is None:
            return
        at = BLOCK
        while block := stream.read(BLOCK):
            fields = _read_header(block, RECORD)
            at += BLOCK
            if fields is None or fields.pop("generation", "") != start["generation"]:
                # A hole: a write that was under way when the process or the machine ended.
                continue
            with contextlib.suppress(TypeError, KeyError):
                record, is_whole = _checked(fields, data := stream.read(fields["size_bytes"]))
                if is_whole:
                    yield record, data
                    at += blocks(record.size_bytes) - BLOCK
            stream.seek(at)


def checksum(data: bytes | memoryview) -> str:
    """Return what a record states of its data set: enough to see that all of it was written."""
    return xxhash.xxh3_128_hexdigest(data)


def _checked(fields: dict[str, Any], data: bytes) -> tuple[Record, bool]:
    """Return a record, and whether its data set is whole.

    Raises
    ------
    TypeError
        It is no record.
    """
    found = checksum(data)
    # Until xxh3 was used a record had a SHA-256: the segment may be one of an earlier version.
    if (sha256 := fields.pop("sha256", None)) is not None:
        return Record(checksum=found, **fields), hashlib.sha256(data).hexdigest() == sha256
    record = Record(**fields)
    return record, record.checksum == found


def header(kind: bytes, fields: dict[str, object]) -> bytes:
    """Return a header as a block.

    Raises
    ------
    ValueError
        It does not fit into one.
    """
    text = json.dumps(fields).encode()
    block = _HEAD.pack(kind, len(text), zlib.crc32(text)) + text
    if len(block) > BLOCK:
        raise ValueError("the UIDs are too long for a header")
    return block.ljust(BLOCK, b"\x00")


def _read_header(block: bytes, kind: bytes) -> dict[str, Any] | None:
    if len(block) < BLOCK:
        return None
    found, length, checksum = _HEAD.unpack_from(block)
    text = block[_HEAD.size : _HEAD.size + length]
    if found != kind or length > BLOCK or zlib.crc32(text) != checksum:
        return None
    fields = json.loads(text)
    return fields if isinstance(fields, dict) else None


def blocks(size_bytes: int) -> int:
    """Return how many bytes a record takes with a data set of this size."""
    return BLOCK + -(-size_bytes // BLOCK) * BLOCK
