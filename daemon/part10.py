"""The File Meta group that we write, and the UIDs at the start of a data set; no pixel is touched."""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from daemon.errors import SpoolError

# Ours, in the form of PS3.5 B.2; it never changes with the version.
IMPLEMENTATION_CLASS_UID = "2.25.104158263548112873908129943171853490113"
IMPLEMENTATION_VERSION_NAME = "ANOMALYDAEMON"

_SOP_CLASS = Tag(0x0008, 0x0016)
_SOP_INSTANCE = Tag(0x0008, 0x0018)
_STUDY = Tag(0x0020, 0x000D)
_SERIES = Tag(0x0020, 0x000E)
# Enough of a deflated data set for its UIDs, and a limit against one that inflates without end.
_DEFLATED_BYTES = 1024 * 1024
_INFLATED_BYTES = 8 * 1024 * 1024


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
    try:
        with path.open("rb") as stream:
            read_preamble(stream, force=False)
            meta = _read_file_meta_info(stream)
            offset = stream.tell()
            syntax = str(meta.TransferSyntaxUID)
            return (
                Header(
                    **_read_start(stream, syntax)._asdict(),
                    transfer_syntax_uid=syntax,
                    calling_ae=str(meta.get("SourceApplicationEntityTitle", "") or ""),
                ),
                offset,
            )
    # A parser fed with hostile bytes fails in many ways, RecursionError and MemoryError among them.
    except Exception as error:
        raise SpoolError(f"the data set cannot be parsed ({type(error).__name__})") from error


def read_uids(stream: BinaryIO, transfer_syntax_uid: str) -> Uids:
    """Read the UIDs of a data set from its start.

    Raises
    ------
    SpoolError
        It cannot be parsed as far as the UIDs.
    """
    try:
        return _read_start(stream, transfer_syntax_uid)
    # As above: hostile bytes.
    except Exception as error:
        raise SpoolError(f"the data set cannot be parsed ({type(error).__name__})") from error


def _read_start(stream: BinaryIO, transfer_syntax_uid: str) -> Uids:
    cut = False
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        stream = BytesIO(inflate.decompress(stream.read(_DEFLATED_BYTES), _INFLATED_BYTES))
        cut = bool(inflate.unconsumed_tail)
    ds = read_dataset(
        stream,
        is_implicit_VR=transfer_syntax_uid == ImplicitVRLittleEndian,
        is_little_endian=transfer_syntax_uid != ExplicitVRBigEndian,
        stop_when=_after_series,
        specific_tags=[_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES],
    )
    uids = Uids(_uid(ds, _SOP_CLASS), _uid(ds, _SOP_INSTANCE), _uid(ds, _STUDY), _uid(ds, _SERIES))
    if cut and not uids.series_instance_uid:
        raise EOFError  # what is missing may lie behind what we are ready to inflate
    return uids


def _after_series(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return bool(tag > _SERIES)


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
