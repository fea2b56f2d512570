"""One part of a stream, in memory that goes back to the system as soon as the part is closed.

Of tens of megabytes that come and go in threads, the C library's heap keeps what nobody uses any
more: forms one after the other took a hundred more than the largest of them needed.
"""

from __future__ import annotations

import io
import mmap
from typing import Self


class Part:
    """A buffer that is filled from a stream again and again, and read like a file in between."""

    def __init__(self, size: int) -> None:
        """Take so many bytes; they cost nothing until they are filled."""
        self.size = size
        self._memory = mmap.mmap(-1, size)
        self._length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()

    def __len__(self) -> int:
        return self._length

    def fill(self, source: io.RawIOBase) -> int:
        """Take as much from a stream as fits, or as there is; return how much, in bytes."""
        self._length = 0
        self._memory.seek(0)
        with memoryview(self._memory) as whole:
            while self._length < self.size:
                with whole[self._length :] as rest:
                    count = source.readinto(rest)
                if not count:
                    break
                self._length += count
        return self._length

    def read(self, size: int | None = None) -> bytes:
        """Return the next bytes of the part, at most ``size``."""
        left = self._length - self._memory.tell()
        return self._memory.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set where reading goes on, as files do; the end is that of the bytes filled in."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._length}[whence]
        self._memory.seek(start + offset)
        return self.tell()

    def tell(self) -> int:
        """Return where reading goes on."""
        return self._memory.tell()
