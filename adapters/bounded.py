"""What a header may cost: streams that a file's lengths cannot make larger than the file or a limit."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from adapters.errors import DecodeError

# Of one header without its pixel data; an enhanced object of 10,000 frames has about 20 MB.
HEADER_LIMIT_BYTES = 32 * 2**20
# Two for each element, three for each item; an enhanced object of 10,000 frames takes about 800,000.
MAX_READS = 1_000_000


class BoundedReader(io.BufferedReader):
    """A stream that never reads beyond its end, nor more than a header may have.

    Parameters
    ----------
    raw
        A file, or bytes in memory.
    end
        Its size in bytes.
    limit_bytes, reads
        Of all that is read, skipped values not counted; and in how many pieces.
    """

    def __init__(
        self,
        raw: io.FileIO | io.BytesIO,
        end: int,
        limit_bytes: int = HEADER_LIMIT_BYTES,
        reads: int = MAX_READS,
    ) -> None:
        super().__init__(raw)
        self._end, self._limit_bytes, self._most = end, limit_bytes, reads
        self._left, self.reads = limit_bytes, reads

    @property
    def name(self) -> str:
        """Of the file, "" for bytes in memory: pydicom asks every buffered stream for it."""
        return str(getattr(self.raw, "name", ""))

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on; a limit that is passed is a DecodeError."""
        # BufferedReader allocates `size` bytes first: a length of 4 GB in a small file would cost 4 GB.
        rest = max(0, self._end - self.tell())
        size = rest if size is None or size < 0 else min(size, rest)
        self._left, self.reads = self._left - size, self.reads - 1
        if self._left < 0:
            raise DecodeError(f"the header is larger than {self._limit_bytes // 2**20} MiB")
        if self.reads < 0:
            raise DecodeError(f"the header has more than {self._most // 3} sequence items")
        return super().read(size)


def inflate(stream: BinaryIO, limit_bytes: int) -> tuple[list[bytes], bool]:
    """Unpack a deflated data set (PS3.5 A.5) from where a stream stands.

    Parameters
    ----------
    stream
        What is behind the data set is not read.
    limit_bytes
        Unpacking ends a little after so many.

    Returns
    -------
    tuple of list of bytes and bool
        What was unpacked in pieces, and whether it is more than the limit.
    """
    unpack, parts, left = zlib.decompressobj(-zlib.MAX_WBITS), list[bytes](), limit_bytes + 1
    while left > 0 and not unpack.eof:
        if block := unpack.unconsumed_tail or stream.read(2**16):
            parts.append(unpack.decompress(block, min(left, 2**20)))
        else:
            # The end of a repetition may wait in there though every byte was taken.
            parts.append(unpack.flush())
        left -= len(parts[-1])
        if not block:
            break
    return parts, left <= 0
