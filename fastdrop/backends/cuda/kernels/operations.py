"""What each op makes of one element, once it is known whether it is kept.

Groups of parameters: ``operands = x, residual, bias``, and ``constants = scale, shift, dropped``,
all in the compute type. An op ignores those that it has no use for. 16-bit elements come in pairs:
`chunks.py` clears a dropped x before it asks here, except for the ops that it names.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastdrop.backends.cuda.kernels.elements import elements
from fastdrop.backends.cuda.kernels.exponential import gelu as of_gelu
from fastdrop.backends.cuda.kernels.targets import U32, target

OPS = (
    *("dropout", "dropout_add", "bias_dropout_add", "relu_dropout", "alpha_dropout", "zoneout"),
    *("bias_relu_dropout", "bias_gelu_dropout", "bias_gelu_backward"),
)
OTHERS = "mean", "zero"  # which draw nothing
# The ops that read them, that tell which elements have a gradient, and that compute most.
RESIDUAL = ("dropout_add", "bias_dropout_add", "zoneout", "bias_gelu_backward", "mean")
BIAS = ("bias_dropout_add", "bias_relu_dropout", "bias_gelu_dropout", "bias_gelu_backward")
RELU = ("relu_dropout", "bias_relu_dropout")
GELU = ("bias_gelu_dropout", "bias_gelu_backward")


@cache
def operation(where: str, dtype: str, op: str, careful: bool) -> Any:
    """``f(operands, keep, constants)`` to (y, active).

    op: one of `OPS`, "mean": x * scale + residual * shift, or "zero". active: 1 where ReLU lets a
    gradient through. Not careful: of a NaN in y nothing counts but that it is one.
    """
    device = target(where).device
    e = elements(where, dtype)
    zero, no, yes = e.zero, U32(0), U32(1)
    gelu, gelu_slope = of_gelu(where, dtype).of, of_gelu(where, dtype).slope
    add, mul, times = (e.add, e.mul, e.times) if careful else (e.exact.add, *2 * [e.exact.mul])

    @device
    def dropout(operands, keep, constants):
        # dropped is 0, which the compiler does not know: of a selection, which is one
        # instruction, it would make a mask of bits, which is three.
        scale, _, dropped = constants
        y = times(operands[0], scale)
        return (y if keep else dropped), no

    @device
    def dropout_add(operands, keep, constants):
        x, residual, _ = operands
        v = times(x, constants[0])
        return add(residual, v if keep else zero), no

    @device
    def bias_dropout_add(operands, keep, constants):
        x, residual, bias = operands
        v = times(add(x, bias), constants[0])
        return add(residual, v if keep else zero), no

    @device
    def relu_dropout(operands, keep, constants):
        v = times(operands[0], constants[0])
        active = keep and not (v <= zero)
        return (v if active else zero), (yes if active else no)

    @device
    def bias_relu_dropout(operands, keep, constants):
        v = times(add(operands[0], operands[2]), constants[0])
        active = keep and not (v <= zero)
        return (v if active else zero), (yes if active else no)

    @device
    def bias_gelu_dropout(operands, keep, constants):
        v = times(gelu(add(operands[0], operands[2])), constants[0])
        return (v if keep else zero), no

    @device
    def bias_gelu_backward(operands, keep, constants):
        dy, x, bias = operands
        v = mul(times(dy, constants[0]), gelu_slope(add(x, bias)))
        return (v if keep else zero), no

    @device
    def alpha_dropout(operands, keep, constants):
        scale, shift, dropped = constants
        v = add(times(operands[0], scale), shift)
        return (v if keep else dropped), no

    @device
    def zoneout(operands, keep, constants):
        x, residual, _ = operands
        return (x if keep else residual), no

    @device
    def mean(operands, keep, constants):
        x, residual, _ = operands
        scale, shift, _ = constants
        return add(mul(residual, shift), mul(x, scale)), no

    @device
    def zeros(operands, keep, constants):
        return zero, no

    known = (
        *(dropout, dropout_add, bias_dropout_add, relu_dropout, alpha_dropout, zoneout),
        *(bias_relu_dropout, bias_gelu_dropout, bias_gelu_backward, mean, zeros),
    )
    return dict(zip((*OPS, *OTHERS), known, strict=True))[op]
