"""What an operation asks of a backend: the CPU's kernels or a GPU's, the same words for both.

An op asks `fastdrop.backends.of` for its backend once, gates its operands with it, and hands them
on. Gated operands are the backend's own kind of array; they have ``shape``, ``dtype``, ``ndim`` and
``size``. What a method returns as a result is an array of the caller's kind. A packed mask, called
*bits*, is the backend's own; a context may hold it, and either backend takes the other's.
"""

from __future__ import annotations

from typing import Any, Protocol

from fastdrop._core import Draw

Constants = tuple[float, float, float]  # scale, shift, and what stands for a dropped element


class Squares(Protocol):
    """How DropBlock's squares lie in feature maps; see `fastdrop.ops.dropblock`."""

    @property
    def drawn(self) -> tuple[int, int, int, int]:
        """Of the keep bits: batch, maps (1 if all channels share them), height, width."""

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a square."""

    @property
    def channels_last(self) -> bool: ...

    @property
    def per_channel(self) -> bool: ...


class Backend(Protocol):
    """The gate's half that depends on where arrays are, and the computations."""

    # Gate: each raises TypeError or ValueError with the argument's name.

    def array(self, x: Any, name: str = "x") -> Any:
        """A floating-point array that the kernels can read."""

    def floats(self, x: Any, name: str) -> Any:
        """float32 or float64 in C order."""

    def numbers(self, ids: Any, weight: Any) -> Any:
        """Integers that are numbers of the rows of a table."""

    def output(self, out: Any, *operands: Any) -> tuple[Any, ...]:
        """out, checked against the first operand, and the operands: copies of those that writing
        to out would change too early. None as an operand stays None."""

    def bring(self, x: Any, like: Any) -> Any:
        """An array of a context, wherever it is now, as a gated operand beside `like`."""

    def held(self, x: Any) -> Any:
        """A gated array as a context holds it."""

    # Copies.

    def copy(self, x: Any, out: Any = None) -> Any:
        """A result with x's values, in x's memory order if out is None."""

    def apart(self, x: Any, out: Any) -> Any:
        """A result that is x itself, or a copy if writing to out would change it."""

    def zeros_like(self, x: Any, dtype: str | None = None, shape: Any = None) -> Any:
        """A result of zeros."""

    # Masks.

    def forward(
        self,
        op: int,
        x: Any,
        draw: Draw,
        constants: Constants,
        out: Any = None,
        keep: bool = False,
        residual: Any = None,
        bias: Any = None,
        given: Any = None,
    ) -> tuple[Any, Any]:
        """y of one of the ops of src/kernels/table.h, and its bits if they are to be kept. Those
        of ANY_LAYOUT keep the order of x's axes, others give y in C order. given: bits of the
        draw's place, instead of drawing."""

    def select(self, dy: Any, out: Any, draw: Draw, bits: Any, scale: float) -> Any:
        """dy * scale where the mask keeps it, else 0. bits None: the mask is drawn again."""

    def split(self, dy: Any, draw: Draw, bits: Any) -> tuple[Any, Any]:
        """dy where the mask drops it, else 0; and where it keeps it."""

    def select_and_sum(
        self,
        dy: Any,
        out: Any,
        draw: Draw,
        bits: Any,
        scale: float,
        x: Any = None,
        bias: Any = None,
    ) -> tuple[Any, Any]:
        """`select`, and its sums over all axes except the last, in one order of additions. With x
        and bias dx is multiplied by the slope of GELU at x + bias."""

    def blend(self, a: Any, b: Any, weight: float) -> Any:
        """weight * a + (1 - weight) * b, where only what has a weight counts."""

    def weighted(self, x: Any, weight: float) -> Any:
        """weight * x; zeros without a weight."""

    # Continuous noise. constants: sigma (a 0-d array, one per element of the last axis, or x's
    # shape), or of CONCRETE logit, p, 1 / temperature and 1 / (1 - p).

    def noise(self, op: int, x: Any, draw: Draw, constants: Any, out: Any = None) -> Any:
        """NOISE_SCALE, NOISE_ADD or CONCRETE."""

    def noise_gradients(
        self, op: int, x: Any, dy: Any, draw: Draw, constants: Any, group: int | None
    ) -> tuple[Any, Any]:
        """dx, and the gradient of sigma or logit: of each element (group None), or summed over
        elements that are `group` apart, float64. The second is the backend's own array."""

    def chain(self, weights: Any, slopes: Any, dtype: Any) -> Any:
        """weights * slopes, and 0 where a weight is negative, in this dtype."""

    def result(self, x: Any) -> Any:
        """The backend's own array as the caller's kind."""

    # Rows of a table.

    def lookup(self, weight: Any, ids: Any, draw: Draw | None, scale: float) -> Any:
        """Rows of a table by number, dropped by number; none is if draw is None."""

    def add_rows(
        self, dy: Any, ids: Any, shape: tuple[int, ...], draw: Draw | None, scale: float
    ) -> Any:
        """The table's gradient: sums of the rows of dy, in float64, scaled, 0 if dropped."""

    # DropBlock.

    def keep_squares(self, draw: Draw, squares: Squares, like: Any) -> Any:
        """Keep bits, in which each example begins with a word: squares begin where draw drops."""

    def apply_squares(self, x: Any, out: Any, bits: Any, squares: Squares) -> Any:
        """x times the scale of its example where kept, else 0."""

    # Linear layers.

    def linear(self, x: Any, weight: Any, bias: Any, draw: Draw | None, first: int) -> Any:
        """x @ weight + bias; with a draw, each example has its own mask, and all is scaled."""

    def linear_gradients(
        self, x: Any, weight: Any, bias: Any, dy: Any, draw: Draw | None, first: int
    ) -> tuple[Any, Any, Any]:
        """Of x, weight and bias; of bias None if there is none."""

    def add_bias(self, y: Any, bias: Any) -> Any:
        """y + bias, where y is what `linear` returned, which may be overwritten."""

    def column_sums(self, dy: Any) -> Any:
        """Sums over all axes except the last."""
