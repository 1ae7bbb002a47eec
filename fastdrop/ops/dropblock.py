"""DropBlock: drops squares of feature maps, as neighbours of a dropped element tell what it was."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BITS_PAD
from fastdrop.backends import cpu
from fastdrop.backends.cuda.arrays import DeviceBits, cuda, fetched
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.layer import OpLayer, Rate
from fastdrop.base.place import Block
from fastdrop.base.restore import Restored
from fastdrop.ops.dropout import Region
from fastdrop.rng import RngLike, draw_call

__all__ = ["DropBlock", "DropBlockContext", "drop_block"]


@dataclass(frozen=True, slots=True)
class DropBlockContext(Restored):
    """Context of `drop_block`.

    Attributes
    ----------
    shape : tuple of int
        Shape of x.
    p : float
        The rate; 0 if ``training=False``.
    seed, call : int or None
        Name the draw: ``Rng(seed, call)`` draws the same blocks again. None if nothing was drawn.
    block_size, channels_last, per_channel
        As given to `drop_block`.
    first : int
        Index of the first example in the whole batch.
    bits : bytes, DeviceBits or None
        Packed keep mask, for which each example begins with a 64-bit word; None: drawn again.
    """

    shape: tuple[int, ...]
    p: float
    seed: int | None
    call: int | None
    block_size: int
    channels_last: bool
    per_channel: bool
    first: int = 0
    bits: bytes | DeviceBits | None = field(default=None, repr=False)

    def check(self) -> None:
        Restored.check(self)
        _maps_of(self.shape)
        held = _core.bytes_of_examples(self._drawn[0], prod(self._drawn[1:]))
        if type(self.bits) is bytes and len(self.bits) != held:
            raise ValueError(f"bits must be {held} bytes, got {len(self.bits)}")

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes."""
        if type(self.bits) is bytes:
            return len(self.bits) - BITS_PAD
        return 0 if self.bits is None else self.bits.nbytes

    @property
    def scales(self) -> npt.NDArray[np.float64]:
        """What the kept elements of each example were multiplied by: elements / kept elements.

        Shape (batch,); 0 where an example has lost all.
        """
        if not self._drops:
            return np.ones(self.shape[0])
        kept = self.mask().reshape(self.shape[0], -1).sum(axis=1)
        size = prod(self.shape[1:])
        return np.divide(size, kept, out=np.zeros(len(kept)), where=kept > 0)

    def mask(self) -> npt.NDArray[np.bool_]:
        """The keep mask: bool array of x's shape, True where the element was kept."""
        mask = np.ones(self.shape, np.bool_)
        if self._drops:
            batch, *drawn = self._drawn
            words = np.frombuffer(self._keep_bits(), np.uint8)[:-BITS_PAD].reshape(batch, -1)
            kept = np.unpackbits(words, axis=1, count=prod(drawn), bitorder="little")
            self._maps(mask)[...] = kept.reshape(self._drawn)
        return mask

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """Gradient with respect to x.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of x
        out : ndarray, optional
            Where to write; shape and dtype of `dy`. May be `dy` itself.

        Returns
        -------
        ndarray
            dy times the scale of its example where the element was kept, else +0; dtype of `dy`.
        """
        if on_device(dy):
            return cuda().backward_blocks(self, dy, out)
        dy = gate.array(dy, "dy")
        gate.like(dy, "dy", self.shape)
        dy, out = gate.output(dy, out)
        dx = _core.empty_like(dy) if out is None else out
        if self._drops:
            maps = self._maps(dy), self._maps(dx)
            _core.apply_examples(*maps, self._keep_bits(), self.per_channel)
        else:
            np.copyto(dx, dy)
        return dx

    @property
    def _drops(self) -> bool:
        return self.p > 0.0 and 0 not in self.shape

    @property
    def _drawn(self) -> tuple[int, int, int, int]:
        """Shape of the keep bits: (batch, channels or 1, height, width), in either layout."""
        batch, *rest = self.shape
        channels = rest.pop(-1 if self.channels_last else 0)
        height, width = rest if len(rest) == 2 else (1, *rest)
        return batch, channels if self.per_channel else 1, height, width

    def _maps(self, x: npt.NDArray) -> npt.NDArray:
        """A view of shape (batch, channels, height, width)."""
        if self.channels_last:
            x = x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))
        return x if x.ndim == 4 else x[:, :, None]

    def _keep_bits(self) -> bytes:
        """Those of all examples."""
        if self.bits is not None:
            return fetched(self.bits)
        gamma, begins, k_height, k_width = self._seeds
        bits = cpu.draw(self.seed, self.call, gamma, begins)
        return _core.drop_blocks(bits, self._drawn, k_height, k_width)

    @property
    def _seeds(self) -> tuple[float, Block, int, int]:
        """The rate of what is drawn, which the paper calls gamma, where, and sides of a block."""
        batch, maps, height, width = self._drawn
        k_width = min(self.block_size, width, height if len(self.shape) == 4 else width)
        k_height = min(k_width, height)
        rows, columns = height - k_height + 1, width - k_width + 1
        gamma = self.p * (height * width) / (k_height * k_width * rows * columns)
        seeds = batch, maps, rows, columns
        region = (self.first, 0, 0, 0), (self.first + batch, *seeds[1:])
        return gamma if self.p < 1.0 else 1.0, Block(seeds, (), region), k_height, k_width


def drop_block(
    x: npt.ArrayLike,
    p: float = 0.1,
    block_size: int = 7,
    *,
    channels_last: bool = False,
    per_channel: bool = True,
    rng: RngLike = None,
    training: bool = True,
    region: Region | None = None,
    out: npt.NDArray | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, DropBlockContext]:
    """Drop square blocks of feature maps; scale each example by its elements / kept elements.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Shape (batch, channels, height, width), or (batch, height, width, channels). There may be
        one spatial axis instead of two; blocks are intervals then. The blocks of a map are the same
        in both layouts.
    p : float
        About what part of the elements is dropped, in [0, 1]. It is less where blocks overlap: of
        maps of 56 x 56 with k = 7, 0.095 at p = 0.1 and 0.38 at p = 0.5. At p = 1 all are dropped.
    block_size : int
        Side k of a block; the smallest spatial length of x if that is less (as in torchvision and
        timm).
    channels_last : bool
    per_channel : bool
        Whether each channel has blocks of its own (Algorithm 1), or all channels the same.
    rng, training, out, save
        As in `fastdrop.dropout`.
    region : (start, global_shape), optional
        As in `fastdrop.dropout`, but only the batch may have been cut.

    Returns
    -------
    y : ndarray
        x * scale where kept, +0 where dropped.
    ctx : DropBlockContext
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    TypeError
        dtype that is not supported, rate that is not a real number, block_size that is not an int.
    ValueError
        Rate outside [0, 1], block_size below 1, x of less than 3 or more than 4 axes, a region that
        cuts another axis than the batch.

    Notes
    -----
    A block begins at each element of a map that has a whole block right of and below it, with
    chance (equation 1)

        gamma = p * height * width / (k**2 * (height - k + 1) * (width - k + 1))

    which is at most p; gamma = 1 at p = 1. These draws form an array of shape (batch, channels,
    height - k + 1, width - k + 1) in both layouts (one channel unless `per_channel`), and their
    C-order positions in it are their indices in the stream. So an element that c blocks may cover
    is kept with chance (1 - gamma)**c; c is k**2, less near the border of the map.

    The paper and timm rescale by the sum over the batch. Here the scale is that of the example, so
    that it depends neither on what else is in the batch nor on how the batch is cut into shards.

    References
    ----------
    G. Ghiasi, T.-Y. Lin, Q. V. Le: DropBlock: a regularization method for convolutional networks.
    NeurIPS 2018, Algorithm 1.

    Examples
    --------
    >>> y, ctx = fastdrop.drop_block(x, 0.1, 7, rng=rng)
    >>> dx = ctx.backward(dy)
    """
    gate.choice(save, ("bits", "seed"), "save")
    there = on_device(x)
    shape = cuda().described(x, out)[0] if there else (x := gate.array(x)).shape
    p, block_size = gate.rate(p), gate.count(block_size, "block_size")
    _maps_of(shape)
    x, out = (x, out) if there else gate.output(x, out)
    first = 0 if region is None else _first(shape, region)
    seed, call = draw_call(rng) if training else (None, None)
    geometry = block_size, bool(channels_last), bool(per_channel), first
    ctx = held = DropBlockContext(shape, p if training else 0.0, seed, call, *geometry)
    if ctx._drops:
        held = replace(ctx, bits=cuda().keep_blocks(ctx, x) if there else ctx._keep_bits())
    return held.backward(x, out), held if save == "bits" else ctx


def _maps_of(shape: tuple[int, ...]) -> None:
    """Checks that this is the shape of feature maps."""
    if len(shape) not in (3, 4):
        raise ValueError(
            "x must have a batch axis, a channel axis and 1 or 2 spatial axes, "
            f"got {len(shape)} axes in all"
        )


def _first(shape: tuple[int, ...], region: Region) -> int:
    """Index of the first example in a batch of which x is a part."""
    start, whole = gate.block(shape, (), region).region
    if any(start[1:]) or whole[1:] != shape[1:]:
        raise ValueError(
            f"region must cut the batch axis only, as a scale needs a whole example, got {region!r}"
        )
    return start[0]


@dataclass(eq=False)
class DropBlock(OpLayer):
    """`drop_block` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`. The paper raises it linearly
        from 0.
    block_size, channels_last, per_channel, save
        As in `drop_block`.
    rng
        As in `Dropout`.
    """

    op = drop_block

    p: Rate = 0.1
    block_size: int = 7
    _: KW_ONLY
    channels_last: bool = False
    per_channel: bool = True
    save: str = "bits"

    def __post_init__(self) -> None:
        super().__post_init__()
        gate.count(self.block_size, "block_size")
