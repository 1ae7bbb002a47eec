"""Any layout of x gives the mask of its C-order copy; out may be any layout, too."""

import numpy as np
from helpers.bitwise import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdrop as fd
from fastdrop import reference

shapes = st.lists(st.integers(0, 9), max_size=5).map(tuple)


@st.composite
def layouts(draw, shape=None):
    """An array of some shape as a permuted, strided, reversed, broadcast or shifted view."""
    shape = draw(shapes) if shape is None else shape
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    shift = draw(st.sampled_from([0, 0, 1, 3]))  # bytes off alignment
    dtype = np.dtype(draw(st.sampled_from(["f4", "f8"])))
    base_shape = [shape[d] * abs(steps[d]) for d in order]
    size = int(np.prod(base_shape, dtype=int))
    raw = np.zeros(size * dtype.itemsize + shift, np.uint8)
    base = raw[shift:].view(dtype).reshape(base_shape)
    base[...] = np.arange(1, size + 1).reshape(base_shape)
    view = base.transpose(np.argsort(order))
    view = view[tuple(slice(None, None, s) for s in steps)]
    for d, n in enumerate(shape):
        if n and draw(st.integers(0, 7)) == 0:
            view = np.broadcast_to(view[(slice(None),) * d + (slice(0, 1),)], shape)
    assert view.shape == shape
    return view


@given(layouts(), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.data())
@settings(max_examples=300)
def test_layout_never_matters(x, p, data):
    before = x.copy()
    axes = tuple(d for d in range(x.ndim) if data.draw(st.booleans()))
    expected, mask = reference.dropout(x.copy("C"), p, 3, 1, axes)
    save = data.draw(st.sampled_from(["bits", "seed"]))
    y, ctx = fd.dropout(x, p, rng=fd.Rng(3, 1), shared_axes=axes, save=save)
    assert_same_bits(y, expected)
    np.testing.assert_array_equal(ctx.mask(), mask)
    np.testing.assert_array_equal(x, before)

    out = np.full_like(data.draw(layouts(x.shape)), 7, x.dtype)
    assert fd.dropout(x, p, rng=fd.Rng(3, 1), shared_axes=axes, out=out)[0] is out
    assert_same_bits(out, expected)

    dy = data.draw(layouts(x.shape))
    assert_same_bits(ctx.backward(dy), reference.apply(dy.copy("C"), mask, p))


def test_overlapping_out_is_as_if_copied_first():
    """10,000 pairs of views of one buffer, of 1 to 5 axes, each the other way round or stepped."""
    choose = np.random.default_rng(0).integers
    values = np.arange(1, 4001, dtype=np.float32)

    def view(base, shape):
        strides, step = [], int(choose(1, 4))
        for n in reversed(shape):
            strides.append(4 * step)
            step *= n
        if step > 3000:  # from the first to the last element
            strides = np.cumprod([4, *shape[:0:-1]])
        start = base[int(choose(0, 300)) :]
        window = np.lib.stride_tricks.as_strided(start, shape, strides[::-1])
        return window[
            tuple(slice(None, None, 1 - 2 * int(flip)) for flip in choose(0, 2, len(shape)))
        ]

    for i in range(10_000):
        base = values.copy()
        shape = tuple(choose(1, 9 if i % 5 < 3 else 5, i % 5 + 1).tolist())
        x, out = view(base, shape), view(base, shape)
        expected, _ = fd.dropout(x.copy(), 0.3, rng=i)
        assert fd.dropout(x, 0.3, rng=i, out=out)[0] is out
        assert np.array_equal(out, expected)


def test_memory_order_of_the_result():
    x = np.ones((5, 6, 7), np.float32)
    assert fd.dropout(x, 0.3, rng=1)[0].flags.c_contiguous
    assert fd.dropout(np.asfortranarray(x), 0.3, rng=1)[0].flags.f_contiguous
    y, _ = fd.dropout(x.transpose(1, 0, 2), 0.3, rng=1)
    assert y.strides == x.transpose(1, 0, 2).strides


def test_misaligned(isa, dtype):
    size = 1000 * np.dtype(dtype).itemsize
    values = np.arange(1000, dtype=dtype)
    expected, _ = reference.dropout(values, 0.3, 1, 0)
    for shift in range(64):
        x = np.zeros(size + 64, np.uint8)[shift : shift + size].view(dtype)
        x[:] = values
        y, _ = fd.dropout(x, 0.3, rng=1)
        assert_same_bits(y, expected)
        fd.dropout(x, 0.3, rng=1, out=x)
        assert_same_bits(x.copy(), expected)


def test_byte_swapped(dtype):
    x = np.arange(100).astype(np.dtype(dtype).newbyteorder(">"))
    y, _ = fd.dropout(x, 0.3, rng=1)
    assert y.dtype == dtype
    assert y.dtype.isnative
    assert_same_bits(y, fd.dropout(x.astype(dtype), 0.3, rng=1)[0])


def test_read_only_input():
    x = np.ones(100)
    x.flags.writeable = False
    y, ctx = fd.dropout(x, 0.3, rng=1)
    assert y.flags.writeable
    ctx.backward(x)


def test_subclasses_become_plain_arrays():
    x = np.ones((4, 4)).view(np.matrix) if hasattr(np, "matrix") else np.ones((4, 4))
    y, _ = fd.dropout(x, 0.3, rng=1)
    assert type(y) is np.ndarray


def test_many_dimensions(isa):
    x = np.arange(2.0**10).reshape((2,) * 10 + (1,) * 54)
    assert x.ndim == 64
    for v in (x, x.T):
        y, _ = fd.dropout(v, 0.3, rng=1)
        assert_same_bits(y.ravel(), reference.dropout(v.ravel(), 0.3, 1, 0)[0])


def test_large_strided(isa):
    """More than a tile along the strided axis, and contiguous memory with broken mask runs."""
    x = np.arange(30_000, dtype=np.float32)
    for v in (x[::2], x[::-1], x.reshape(100, 300).T, x.reshape(10, 10, 300).transpose(1, 0, 2)):
        y, _ = fd.dropout(v, 0.2, rng=1)
        assert_same_bits(y, reference.dropout(v.copy("C"), 0.2, 1, 0)[0])
