"""DropBlock: drops squares of feature maps, as neighbours of a dropped element tell what it was."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BITS_PAD, Draw, Place
from fastdrop.backends import of
from fastdrop.backends.cpu import CPU, host_bits, maps_of
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.ops import context
from fastdrop.rng import RngLike, with_draw


@dataclass(frozen=True)
class Geometry:
    """How squares lie in feature maps: what `fastdrop.backends.interface.Squares` asks for."""

    shape: tuple[int, ...]
    block_size: int
    channels_last: bool
    per_channel: bool

    @property
    def drawn(self) -> tuple[int, int, int, int]:
        """Shape of the keep bits: (batch, channels or 1, height, width), in either layout."""
        batch, *rest = self.shape
        channels = rest.pop(-1 if self.channels_last else 0)
        height, width = rest if len(rest) == 2 else (1, *rest)
        return batch, channels if self.per_channel else 1, height, width

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a square."""
        *_, height, width = self.drawn
        side = min(self.block_size, width, height if len(self.shape) == 4 else width)
        return min(side, height), side

    def seeds(self, draw: Draw) -> Draw:
        """Where squares begin, from the draw that a context names: dropped elements of an array of
        shape (batch, maps, height - side + 1, width - side + 1), at the rate that the paper calls
        gamma. Of a region the batch alone counts.
        """
        (batch, maps, height, width), (k_height, k_width) = self.drawn, self.sides
        rows, columns = height - k_height + 1, width - k_width + 1
        gamma = draw.p * (height * width) / (k_height * k_width * rows * columns)
        begins, first = (batch, maps, rows, columns), first_of(draw)
        region = None if not first else ((first, 0, 0, 0), (first + batch, *begins[1:]))
        return Draw(draw.seed, draw.call, gamma if draw.p < 1.0 else 1.0, Place(begins, (), region))


def first_of(draw: Draw | None) -> int:
    """Index of the first example in the whole batch."""
    return 0 if draw is None or draw.place.region is None else draw.place.region[0][0]


class DropBlockContext(context.Context):
    """Context of `drop_block`.

    Attributes
    ----------
    shape : tuple of int
        Shape of x.
    p : float
        The rate; 0 if ``training=False``.
    seed, call : int or None
        Name the draw: ``Rng(seed, call)`` draws the same squares again. None if nothing was drawn.
    block_size, channels_last, per_channel
        As given to `drop_block`.
    first : int
        Index of the first example in the whole batch.
    held : object
        Packed keep mask, for which each example begins with a 64-bit word; None: drawn again.
    """

    __slots__ = ("block_size", "channels_last", "per_channel")
    block_size: int
    channels_last: bool
    per_channel: bool

    @property
    def first(self) -> int:
        return first_of(self.draw)

    @property
    def scales(self) -> npt.NDArray[np.float64]:
        """What the kept elements of each example were multiplied by: elements / kept elements.

        Shape (batch,); 0 where an example has lost all.
        """
        if self._drops is None:
            return np.ones(self.shape[0])
        kept = self.mask().reshape(self.shape[0], -1).sum(axis=1)
        size = prod(self.shape[1:])
        return np.divide(size, kept, out=np.zeros(len(kept)), where=kept > 0)

    def mask(self) -> npt.NDArray[np.bool_]:
        """The keep mask: bool array of x's shape, True where the element was kept."""
        mask = np.ones(self.shape, np.bool_)
        if (draw := self._drops) is not None:
            squares = self._squares
            batch, *drawn = squares.drawn
            bits = CPU.keep_squares(squares.seeds(draw), squares)
            if self.held is not None:
                bits = host_bits(self.held)
            words = np.frombuffer(bits, np.uint8)[:-BITS_PAD].reshape(batch, -1)
            kept = np.unpackbits(words, axis=1, count=prod(drawn), bitorder="little")
            maps_of(mask, squares)[...] = kept.reshape(squares.drawn)
        return mask

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
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
        backend = of(dy)
        dy = backend.array(dy, "dy")
        gate.like(dy, "dy", self.shape)
        out, dy = backend.output(out, dy)
        if (draw := self._drops) is None:
            return backend.copy(dy, out)
        squares, bits = self._squares, self.held
        if bits is None:
            bits = backend.keep_squares(squares.seeds(draw), squares, dy)
        return backend.apply_squares(dy, out, bits, squares)

    @property
    def _drops(self) -> Draw | None:
        """The draw, if it may drop something."""
        return self.draw if self.p > 0.0 and 0 not in self.shape else None

    @property
    def _squares(self) -> Geometry:
        return Geometry(self.shape, self.block_size, self.channels_last, self.per_channel)

    def _check(self) -> None:
        _maps_of(self.shape)
        self._check_place()
        if self.draw is not None:
            _only_the_batch(self.draw.place)
        batch, *drawn = self._squares.drawn
        length = _core.bytes_of_examples(batch, prod(drawn))
        if self.held is not None and (type(self.held) is not bytes or len(self.held) != length):
            raise ValueError(f"bits must be {length} bytes, got {gate.shown(self.held)}")


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
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], DropBlockContext]:
    """Drop squares of feature maps; scale each example by its elements / kept elements.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Shape (batch, channels, height, width), or (batch, height, width, channels). There may be
        one spatial axis instead of two; squares are intervals then. The squares of a map are the
        same in both layouts.
    p : float
        About what part of the elements is dropped, in [0, 1]. It is less where squares overlap: of
        maps of 56 x 56 with k = 7, 0.095 at p = 0.1 and 0.38 at p = 0.5. At p = 1 all are dropped.
    block_size : int
        Side k of a square; the smallest spatial length of x if that is less (as in torchvision and
        timm).
    channels_last : bool
    per_channel : bool
        Whether each channel has squares of its own (Algorithm 1), or all channels the same.
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
    RuntimeError
        x is on a GPU, where no kernel can run here.

    Notes
    -----
    A square begins at each element of a map that has a whole square right of and below it, with
    chance (equation 1)

        gamma = p * height * width / (k**2 * (height - k + 1) * (width - k + 1))

    which is at most p; gamma = 1 at p = 1. These draws form an array of shape (batch, channels,
    height - k + 1, width - k + 1) in both layouts (one channel unless `per_channel`), and their
    C-order positions in it are their indices in the keystream. So an element that c squares may
    cover is kept with chance (1 - gamma)**c; c is k**2, less near the border of the map.

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
    keep = gate.keeps_bits(save)
    backend = of(x)
    x = backend.array(x)
    p, block_size = gate.rate(p), gate.count(block_size, "block_size")
    _maps_of(x.shape)
    place = gate.place(x.shape, gate.NO_AXES, region)
    _only_the_batch(place)
    out, x = backend.output(out, x)
    training = gate.flag(training, "training")
    layout = gate.flag(channels_last, "channels_last"), gate.flag(per_channel, "per_channel")
    squares = Geometry(x.shape, block_size, *layout)

    def of_draw(draw: Draw | None) -> tuple[Any, DropBlockContext]:
        bits = None
        if draw is None or p == 0.0 or not x.size:
            y = backend.copy(x, out)
        else:
            bits = backend.keep_squares(squares.seeds(draw), squares, x)
            y = backend.apply_squares(x, out, bits, squares)
        ctx = DropBlockContext.made(
            x.shape,
            draw,
            1.0,
            bits if keep else None,
            block_size=block_size,
            channels_last=squares.channels_last,
            per_channel=squares.per_channel,
        )
        return y, ctx

    return with_draw(rng, p, place, of_draw, out, x) if training else of_draw(None)


def _maps_of(shape: tuple[int, ...]) -> None:
    """Checks that this is the shape of feature maps."""
    if len(shape) not in (3, 4):
        raise ValueError(
            "x must have a batch axis, a channel axis and 1 or 2 spatial axes, "
            f"got {len(shape)} axes in all"
        )


def _only_the_batch(place: Place) -> None:
    """Checks that a region cuts no other axis."""
    gate.uncut(place, range(1, len(place.of)), "as a scale needs a whole example")
