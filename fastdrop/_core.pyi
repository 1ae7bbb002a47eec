"""Types of the compiled module; src/bindings documents what each function does."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.base.place import Block

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

NORMAL: int
LOGISTIC: int
NOISE_SCALE: int
NOISE_ADD: int
CONCRETE: int

_C_API: object  # capsules
_XLA_DROPOUT: object

def available_isas() -> tuple[str, ...]: ...
def get_isa() -> str: ...
def set_isa(name: str, /) -> None: ...
def get_threads() -> int: ...
def set_threads(n: int, /) -> None: ...
def set_piece(n: int, /) -> int: ...
def set_non_temporal_bytes(n: int, /) -> int: ...
def use_bfloat16(num: int, /) -> None: ...
def has_kernels(x: npt.NDArray[Any], /) -> bool: ...
def overlaps_otherwise(x: npt.NDArray[Any], y: npt.NDArray[Any], /) -> bool: ...
def admits(x: object, p: object, out: object, /) -> bool: ...
def empty_like(x: npt.NDArray[Any], /) -> npt.NDArray[Any]: ...
def scale_of(p: float, /) -> float: ...
def forward(
    op: int,
    x: npt.NDArray[Any],
    residual: npt.NDArray[Any] | None,
    bias: npt.NDArray[Any] | None,
    y: npt.NDArray[Any],
    seed: Any,
    call: Any,
    p: float,
    block: Block | None,
    save: bool,
    scale: float = -1,
    shift: float = 0,
    dropped: float = 0,
    /,
) -> bytes | None: ...
def draw(seed: Any, call: Any, p: float, block: Block | int, /) -> bytes: ...
def backward(
    dy: npt.NDArray[Any],
    dx: npt.NDArray[Any],
    bits: bytes,
    scale: float,
    block: Block | None,
    /,
) -> None: ...
def backward_sums(
    dy: npt.NDArray[Any],
    dx: npt.NDArray[Any],
    bits: bytes | None,
    scale: float,
    sums: npt.NDArray[np.float64],
    /,
) -> None: ...
def lookup(
    table: npt.NDArray[Any],
    ids: npt.NDArray[np.int64],
    bits: bytes,
    y: npt.NDArray[Any],
    scale: float,
    /,
) -> None: ...
def add_rows(
    x: npt.NDArray[Any], ids: npt.NDArray[np.int64], sums: npt.NDArray[np.float64], /
) -> None: ...
def draw_noise(
    kind: int, seed: int, call: int, block: Block, noise: npt.NDArray[np.float32], /
) -> None: ...
def noise_forward(
    kind: int,
    op: int,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    sigma: npt.NDArray[Any] | None,
    sigma_length: int,
    noise: npt.NDArray[np.float32] | None,
    relaxed: tuple[float, float, float, float] | None,
    seed: int,
    call: int,
    start: int,
    /,
) -> None: ...
def noise_backward(
    kind: int,
    op: int,
    x: npt.NDArray[Any],
    dy: npt.NDArray[Any],
    dx: npt.NDArray[Any] | None,
    terms: npt.NDArray[Any] | None,
    sums: npt.NDArray[np.float64] | None,
    sigma: npt.NDArray[Any] | None,
    sigma_length: int,
    noise: npt.NDArray[np.float32] | None,
    relaxed: tuple[float, float, float, float] | None,
    seed: int,
    call: int,
    start: int,
    /,
) -> None: ...
def connect(
    x: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None,
    y: npt.NDArray[Any],
    seed: Any,
    call: Any,
    p: float,
    first: int,
    /,
) -> None: ...
def connect_back(
    x: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None,
    dy: npt.NDArray[Any],
    dx: npt.NDArray[Any],
    dweight: npt.NDArray[Any],
    dbias: npt.NDArray[Any] | None,
    seed: Any,
    call: Any,
    p: float,
    first: int,
    /,
) -> None: ...
def bytes_of_examples(examples: int, bits: int, /) -> int: ...
def drop_blocks(
    seeds: bytes, shape: tuple[int, int, int, int], block_height: int, block_width: int, /
) -> bytes: ...
def apply_examples(
    x: npt.NDArray[Any], y: npt.NDArray[Any], keep: bytes, per_channel: bool, /
) -> None: ...
def philox4x32(
    counters: npt.NDArray[np.uint32],
    key: npt.NDArray[np.uint32],
    rounds: int,
    words: npt.NDArray[np.uint32],
    /,
) -> None: ...

class CallCounter:
    def __init__(self, seed: int, call: int, /) -> None: ...
    def take(self) -> tuple[int, int]: ...
    def peek(self) -> tuple[int, int]: ...

class Saved:
    shape: tuple[int, ...]
    p: float
    scale: float
    seed: Any  # int, or None where nothing was drawn
    call: Any
    _block: Block | None
    _bits: bytes | None
    def __init__(
        self,
        shape: tuple[int, ...],
        p: float,
        seed: int | None,
        call: int | None,
        block: Block | None,
        bits: bytes | None,
        scale: float = -1,
        /,
    ) -> None: ...
