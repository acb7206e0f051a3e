"""Pixel sources: the header of one stored instance and where the bytes of each of its frames lie.

Everything here is read before a decoder runs: sizes are bounded, a length in the file is never
trusted beyond the end of the file, and pixel data stays on disk until one frame is asked for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from adapters.bounded import HEADER_LIMIT_BYTES, BoundedReader, inflate
from adapters.errors import DecodeError

# A deflated data set is unpacked in memory as a whole (PS3.5 A.5).
INFLATED_LIMIT_BYTES = 256 * 2**20
# A real header has some hundred elements; each costs far more memory than its bytes.
_MAX_ELEMENTS = 50_000
# Values above this stay on disk until they are asked for.
_DEFER_BYTES = 2**20
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_UNDEFINED = 0xFFFFFFFF
# Transfer syntaxes without encapsulation (PS3.5 A.1, A.2, A.3, A.5); every other one compresses frames.
NATIVE = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)


@dataclass(frozen=True, slots=True)
class PixelSource:
    """The header of one instance, and where its pixel data lies.

    Parameters
    ----------
    header
        Everything before the pixel data; `file_meta` included.
    path
        Of the file; None when `data` holds the bytes.
    data
        The unpacked data set of a deflated file, or a data set's own pixel data; else None.
    tag
        (7FE0,0010), of float or double float pixel data, or 0 without any.
    vr
        Of the pixel data; "" under implicit VR.
    offset
        Of the pixel data's value in the file or in `data`.
    length
        Of the value in bytes, as the file claims; None if undefined (encapsulated).
    size
        Of the file or of `data` in bytes.
    spans
        Fragments of the frames once `adapters.fragments` has found them, by number of frames.
    """

    header: Dataset
    path: Path | None
    data: bytes | None
    tag: int
    vr: str
    offset: int
    length: int | None
    size: int
    spans: dict[int, tuple[tuple[tuple[int, int], ...], ...]] = field(default_factory=dict, compare=False)

    @property
    def transfer_syntax_uid(self) -> UID:
        """The transfer syntax; "" if the file does not name one."""
        meta = getattr(self.header, "file_meta", None)
        return UID(str(meta.get("TransferSyntaxUID", "") or "")) if meta is not None else UID("")

    def open(self) -> BinaryIO:
        """Return a stream over the bytes that `offset` counts in; the caller closes it."""
        if self.data is not None:
            return io.BytesIO(self.data)
        assert self.path is not None  # by construction: a source has one of the two
        return self.path.open("rb")

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`, fewer at the end of the file."""
        with self.open() as stream:
            stream.seek(offset)
            return stream.read(max(0, min(length, self.size - offset)))


def read_source(path: Path) -> PixelSource:
    """Read one file's header and find its pixel data, without reading the pixel data.

    Parameters
    ----------
    path
        A DICOM file; a missing preamble or file meta group is tolerated.

    Returns
    -------
    PixelSource
        Of the instance; kept for the last few files, so that frames of one object share it.

    Raises
    ------
    DecodeError
        The file is no DICOM, is damaged before its pixel data, or is over a limit.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DecodeError("the file cannot be opened; look at its permissions and the disk") from error
    return _read_cached(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _read_cached(path: Path, mtime_ns: int, size: int) -> PixelSource:
    return _guard(lambda: _read(path, size))


def _guard(read: Callable[[], PixelSource]) -> PixelSource:
    try:
        return read()
    except (DecodeError, KeyboardInterrupt, SystemExit):
        raise
    except MemoryError as error:
        raise DecodeError("the header does not fit into memory") from error
    # pydicom raises nearly anything on a damaged header: struct.error, KeyError, RecursionError, ….
    except Exception as error:
        raise DecodeError(f"the header is damaged ({type(error).__name__})") from error


def _read(path: Path, size: int) -> PixelSource:
    with io.FileIO(os.fspath(path)) as raw, BoundedReader(raw, size) as stream:
        meta = read_meta(stream)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raw.seek(stream.tell())
            parts, is_more = inflate(raw, INFLATED_LIMIT_BYTES)
            if is_more:
                limit = INFLATED_LIMIT_BYTES // 2**20
                raise DecodeError(f"the deflated data set unpacks to more than {limit} MiB")
            data = b"".join(parts)
            unpacked = BoundedReader(io.BytesIO(data), len(data))
            header, found = _read_until_pixels(unpacked, None)
            header.file_meta = meta
            return _locate(unpacked, header, found, None, data, len(data))
        stream.seek(0)
        header, found = _read_until_pixels(stream, _DEFER_BYTES)
        return _locate(stream, header, found, path, None, size)


def read_meta(stream: BinaryIO) -> FileMetaDataset:
    """Return the file meta group (PS3.10 7.1), empty if there is none; leave the stream behind it."""
    if stream.read(132)[128:] != b"DICM":
        stream.seek(0)
    try:
        group = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    except Exception:
        # A headerless file may look like anything; the data set is read by pydicom's own rules below.
        return FileMetaDataset()
    return FileMetaDataset(group)


def _read_until_pixels(stream: BinaryIO, defer: int | None) -> tuple[Dataset, int]:
    found, elements = [0], [0]

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        elements[0] += 1
        if elements[0] > _MAX_ELEMENTS:
            raise DecodeError(f"the header has more than {_MAX_ELEMENTS} elements")
        if tag in _PIXEL_TAGS:
            found[0] = int(tag)
        return found[0] != 0

    header = read_partial(stream, at_pixels, defer_size=defer, force=True)
    if not len(header):
        raise DecodeError("the file is not DICOM")
    _check_deferred(header)
    return header, found[0]


def _check_deferred(header: Dataset) -> None:
    """Refuse functional groups left on disk that hold far more than the object's frames need."""
    frames = header.get("NumberOfFrames")
    most = 2**20 + 2**16 * (int(frames) if isinstance(frames, int) else 1)
    for tag in (0x52009229, 0x52009230):
        element: object = header.get_item(tag)
        if isinstance(element, RawDataElement) and element.length > min(most, HEADER_LIMIT_BYTES):
            raise DecodeError("the functional groups are larger than the object's frames explain")


def _locate(
    stream: BinaryIO, header: Dataset, tag: int, path: Path | None, data: bytes | None, size: int
) -> PixelSource:
    """Read VR and length of the pixel data (PS3.5 7.1), where the stream stopped."""
    if not tag:
        return PixelSource(header, path, data, 0, "", size, 0, size)
    head = stream.read(8)
    vr, length = "", head[4:8]
    # The bytes decide, not the transfer syntax, which may lie: these VRs are odd lengths otherwise.
    if head[4:6] in {b"OB", b"OW", b"UN", b"OF", b"OD"}:
        vr, length = head[4:6].decode("ascii"), stream.read(4)
    little = header.original_encoding[1] is not False
    count = int.from_bytes(length, "little" if little else "big")
    return PixelSource(
        header, path, data, tag, vr, stream.tell(), None if count == _UNDEFINED else count, size
    )


def source_of(ds: Dataset) -> PixelSource:
    """Return the source of a data set in memory that holds its own pixel data.

    Parameters
    ----------
    ds
        With PixelData, as read by pydicom or made by a program.

    Returns
    -------
    PixelSource
        Its `header` is `ds` itself.

    Raises
    ------
    DecodeError
        It holds no pixel data.
    """
    if "PixelData" not in ds:
        raise DecodeError("the object has no pixel data")
    element = ds["PixelData"]
    data = bytes(element.value or b"")
    meta = getattr(ds, "file_meta", None)
    syntax = UID(str(meta.get("TransferSyntaxUID", "") or "")) if meta is not None else UID("")
    length = len(data) if not syntax or syntax in NATIVE else None
    return PixelSource(ds, None, data, 0x7FE00010, element.VR, 0, length, len(data))
