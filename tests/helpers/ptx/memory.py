"""Global memory, and who used which byte of it."""

from __future__ import annotations

import numpy as np


class Fault(Exception):
    """What a GPU would refuse, corrupt or leave undefined, or what the interpreter lacks."""


class Memory:
    """Device memory: arrays at made-up addresses, with gaps between that nobody may touch."""

    BASE, GUARD = 1 << 40, 4096

    def __init__(self, nbytes: int = 1 << 26) -> None:
        self.bytes = np.zeros(nbytes, np.uint8)
        self.arrays: dict[int, np.ndarray] = {}  # what was put there, by address
        self.end = self.GUARD

    def put(self, array: np.ndarray, offset: int = 0) -> int:
        """Copies an array in; returns its address, which is `offset` modulo 256."""
        start = self.end + -self.end % 256 + offset
        self.end = start + array.nbytes + self.GUARD
        if self.end > self.bytes.size:
            raise MemoryError(f"{self.bytes.size} bytes are too few")
        self.bytes[start : start + array.nbytes] = np.ascontiguousarray(array).ravel().view("u1")
        self.arrays[self.BASE + start] = array
        return self.BASE + start

    def get(self, address: int) -> np.ndarray:
        """What now stands where an array was put."""
        array, start = self.arrays[address], address - self.BASE
        held = self.bytes[start : start + array.nbytes].copy()
        return held.view(array.dtype).reshape(array.shape)

    def rows(self, address: np.ndarray, width: int) -> np.ndarray:
        """Which rows of ``bytes.reshape(-1, width)`` these accesses mean, if they are allowed."""
        width = np.uint64(width)
        if (astray := address % width != 0).any():
            raise Fault(f"misaligned: {width} bytes at {address[astray][0]:#x}")
        starts = np.array(sorted(self.arrays), np.uint64)
        ends = starts + np.array([self.arrays[int(s)].nbytes for s in starts], np.uint64)
        which = np.searchsorted(starts, address, "right") - 1
        if (astray := (which < 0) | (address + width > ends[which])).any():
            raise Fault(f"out of bounds: {width} bytes at {address[astray][0]:#x}")
        return (address - np.uint64(self.BASE)) // width


class Owners:
    """Which thread read and wrote each byte in one launch; a thread is named by its number + 1.

    Threads of a real GPU run in any order: bytes that one writes are no other's business.
    """

    MANY = np.uint32(0xFFFFFFFF)

    def __init__(self, nbytes: int) -> None:
        self.reader, self.writer = np.zeros(nbytes, np.uint32), np.zeros(nbytes, np.uint32)

    def load(self, row: np.ndarray, width: int, me: np.ndarray, constant: bool) -> None:
        """`constant`: by ld.global.nc, so nobody may write there, not even the reader."""
        reader, writer = self.reader.reshape(-1, width), self.writer.reshape(-1, width)
        if writer[row].any() and (constant or self.foreign(writer[row], me)):
            raise Fault("race: a byte was read that another thread wrote")
        before = reader[row]
        reader[row] = self.MANY if constant else me
        if before.any() or (reader[row][:, :1] != me).any():
            shared = (before != 0) & (before != me) | (reader[row] != me)
            at, column = np.nonzero(shared)
            reader[row[at], column] = self.MANY

    def store(self, row: np.ndarray, width: int, me: np.ndarray) -> None:
        reader, writer = self.reader.reshape(-1, width), self.writer.reshape(-1, width)
        for held in (reader[row], writer[row]):
            if held.any() and self.foreign(held, me):
                raise Fault("race: a byte was written that another thread read or wrote")
        writer[row] = me
        if (writer[row][:, :1] != me).any():
            raise Fault("race: two threads wrote one byte at once")

    @staticmethod
    def foreign(held: np.ndarray, me: np.ndarray) -> bool:
        return bool(((held != 0) & (held != me)).any())
