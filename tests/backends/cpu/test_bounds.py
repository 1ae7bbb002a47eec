"""The compiled module, which is private, called with what the gate would not let pass.

Nothing reads or writes elsewhere: ValueError or TypeError comes instead. A crash would end the run.
"""

import numpy as np
import pytest

from fastdrop import _core
from fastdrop._core import BIAS_ROOM, BITS_PAD, NOISE_PAD, PARTS, Draw, Place, Saved

F4, F8 = np.float32, np.float64
X = np.ones((4, 6), F4)
DRAW = Draw(1, 2, 0.3, Place((4, 6)))
LARGE = Draw(1, 2, 0.3, Place((4000, 6000)))
BITS = bytes(3 + BITS_PAD)
INVERTED = 1.0, 0.0, 0.0
SUMS = np.zeros((PARTS, 6))
IDS = np.zeros(5, np.int64)
W, B, Y = np.ones((6, 5), F4), np.ones(5, F4), np.ones((4, 5), F4)
MAPS = np.ones((2, 3, 4, 5), F4)
KEEP = bytes(_core.bytes_of_examples(2, 60))
MISFITS = {
    "None": None,
    "short": np.ones((3, 6), F4),
    "long": np.ones((5, 6), F4),
    "other dtype": np.ones((4, 6), F8),
    "small ints": np.ones((4, 6), np.int8),
    "objects": np.ones((4, 6), object),
    "swapped": np.ones((4, 6), ">f4"),
    "0-d": np.ones((), F4),
    "three axes": np.ones((4, 6, 2), F4),
    "strided": np.ones((4, 12), F4)[:, ::2],
    "all axes": np.ones((1,) * 64, F4),
    "empty": np.ones((0, 6), F4),
    "short bits": BITS[:-1],
    "a draw of another shape": LARGE,
    "a draw of fewer axes": Draw(1, 2, 0.3, Place((24,))),
    "a list": [1.0] * 24,
}

# Function and arguments that are right, with those to replace.
CALLS = {
    "forward": (_core.forward, [0, X, None, None, X.copy(), DRAW, True, INVERTED], (1, 4, 5, 7)),
    "forward, add": (
        _core.forward,
        [_core.DROPOUT_ADD, X, X, None, X.copy(), DRAW, True, INVERTED],
        (1, 2, 4, 5, 7),
    ),
    "forward, bias": (
        _core.forward,
        [_core.BIAS_DROPOUT_ADD, X, X, np.ones(6 + BIAS_ROOM, F4), X.copy(), DRAW, True, INVERTED],
        (1, 2, 3, 4, 5, 7),
    ),
    "forward, relu": (
        _core.forward,
        [_core.RELU_DROPOUT, X, None, None, X.copy(), DRAW, True, INVERTED],
        (1, 4, 5, 7),
    ),
    "backward": (_core.backward, [X, X.copy(), DRAW, BITS, 1.0], (0, 1, 2, 3)),
    "backward, strided": (_core.backward, [X[:, ::-1], None, DRAW, BITS, 1.0], (0, 1, 2, 3)),
    "backward_sums": (_core.backward_sums, [X, X.copy(), BITS, 1.0], (0, 1, 2)),
    "lookup": (_core.lookup, [X, IDS, BITS, np.ones((5, 6), F4), 1.0], (0, 1, 2, 3)),
    "add_rows": (_core.add_rows, [np.ones((5, 6), F4), IDS, np.zeros((4, 6))], (0, 1, 2)),
    "draw_bits": (_core.draw_bits, [DRAW], (0,)),
    "draw_noise": (_core.draw_noise, [_core.NORMAL, DRAW, X.copy()], (1, 2)),
    "noise_forward": (
        _core.noise_forward,
        [_core.NOISE_SCALE, X, X.copy(), DRAW, np.ones(6 + BIAS_ROOM, F4), 6, None],
        (1, 2, 3, 4),
    ),
    "noise_forward, given": (
        _core.noise_forward,
        [_core.NOISE_ADD, X, X.copy(), DRAW, 0.5, 0, np.ones(24 + NOISE_PAD, F4)],
        (1, 2, 3, 4, 6),
    ),
    "softmax": (_core.softmax, [X, X.copy(), BITS, (None, None, None), 1.0, 1.0], (0, 1, 2)),
    "softmax_backward": (_core.softmax_backward, [X, X, X.copy(), BITS, 1.0, 1.0], (0, 1, 2, 3)),
    "connect": (_core.connect, [(X, W, B), Y.copy(), DRAW, 0], (0, 1, 2)),
    "drop_blocks": (_core.drop_blocks, [bytes(3 + BITS_PAD), (2, 3, 2, 3), 1, 2], (0, 1)),
    "apply_examples": (_core.apply_examples, [MAPS, MAPS.copy(), KEEP, True, False], (0, 1, 2)),
    "philox4x32": (
        _core.philox4x32,
        [np.zeros((3, 4), np.uint32), np.zeros(2, np.uint32), 7, np.zeros((3, 4), np.uint32)],
        (0, 1, 3),
    ),
    "common_call": (
        _core.common_call,
        [0, X, 0.3, (1, True, (), None, None, None, "bits"), None, Saved],
        (3,),
    ),
}


def refused_or_done(function, arguments):
    try:
        function(*arguments)
    except (TypeError, ValueError, OverflowError):
        return True
    return False


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_do_not_fit(isa, name, misfit):
    function, arguments, places = CALLS[name]
    assert not refused_or_done(function, arguments)
    for i in places:
        refused_or_done(function, [*arguments[:i], MISFITS[misfit], *arguments[i + 1 :]])


@pytest.mark.parametrize(
    ("name", "i", "misfit"),
    [
        ("forward", 1, "long"),
        ("forward", 1, "small ints"),
        ("forward", 1, "all axes"),
        ("forward", 4, "short"),
        ("forward", 4, "other dtype"),
        ("forward", 5, "None"),
        ("forward", 5, "a draw of another shape"),
        ("forward, add", 2, "None"),
        ("forward, add", 2, "short"),
        ("forward, add", 1, "strided"),
        ("forward, bias", 3, "None"),
        ("forward, bias", 3, "long"),
        ("backward", 0, "long"),
        ("backward", 2, "None"),
        ("backward", 3, "short bits"),
        ("backward, strided", 0, "all axes"),
        ("backward, strided", 2, "a draw of fewer axes"),
        ("backward_sums", 0, "long"),
        ("backward_sums", 0, "short"),
        ("lookup", 3, "short"),
        ("lookup", 0, "0-d"),
        ("add_rows", 1, "other dtype"),
        ("draw_noise", 2, "short"),
        ("draw_noise", 1, "None"),
        ("noise_forward", 2, "short"),
        ("noise_forward", 4, "short"),
        ("noise_forward, given", 6, "long"),
        ("softmax", 0, "strided"),
        ("softmax", 1, "short"),
        ("softmax", 2, "short bits"),
        ("softmax_backward", 1, "other dtype"),
        ("softmax_backward", 3, "short bits"),
        ("connect", 1, "None"),
        ("connect", 2, "None"),
        ("apply_examples", 1, "short"),
        ("apply_examples", 2, "short bits"),
        ("drop_blocks", 0, "short bits"),
    ],
)
def test_refused(name, i, misfit):
    function, arguments, _ = CALLS[name]
    with pytest.raises((TypeError, ValueError)):
        function(*arguments[:i], MISFITS[misfit], *arguments[i + 1 :])


@pytest.mark.parametrize("misfit", MISFITS)
def test_parts_of_a_tuple_that_do_not_fit(misfit):
    """Operands and gradients come as tuples."""
    value = MISFITS[misfit]
    operands, gradients = [X, W, B], [X.copy(), W.copy(), B.copy()]
    whole = [X, X.copy(), None, SUMS.copy()]
    for i in range(3):
        changed = (*operands[:i], value, *operands[i + 1 :])
        refused_or_done(_core.connect, (changed, Y.copy(), DRAW, 0))
        refused_or_done(_core.connect_back, (changed, Y, tuple(gradients), DRAW, 0))
        changed = (*gradients[:i], value, *gradients[i + 1 :])
        refused_or_done(_core.connect_back, (tuple(operands), Y, changed, DRAW, 0))
    for i in range(4):
        changed = (*whole[:i], value, *whole[i + 1 :])
        refused_or_done(_core.noise_backward, (_core.NOISE_SCALE, X, changed, DRAW, 0.5, 0, None))


def test_what_of_a_tuple_is_refused():
    gradients, short = (X.copy(), W.copy(), B.copy()), np.ones((3, 5), F4)
    _core.connect_back((X, W, B), Y, gradients, DRAW, 0)
    for operands in ((X, short, B), (X, W[:, :3], B), (X, W, B[1:]), (W.T[:, 0], W, B)):
        with pytest.raises(ValueError, match="must"):
            _core.connect(operands, Y.copy(), DRAW, 0)
    for wrong in ((X[1:], *gradients[1:]), (X, W[1:], B), (X, W, B[1:]), (X, W, None)):
        with pytest.raises(ValueError, match="must"):
            _core.connect_back((X, W, B), Y, wrong, DRAW, 0)
    of = _core.NOISE_SCALE, X
    _core.noise_backward(*of, (X, X.copy(), None, SUMS.copy()), DRAW, 0.5, 0, None)
    for wrong in (
        (X[1:], X.copy(), None, SUMS),
        (X, X[1:], None, SUMS),
        (X, None, X[1:], None),
        (X, None, None, SUMS[1:]),
        (X, None, None, np.zeros((PARTS, 0))),
        (X, None, None, None),
    ):
        with pytest.raises(ValueError, match="must"):
            _core.noise_backward(*of, wrong, DRAW, 0.5, 0, None)


@pytest.mark.parametrize("op", [-1, 2, 4, 6, 99, 2**31 - 1])
def test_an_op_that_is_not(op):
    if op not in (_core.BIAS_DROPOUT_ADD, _core.ALPHA_DROPOUT):
        with pytest.raises((ValueError, OverflowError)):
            _core.forward(op, X, X, X, X.copy(), DRAW, True, INVERTED)
    if op != _core.CONCRETE:
        with pytest.raises((ValueError, OverflowError)):
            _core.noise_forward(op, X, X.copy(), DRAW, 0.5, 0, None)


def test_a_kind_that_holds_no_context():
    for kind in (int, dict, object, Draw, None, 3, type, np.ndarray):
        with pytest.raises(TypeError):
            _core.saved(kind, (3,), None, 1.0, None)
        with pytest.raises(TypeError):
            _core.common_call(
                0, X, 0.3, (_core.CallCounter(1, 0), True, (), None, None, None, "bits"), None, kind
            )
