"""Attributes of a file that a peer sent: what reading them costs is bounded, and it fails in one way.

pydicom by itself unpacks a deflated data set whole (PS3.5 A.5), takes a value of any length into memory
and makes kilobytes of each empty item. Such a file may have been answered Success: the receiver reads no
further than the UIDs.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial, read_sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from adapters.bounded import HEADER_LIMIT_BYTES, BoundedReader, inflate
from adapters.errors import DecodeError
from adapters.source import read_meta
from daemon.errors import SpoolError

# Of a report or a list of segments; and of what is unpacked of a deflated data set to find an attribute.
_LIMIT_BYTES = 8 * 2**20
# Enough for lists of 30,000 referenced images; what comes of it in memory is below 100 MB.
_READS = 250_000
# What Explicit VR has room for in any value that we want (PS3.5 7.1.2), sequences apart.
_LONGEST_VALUE_BYTES = 2**16
_DEEPEST = 32
_CHARACTER_SET = Tag(0x0008, 0x0005)
# A damaged sequence, other than one over a limit.
_DAMAGED = (OSError, ValueError, TypeError, LookupError, NotImplementedError, struct.error)


@contextmanager
def parsing() -> Iterator[None]:
    """Make whatever hostile bytes cause within a SpoolError, RecursionError and MemoryError among it."""
    try:
        yield
    except SpoolError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, DecodeError) else type(error).__name__
        raise SpoolError(f"the data set cannot be parsed ({reason})") from error


@contextmanager
def attributes(path: Path, keywords: Sequence[str], limit_bytes: int = _LIMIT_BYTES) -> Iterator[Dataset]:
    """Read some attributes of a file, and look at them.

    Parameters
    ----------
    path
        A DICOM file; a missing preamble or file meta group is tolerated.
    keywords
        Of the attributes; nothing behind the last one is read.
    limit_bytes
        Of what is read, skipped values not counted.

    Yields
    ------
    Dataset
        With those that the file has. Values are converted when they are asked for, which may fail, too:
        any error in the body is a SpoolError.

    Raises
    ------
    SpoolError
        The file cannot be read within the bounds.
    """
    with parsing():
        yield _read(path, [_tag(keyword) for keyword in keywords], limit_bytes)


def _read(path: Path, tags: Sequence[BaseTag], limit_bytes: int) -> Dataset:
    until, is_more = _Until(tags), False
    with io.FileIO(os.fspath(path)) as raw:
        size = os.fstat(raw.fileno()).st_size
        with BoundedReader(raw, size, limit_bytes, _READS) as reader:
            meta, start = read_meta(reader), reader
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raw.seek(reader.tell())
                start, is_more = _unpacked(raw)
            else:
                reader.seek(0)
            ds = read_partial(start, until, force=True, specific_tags=[*tags])
    until.check(ds, is_more)
    _unfold(ds, start)
    return ds


def read_start(
    raw: io.FileIO | io.BytesIO, size: int, transfer_syntax_uid: str, tags: Sequence[BaseTag]
) -> Dataset:
    """Read plain attributes of the data set that begins where a stream stands.

    Parameters
    ----------
    raw
        The stream; it is closed.
    size
        Of all that is in it.
    transfer_syntax_uid
        How the data set is encoded.
    tags
        Of the attributes; nothing behind the last one is read.

    Returns
    -------
    Dataset
        With those that it has.

    Raises
    ------
    Exception
        Nearly any: the caller does it within :func:`parsing`.
    """
    until, is_more = _Until(tags), False
    with BoundedReader(raw, size, HEADER_LIMIT_BYTES, _READS) as reader:
        start = reader
        if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            start, is_more = _unpacked(raw)
        ds = read_dataset(
            start,
            is_implicit_VR=transfer_syntax_uid == ImplicitVRLittleEndian,
            is_little_endian=transfer_syntax_uid != ExplicitVRBigEndian,
            stop_when=until,
            specific_tags=[*tags],
        )
    until.check(ds, is_more)
    return ds


def _unpacked(raw: io.FileIO | io.BytesIO) -> tuple[BoundedReader, bool]:
    """The first part of a deflated data set, and whether there is more of it."""
    parts, is_more = inflate(raw, _LIMIT_BYTES)
    data = b"".join(parts)
    return BoundedReader(io.BytesIO(data), len(data), HEADER_LIMIT_BYTES, _READS), is_more


class _Until:
    """Where pydicom is to stop reading: behind the last wanted tag, or at a value that is too long."""

    def __init__(self, tags: Collection[BaseTag]) -> None:
        self._last = max(tags)
        self._plain = {tag for tag in tags if dictionary_VR(tag) != "SQ"} | {_CHARACTER_SET}
        self._is_behind = False

    def __call__(self, tag: BaseTag, _vr: str | None, length: int) -> bool:
        self._is_behind = tag > self._last
        # An undefined length is as good as endless in a value without items.
        if not self._is_behind and tag in self._plain and length > _LONGEST_VALUE_BYTES:
            raise DecodeError(f"a value is longer than {_LONGEST_VALUE_BYTES // 1024} KiB")
        return self._is_behind

    def check(self, ds: Dataset, is_more: bool) -> None:
        """Refuse what was cut where a wanted tag may lie behind the cut."""
        if is_more and not self._is_behind and self._last not in ds:
            raise DecodeError(f"the deflated data set unpacks to more than {_LIMIT_BYTES // 2**20} MiB")


def _unfold(ds: Dataset, reader: BoundedReader, depth: int = 0) -> None:
    """Parse sequences of defined length, too, which pydicom leaves for later, when nothing bounds them."""
    if depth > _DEEPEST:
        raise DecodeError(f"its sequences are nested more than {_DEEPEST} deep")
    for tag in list(ds.keys()):
        element: DataElement | RawDataElement = ds.get_item(tag)
        if not _is_sequence(element):
            continue
        if isinstance(element, RawDataElement):
            unfolded = _unfolded(element, ds, reader)
            if unfolded is None:
                continue
            ds[tag] = element = unfolded
        for item in element.value:
            _unfold(item, reader, depth + 1)


def _is_sequence(element: DataElement | RawDataElement) -> bool:
    if element.VR in (None, "UN") and dictionary_has_tag(element.tag):
        return dictionary_VR(element.tag) == "SQ"
    return element.VR == "SQ"


def _unfolded(element: RawDataElement, ds: Dataset, reader: BoundedReader) -> DataElement | None:
    value = element.value or b""
    part = BoundedReader(io.BytesIO(value), len(value), HEADER_LIMIT_BYTES, reader.reads)
    try:
        items = read_sequence(
            part,
            element.is_implicit_VR,
            element.is_little_endian,
            len(value),
            ds.original_character_set or "iso8859",
        )
    except _DAMAGED:
        # pydicom makes an OSError of the reader's own.
        if part.reads < 0:
            raise
        return None  # it stays as it is, for who asks for it
    reader.reads = part.reads
    return DataElement(element.tag, "SQ", items)


def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return Tag(tag)
