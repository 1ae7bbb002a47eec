"""The TensorFlow backend of Keras: an operation that is compiled against the TensorFlow at hand.

That takes some ten seconds, at its first use, and a C++ compiler; the result is kept in
``$XDG_CACHE_HOME/fastdrop`` (``~/.cache/fastdrop``). Without a compiler layers can be made, loaded
and used for predictions, as that needs no operation.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope

import fastdrop as fd
from fastdrop import _core
from fastdrop.ops.door import affine

SOURCE = Path(__file__).with_name("tensorflow_op.cc")


def drop(op: str, x: Any, amount: float, generator: Any, shared_axes: list[int]) -> Any:
    """What a layer does in training, as the other backends do it."""
    _not_again()
    state = _next(generator)

    def dropped(x: Any) -> Any:
        rate = tf.constant(amount, tf.float64)
        return _library().fastdrop_dropout(x, state, rate, shared_axes=shared_axes)

    if op == "dropout":
        return dropped(x)
    if op == "alpha_dropout":
        scale, shift, saturated = affine(amount)
        kept = dropped(tf.ones_like(x)) > 0
        return tf.where(kept, x * scale + shift, tf.cast(saturated, x.dtype))
    wide = tf.float64 if x.dtype == tf.float64 else tf.float32
    start = tf.ones if op == "gaussian_dropout" else tf.zeros

    def drawn(y: Any, state: Any) -> Any:
        return getattr(fd, op)(y, amount, rng=fd.Rng(*map(int, state)))[0]

    noise = tf.numpy_function(drawn, [start(tf.shape(x), wide), state], wide)
    noise = tf.ensure_shape(noise, x.shape)
    wider = tf.cast(x, wide)
    return tf.cast(wider * noise if op == "gaussian_dropout" else wider + noise, x.dtype)


def _next(generator: Any) -> Any:
    """The layer's seed and call, which Keras's `generator.next()` takes longer to count."""
    state = generator.state.value
    if in_stateless_scope() or not isinstance(state, tf.Variable):
        return tf.cast(generator.next(), tf.int64)
    draw = tf.convert_to_tensor(state)
    state.assign_add([0, 1], read_value=False)
    return tf.cast(draw, tf.int64)


def _not_again() -> None:
    """TensorFlow computes a function again as if it were called once more, which would be another
    call of the layer.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "inner_recompute_grad":
            raise RuntimeError(
                "a Dropout was computed again in a backward pass, for which Keras counts a further "
                "call, so it would have another mask; keep the layer that has it out of "
                "keras.RematScope"
            )
        frame = frame.f_back


@tf.RegisterGradient("FastdropDropout")
def _gradient(op: Any, dy: Any) -> list[Any]:
    """Dropout is diagonal: transposed it does the same, with the same draw."""
    _, draw, rate = op.inputs
    axes = op.get_attr("shared_axes")
    return [_library().fastdrop_dropout(dy, draw, rate, shared_axes=axes), None, None]


@cache
def _library() -> Any:
    """The module of the operation, compiled if it is not in the cache."""
    source = SOURCE.read_bytes()
    flags = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    header = Path(fd.get_include(), "fastdrop_api.h").read_bytes()
    version = f"{tf.__version__} {tf.version.GIT_VERSION}".encode()
    name = hashlib.sha256(source + header + version).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastdrop"
    library = folder / f"tensorflow-{tf.__version__}-{name}.so"
    if not library.exists():
        _compile(library, flags)
    module = tf.load_op_library(str(library))
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    table = pointer(_core._C_API, b"fastdrop._core._C_API")
    ctypes.CDLL(str(library)).fastdrop_use(ctypes.c_void_p(table))
    return module


def _compile(library: Path, flags: list[str]) -> None:
    """Whole or not at all: two processes may be here."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError(
            "fastdrop compiles an operation for TensorFlow at its first use, and there is no C++ "
            "compiler; install g++, or set CXX to one"
        )
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [compiler, "-shared", "-fPIC", "-O2", "-w", str(SOURCE), "-o", str(made)]
        run = subprocess.run(
            [*command, f"-I{fd.get_include()}", *flags], capture_output=True, text=True
        )
        if run.returncode:
            raise RuntimeError(
                f"fastdrop's operation for TensorFlow {tf.__version__} did not compile with "
                f"{compiler}:\n{run.stderr[-2000:]}"
            )
        made.replace(library)
