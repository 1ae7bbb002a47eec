# The values that calls keep: the next call's number, and what a backward pass needs.
from fastdrop.base.place import Block


cdef class CallCounter:
    """Seed and next call number; `take` is one step for all threads."""

    cdef uint64_t _seed, _call

    def __init__(self, uint64_t seed, uint64_t call, /):
        with cython.critical_section(self):
            self._seed, self._call = seed, call

    def take(self):
        """(seed, call) of the next call, which is thereby used up."""
        cdef uint64_t seed, call
        with cython.critical_section(self):
            seed, call = self._seed, self._call
            self._call = call + 1
        return seed, call

    def peek(self):
        """(seed, call) of the next call."""
        cdef uint64_t seed, call
        with cython.critical_section(self):
            seed, call = self._seed, self._call
        return seed, call


cdef class Saved:
    """What a call saves for its backward pass; `fastdrop.Context` says what it means."""

    cdef readonly tuple shape
    cdef readonly double p, scale
    cdef readonly object seed, call
    cdef readonly object _block
    cdef readonly object _held  # None, bytes, or a fastdrop.device.DeviceBits

    def __init__(self, tuple shape, double p, seed, call, block, bits, double scale=-1, /):
        cdef tuple drawn = shape
        cdef int64_t n = 1
        if block is not None:
            drawn = block.shape
            if block.of != shape:
                raise ValueError("shape must be that of the block")
        if type(bits) is bytes:  # whoever made this: no kernel may read behind its end
            for d in drawn:
                n *= <int64_t> d
            if len(<bytes> bits) != (n + 7) // 8 + FD_BITS_PAD:
                raise ValueError("bits must hold one for each element that is drawn")
        self.scale = fd_scale(p) if scale < 0 else scale
        self.shape, self.p, self.seed, self.call = shape, p, seed, call
        self._block, self._held = block, bits

    @property
    def _bits(self):
        """The packed mask in the host's memory."""
        if self._held is None or type(self._held) is bytes:
            return self._held
        return self._held.fetch()
