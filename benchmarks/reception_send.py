"""Objects to send, and two senders: DCMTK's storescu, and a raw one that costs next to nothing itself."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian

from benchmarks.peers import program

CT, ENHANCED_CT, MR = (f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "2.1", "4"))
_EXPLICIT = str(ExplicitVRLittleEndian)
_ROOT = "1.2.826.0.1.3680043.10.999"
_PDU_BYTES = 131_072
_NODELAY = {**os.environ, "TCP_NODELAY": "1"}
_runs = itertools.count(time.time_ns() // 1_000_000_000 % 10_000_000 * 1_000)


@dataclass(frozen=True, slots=True)
class Kind:
    """What one pass sends.

    Parameters
    ----------
    name
        In the table.
    sop_class, rows, frames
        Of each object; 16 bits a pixel.
    count
        Objects in a pass.
    """

    name: str
    sop_class: str
    rows: int
    frames: int
    count: int

    @property
    def size_bytes(self) -> int:
        """Of the pixels of one object."""
        return self.rows * self.rows * self.frames * 2


KINDS = (
    Kind("CT slice, 0.5 MB", CT, 512, 1, 300),
    Kind("small slice, 0.1 MB", MR, 224, 1, 600),
    Kind("multi-frame, 150 MB", ENHANCED_CT, 512, 286, 1),
)


@dataclass(frozen=True, slots=True)
class Sendable:
    """One encoded object."""

    sop_class: str
    sop_instance: str
    content: bytes


def objects(kind: Kind) -> list[Sendable]:
    """Make a pass' objects, of one study and with UIDs that no pass before had."""
    run = next(_runs)
    pixels = np.random.default_rng(1).integers(0, 4096, kind.size_bytes // 2, dtype=np.uint16).tobytes()
    made = []
    for number in range(kind.count):
        sop = f"{_ROOT}.{run}.1.{number}"
        made.append(Sendable(kind.sop_class, sop, _encode(kind, run, number, sop, pixels)))
    return made


def _encode(kind: Kind, run: int, number: int, sop: str, pixels: bytes) -> bytes:
    ds = Dataset()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID, ds.SOPInstanceUID = kind.sop_class, sop
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber = "20240102", "120000", "A1"
    ds.Modality, ds.Manufacturer, ds.SeriesDescription = "CT", "Synthetic", "Benchmark"
    ds.PatientName, ds.PatientID = "Phantom", "P-1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{_ROOT}.{run}", f"{_ROOT}.{run}.1"
    ds.InstanceNumber, ds.ImagePositionPatient = number + 1, [0, 0, number]
    ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.7, 0.7]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    if kind.frames > 1:
        ds.NumberOfFrames = kind.frames
    ds.Rows = ds.Columns = kind.rows
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, ds)
    return buffer.getvalue() + struct.pack("<HH2sxxL", 0x7FE0, 0x0010, b"OW", len(pixels)) + pixels


def send_raw(port: int, called: str, dealt: Sequence[list[Sendable]]) -> tuple[float, list[float]]:
    """Send each list over its own association; returns the whole time and each object's, in seconds."""
    senders = [_Raw(port, called, items) for items in dealt]
    started = time.perf_counter()
    with ThreadPoolExecutor(len(senders)) as pool:
        times = [second for many in pool.map(_Raw.send, senders) for second in many]
    return time.perf_counter() - started, times


class _Raw:
    """One association whose messages are encoded before it is opened."""

    def __init__(self, port: int, called: str, items: Iterable[Sendable]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 600.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        syntax = _item(0x40, _EXPLICIT.encode())
        contexts = b"".join(
            _item(0x20, struct.pack(">Bxxx", 2 * n + 1) + _item(0x30, uid.encode()) + syntax)
            for n, uid in enumerate((CT, ENHANCED_CT, MR))
        )
        user = _item(0x51, struct.pack(">L", _PDU_BYTES)) + _item(0x52, _ROOT.encode())
        body = struct.pack(">HH", 1, 0) + called.ljust(16).encode() + b"BENCH".ljust(16) + bytes(32)
        body += _item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + _item(0x50, user)
        self._socket.sendall(struct.pack(">BxL", 1, len(body)) + body)
        answer = self._answer()
        if answer[0] != 2:
            raise SystemExit("benchmark: the receiver refused the association")
        # PS3.8 D.1: the longest PDU that the receiver takes.
        at = answer.index(b"\x51\x00\x00\x04") + 4
        longest = int.from_bytes(answer[at : at + 4], "big") or _PDU_BYTES
        step = min(longest, _PDU_BYTES) - 6
        self._messages = [_message(number, item, step) for number, item in enumerate(items, 1)]

    def _answer(self) -> bytes:
        data = b""
        while len(data) < 6 or len(data) < 6 + int.from_bytes(data[2:6], "big"):
            piece = self._socket.recv(4096)
            if not piece:
                raise SystemExit("benchmark: the receiver closed the connection")
            data += piece
        return data

    def send(self) -> list[float]:
        """Send everything, each object after the answer to the one before, then release."""
        times = []
        for message in self._messages:
            started = time.perf_counter()
            self._socket.sendall(message)
            if b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00" not in self._answer():
                raise SystemExit("benchmark: an object was not stored")
            times.append(time.perf_counter() - started)
        self._socket.sendall(struct.pack(">BxLL", 5, 4, 0))
        self._answer()
        self._socket.close()
        return times


def _message(number: int, item: Sendable, step: int) -> bytes:
    context = 2 * (CT, ENHANCED_CT, MR).index(item.sop_class) + 1
    elements = _element(0x0002, _even(item.sop_class)) + _element(0x0100, b"\x01\x00")
    elements += _element(0x0110, struct.pack("<H", number)) + _element(0x0700, b"\x00\x00")
    elements += _element(0x0800, b"\x01\x00") + _element(0x1000, _even(item.sop_instance))
    command = _element(0x0000, struct.pack("<L", len(elements))) + elements
    parts = [struct.pack(">BxLLBB", 4, len(command) + 6, len(command) + 2, context, 3), command]
    for at in range(0, len(item.content), step):
        piece = item.content[at : at + step]
        last = 2 if at + step >= len(item.content) else 0
        parts += [struct.pack(">BxLLBB", 4, len(piece) + 6, len(piece) + 2, context, last), piece]
    return b"".join(parts)


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, element, len(value)) + value


def _even(text: str) -> bytes:
    return text.encode() + b"\x00" * (len(text) % 2)


def send_dcmtk(port: int, called: str, dealt: Sequence[list[Sendable]], scratch: Path) -> float:
    """Send each list with a storescu of its own; returns the whole time in seconds."""
    commands = []
    for number, items in enumerate(dealt):
        folder = scratch / str(number)
        folder.mkdir(parents=True)
        for item in items:
            (folder / f"{item.sop_instance}.dcm").write_bytes(_file_head(item) + item.content)
        commands.append([program("storescu"), "-aec", called, "+sd", "127.0.0.1", str(port), str(folder)])
    started = time.perf_counter()
    running = [subprocess.Popen(c, env=_NODELAY, stderr=subprocess.DEVNULL) for c in commands]
    codes = [process.wait() for process in running]
    spent = time.perf_counter() - started
    shutil.rmtree(scratch)
    if any(codes):
        raise SystemExit(f"benchmark: storescu ended with {codes}")
    return spent


def _file_head(item: Sendable) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        UID(item.sop_class),
        UID(item.sop_instance),
    )
    meta.TransferSyntaxUID, meta.ImplementationClassUID = ExplicitVRLittleEndian, UID(f"{_ROOT}.1")
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta)
    return b"\x00" * 128 + b"DICM" + buffer.getvalue()
