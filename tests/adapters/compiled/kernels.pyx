# cython: language_level=3
"""What a Cython user writes: rows of a matrix shared among threads that hold no GIL."""
cimport fastdrop
from cython.parallel cimport prange
from libc.stdint cimport uint8_t, uint64_t

import numpy as np

fastdrop.import_fastdrop()


def dropout(float[:, ::1] x, double p, uint64_t seed, uint64_t call):
    y = np.empty_like(x)
    cdef float[:, ::1] rows = y
    cdef Py_ssize_t i
    cdef size_t n = x.shape[1]
    for i in prange(x.shape[0], nogil=True):
        fastdrop.api.forward(fastdrop.FLOAT32, &x[i, 0], &rows[i, 0], NULL, n, i * n, seed, call, p)
    return y


def forward_and_back(double[::1] x, double[::1] dy, double p, uint64_t seed, uint64_t call):
    """In place. Returns the keep bits, which were drawn twice."""
    cdef size_t n = x.shape[0]
    bits, again = (np.zeros(fastdrop.BITS_BYTES(n), np.uint8) for _ in range(2))
    cdef uint8_t[::1] saved = bits, drawn = again
    with nogil:
        fastdrop.api.forward(fastdrop.FLOAT64, &x[0], &x[0], &saved[0], n, 0, seed, call, p)
        fastdrop.api.backward(fastdrop.FLOAT64, &dy[0], &dy[0], &saved[0], n, p)
        fastdrop.api.draw(&drawn[0], n, 0, seed, call, p)
    return bits[:-8], again[:-8]
