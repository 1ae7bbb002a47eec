"""Types of the compiled module; src/bindings/*.pxi document what each function does."""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self, TypeVar, final

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

_Array = npt.NDArray[Any]
_Kind = TypeVar("_Kind", bound=Saved)
_T = TypeVar("_T")
_Entry = TypeVar("_Entry")

BUILD: str
BITS_PAD: int
BIAS_ROOM: int
NOISE_PAD: int
PARTS: int

DROPOUT: int
DROPOUT_ADD: int
BIAS_DROPOUT_ADD: int
RELU_DROPOUT: int
ALPHA_DROPOUT: int
ZONEOUT: int
BIAS_RELU_DROPOUT: int
BIAS_GELU_DROPOUT: int
BIAS_GELU_BACKWARD: int
ANY_LAYOUT: tuple[int, ...]

FLOAT32: int
FLOAT64: int
FLOAT16: int
BFLOAT16: int
NORMAL: int
LOGISTIC: int
NOISE_SCALE: int
NOISE_ADD: int
CONCRETE: int

_C_API: object  # capsules
_XLA_DROPOUT: object

__test__: dict[str, str]  # Cython's, empty

# Values.

@final
class Place:
    of: Final[tuple[int, ...]]
    shape: Final[tuple[int, ...]]
    region: Final[tuple[tuple[int, ...], tuple[int, ...]] | None]
    start: Final[int]
    size: Final[int]
    is_run: Final[bool]
    scattered: Final[bool]
    @property
    def rows(self) -> npt.NDArray[np.int64] | None: ...
    @property
    def shared_axes(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    def __new__(
        cls,
        of: tuple[int, ...],
        shared_axes: tuple[int, ...] = (),
        region: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
        rows: npt.NDArray[np.int64] | None = None,
        /,
    ) -> Self: ...

@final
class Draw:
    given: Final[bool]
    p: Final[float]
    place: Final[Place]
    @property
    def seed(self) -> Any: ...  # int; None of a mask that was given, which nothing draws
    @property
    def call(self) -> Any: ...
    def __new__(cls, seed: int | None, call: int | None, p: float, place: Place, /) -> Self: ...

@disjoint_base
class CallCounter:
    @property
    def seeded(self) -> bool: ...
    def __init__(
        self, seed: int, call: int, spent: bool = False, seeded: bool = True, /
    ) -> None: ...
    def take(self) -> tuple[int, int]: ...
    def lend(
        self, p: float, place: Place, body: Callable[[Draw], _T], out: object = None, /
    ) -> _T: ...
    def peek(self) -> tuple[int, int]: ...

@disjoint_base
class Saved:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def draw(self) -> Draw | None: ...
    @property
    def scale(self) -> float: ...
    @property
    def held(self) -> Any: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def call(self) -> int | None: ...
    @property
    def p(self) -> Any: ...
    def __init__(
        self, shape: tuple[int, ...], draw: Draw | None, scale: float, held: Any, /
    ) -> None: ...

def after_fork() -> None: ...
def saved(
    kind: type[_Kind], shape: tuple[int, ...], draw: Draw | None, scale: float, held: Any
) -> _Kind: ...

# In one step.

def delivered() -> None: ...
def in_one_step(
    body: Callable[[], tuple[_T, dict[str, Any], _Entry | None]],
    attributes: dict[str, Any],
    entries: deque[_Entry],
    /,
) -> _T: ...
def with_last(
    entries: deque[_Entry],
    body: Callable[[_Entry], tuple[_T, dict[str, Any]]],
    out: object,
    attributes: dict[str, Any],
    /,
) -> _T: ...

@disjoint_base
class Unchanged:
    def __init__(self, objects: list[Any], enter: Callable[[], object], /) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...

# Settings.

def available_isas() -> tuple[str, ...]: ...
def get_isa() -> str: ...
def set_isa(name: str, /) -> None: ...
def get_threads() -> int: ...
def set_threads(n: int, /) -> None: ...
def set_piece(n: int, /) -> int: ...
def set_non_temporal_bytes(n: int, /) -> int: ...
def use_bfloat16(num: int, /) -> None: ...

# Arrays.

def has_kernels(x: _Array) -> bool: ...
def apart(out: _Array, /, *operands: _Array | None) -> tuple[Any, ...]: ...
def empty_like(x: _Array) -> _Array: ...
def repeated(x: _Array, /) -> _Array: ...
def copy(x: _Array, out: _Array | None, /) -> _Array: ...

# Masks.

def scale_of(p: float, /) -> float: ...
def forward(
    op: int,
    x: _Array,
    residual: _Array | None,
    bias: _Array | None,
    out: _Array | None,
    draw: Draw,
    save: bool,
    constants: tuple[float, float, float],
    given: bytes | None = None,
) -> tuple[_Array, bytes | None]: ...
def backward(
    dy: _Array, out: _Array | None, draw: Draw, bits: bytes | None, scale: float
) -> _Array: ...
def drop_memory(
    op: int,
    dtype: int,
    x: int,
    y: int,
    n: int,
    seed: int,
    call: int,
    p: float,
    constants: tuple[float, float, float],
    given: bytes | None,
    keep: bool,
    /,
) -> bytes | None: ...
def draw_bits(draw: Draw, /) -> bytes: ...
def set_watched(on: bool, /) -> None: ...
def common_call(
    op: int,
    x: object,
    p: object,
    how: tuple[Any, ...],
    constants: Callable[[float], tuple[float, float, float]] | None,
    kind: type[_Kind],
    residual: object = None,
    bias: object = None,
    /,
) -> tuple[_Array, _Kind] | None: ...
def common_backward(ctx: Saved, dy: object, out: object, kind: str | None = None, /) -> Any: ...
def philox4x32(
    counters: npt.NDArray[np.uint32],
    key: npt.NDArray[np.uint32],
    rounds: int,
    words: npt.NDArray[np.uint32],
    /,
) -> None: ...

# Rows.

def backward_sums(
    dy: _Array,
    out: _Array | None,
    bits: bytes | None,
    scale: float,
    x: _Array | None = None,
    bias: _Array | None = None,
) -> tuple[_Array, _Array]: ...
def lookup(
    table: _Array, ids: npt.NDArray[np.int64], bits: bytes, y: _Array, scale: float, /
) -> None: ...
def add_rows(x: _Array, ids: npt.NDArray[np.int64], sums: npt.NDArray[np.float64], /) -> None: ...

# Continuous noise.

def draw_noise(kind: int, draw: Draw, noise: npt.NDArray[np.float32], /) -> None: ...
def noise_forward(
    op: int,
    x: _Array,
    out: _Array | None,
    draw: Draw,
    constants: Any,
    sigma_length: int,
    noise: npt.NDArray[np.float32] | None,
    /,
) -> _Array: ...
def noise_backward(
    op: int,
    x: _Array,
    gradients: tuple[Any, ...],
    draw: Draw,
    constants: Any,
    sigma_length: int,
    noise: npt.NDArray[np.float32] | None,
    /,
) -> None: ...

# Softmax.

def softmax(
    x: _Array,
    out: _Array | None,
    bits: bytes | None,
    part: tuple[
        npt.NDArray[np.int64] | None, npt.NDArray[np.uint8] | None, npt.NDArray[np.int64] | None
    ],
    factor: float,
    scale: float,
    /,
) -> tuple[_Array, _Array]: ...
def softmax_backward(
    dy: _Array,
    weights: _Array,
    out: _Array | None,
    bits: bytes | None,
    factor: float,
    scale: float,
    /,
) -> _Array: ...

# Linear layers.

def connect(operands: tuple[Any, ...], y: _Array, draw: Draw, first: int, /) -> None: ...
def connect_back(
    operands: tuple[Any, ...], dy: _Array, gradients: tuple[Any, ...], draw: Draw, first: int, /
) -> None: ...

# DropBlock.

def bytes_of_examples(examples: int, bits: int, /) -> int: ...
def drop_blocks(
    seeds: bytes, shape: tuple[int, ...], block_height: int, block_width: int, /
) -> bytes: ...
def apply_examples(
    x: _Array, y: _Array, keep: bytes, per_channel: bool, given: bool, /
) -> None: ...
