"""The File Meta group that we write, and the UIDs at the start of a data set; no pixel is touched."""

import os
import struct
from dataclasses import dataclass
from io import BytesIO, FileIO
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.tag import BaseTag, Tag

from adapters.bounded import BoundedReader
from daemon.attributes import parsing, read_start

# Ours, in the form of PS3.5 B.2; it never changes with the version.
IMPLEMENTATION_CLASS_UID = "2.25.104158263548112873908129943171853490113"
IMPLEMENTATION_VERSION_NAME = "ANOMALYDAEMON"

_SOP_CLASS = Tag(0x0008, 0x0016)
_SOP_INSTANCE = Tag(0x0008, 0x0018)
_STUDY = Tag(0x0020, 0x000D)
_SERIES = Tag(0x0020, 0x000E)


class Uids(NamedTuple):
    """The UIDs in a data set; one that it lacks is empty."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


@dataclass(frozen=True, slots=True)
class Header:
    """The UIDs of one instance; one that the data set lacks is empty."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str

    @property
    def uids(self) -> Uids:
        """Those of the data set."""
        return Uids(
            self.sop_class_uid, self.sop_instance_uid, self.study_instance_uid, self.series_instance_uid
        )


def read_file_header(path: Path) -> tuple[Header, int]:
    """Read the UIDs of a file in the DICOM File Format (PS3.10).

    Returns
    -------
    tuple of Header and int
        The UIDs, and where in the file the data set starts.

    Raises
    ------
    SpoolError
        The file cannot be parsed as far as the UIDs.
    """
    with parsing(), FileIO(os.fspath(path)) as raw:
        size = os.fstat(raw.fileno()).st_size
        stream = BoundedReader(raw, size)
        read_preamble(stream, force=False)
        meta = _read_file_meta_info(stream)
        offset = stream.tell()
        syntax = str(meta.TransferSyntaxUID)
        raw.seek(offset)
        header = Header(
            **_read_start(raw, size, syntax)._asdict(),
            transfer_syntax_uid=syntax,
            calling_ae=str(meta.get("SourceApplicationEntityTitle", "") or ""),
        )
    return header, offset


def read_uids(stream: BytesIO, transfer_syntax_uid: str) -> Uids:
    """Read the UIDs of a data set from its start.

    Raises
    ------
    SpoolError
        It cannot be parsed as far as the UIDs.
    """
    with parsing():
        return _read_start(stream, len(stream.getbuffer()), transfer_syntax_uid)


def _read_start(raw: FileIO | BytesIO, size: int, transfer_syntax_uid: str) -> Uids:
    wanted = (_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES)
    ds = read_start(raw, size, transfer_syntax_uid, wanted)
    return Uids(*(_uid(ds, tag) for tag in wanted))


def _uid(ds: Dataset, tag: BaseTag) -> str:
    element = ds.get(tag)
    value = element.value if element is not None else None
    return str(value).strip(" \x00") if value else ""


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, calling_ae: str) -> bytes:
    """Return preamble, prefix and File Meta group (PS3.10 7.1), always Explicit VR Little Endian."""
    elements = b"".join(
        (
            struct.pack("<HH2sxxL", 2, 0x0001, b"OB", 2) + b"\x00\x01",
            _short(0x0002, b"UI", sop_class_uid),
            _short(0x0003, b"UI", sop_instance_uid),
            _short(0x0010, b"UI", transfer_syntax_uid),
            _short(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _short(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
            _short(0x0016, b"AE", calling_ae),
        )
    )
    length = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(elements))
    return b"\x00" * 128 + b"DICM" + length + elements


def _short(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    if len(value) % 2:
        value += b"\x00" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value
