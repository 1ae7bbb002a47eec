# DropBlock.

def bytes_of_examples(size_t examples, size_t bits, /):
    """How long the keep bits are that `drop_blocks` returns, BITS_PAD included."""
    return examples * FD_WORDS(bits) * sizeof(uint64_t) + FD_BITS_PAD


def drop_blocks(bytes seeds, tuple shape, size_t block_height, size_t block_width, /):
    """Keep bits of maps, in which each zero of `seeds` begins a square.

    Parameters
    ----------
    seeds : bytes
        Packed mask of shape (examples, maps, height - block_height + 1, width - block_width + 1).
    shape : tuple
        examples, maps, height, width; none is 0.

    Returns
    -------
    bytes
        Those of each example begin with a word of 64 bits.
    """
    examples, maps, height, width = shape
    if not 0 < block_height <= height or not 0 < block_width <= width or maps <= 0:
        refused("squares", "fit into maps")
    drawn = examples * maps * (height - block_height + 1) * (width - block_width + 1)
    mask_of(seeds, drawn)
    cdef fd_squares squares = fd_squares(maps, height, width, block_height, block_width)
    cdef size_t n = examples
    cdef bytes keep = PyBytes_FromStringAndSize(
        NULL, bytes_of_examples(n, squares.maps * squares.height * squares.width)
    )
    cdef const uint8_t *zeros = <const uint8_t *> PyBytes_AsString(seeds)
    cdef uint64_t *words = <uint64_t *> PyBytes_AsString(keep)
    with nogil:
        fd_drop_squares(machine(), squares, n, zeros, words)
    return keep


def apply_examples(cnp.ndarray x, cnp.ndarray y, bytes keep, bint per_channel, bint given, /):
    """y = x * scale where kept, else 0, with scale = elements / kept elements of the example.

    Parameters
    ----------
    x, y : ndarray
        Not empty, of the shape that `drop_blocks` was given; if not per_channel, that had one map,
        which is for all channels.
    keep : bytes
        What `drop_blocks` returned.
    given : bool
        Whether y is the caller's.
    """
    global deliveries
    cdef fd_task task
    known(x, "x")
    alike(x, y, "y")
    cdef int ndim = cnp.PyArray_NDIM(x)
    if ndim < 2 or not cnp.PyArray_SIZE(x):
        refused("x", "have examples and channels")
    cdef int64_t bits = cnp.PyArray_SIZE(x) // cnp.PyArray_DIM(x, 0)
    cdef fd_axis axis[64]
    set_task(&task, FD_DROPOUT, x, y, 1)
    set_axes(x, y, None, axis)
    if not per_channel:
        bits //= axis[1].n
        axis[1].bit = 0
    if keep is None or len(keep) < bytes_of_examples(cnp.PyArray_DIM(x, 0), bits):
        refused("keep", "hold one bit for each element")
    cdef const uint64_t *words = <const uint64_t *> PyBytes_AsString(keep)
    with nogil:
        fd_apply_examples(&task, words, bits, ndim, axis)
    deliveries += given
