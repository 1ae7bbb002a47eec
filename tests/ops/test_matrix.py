"""Every public op with its default arguments: NumPy against the reference, and arrays on a device,
whose kernels are compiled for this CPU or run in Numba's simulator, against NumPy. Forward, and
backward from bits and from the seed; every bit counts.

test_simulator.py runs this file in the simulator; tests/adapters/test_matrix.py does the same for
adapters.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.fake_device import FakeArray, to_fake

import fastdrop as fd
from fastdrop import cuda
from fastdrop import reference as ref
from fastdrop.backends.cuda import launch

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0"
SEED, CALL = 0x0123456789ABCDEF, 77
DRAW = SEED, CALL
RNG = partial(fd.Rng, SEED, CALL)


def numbers(*shape):
    generator = np.random.default_rng(list(shape))
    return generator.standard_normal(shape, np.float32)


def kept(shape, p=0.5):
    return ref.keep(ref.element_index(shape), p, *DRAW)


def lines(x):
    return np.arange(x.size).reshape(x.shape)


@dataclass
class Case:
    """One op: its operands, and the reference for y and for the gradients of a dy."""

    operands: dict
    y: Callable
    gradients: Callable
    kernels: bool = True  # whether it takes device arrays
    on_host: tuple = ()  # operands that stay in the host's memory
    close: tuple = ()  # results that are sums of another order than the reference's: -1 is y


X, R, B = numbers(6, 40), numbers(6, 40) + 1, numbers(40)
MAPS, SEQUENCE, TABLE, IDS = (
    numbers(3, 4, 8, 9),
    numbers(3, 5, 8),
    numbers(9, 6),
    np.arange(7) * 3 % 9,
)
W, BIAS = numbers(40, 12), numbers(12)
LOGIT = 0.3


def masked(op, *more, gradient=None, shape=None):
    """Case's functions of an op whose reference gives y and, perhaps, the mask."""

    def y(x, *_):
        made = op(x, *more[:1], *DRAW, *more[1:])
        return made[0] if isinstance(made, tuple) else made

    return y, gradient or (lambda dy, *_: y(dy))


def of_bias(dy, x, bias, residual):
    return *with_sums(ref.apply(dy, kept(dy.shape), 0.5)), dy


def of_relu(dy, x):
    return ref.fused(dy, kept(x.shape) & ~(x <= 0), 0.5)


def with_sums(dx):
    return dx, dx.sum(axis=0, dtype=np.float64).astype(dx.dtype)


def of_maps(x):
    index = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1, 1)
    return np.broadcast_to(ref.keep(index, 0.5, *DRAW), x.shape)


def of_alpha_maps(x):
    a, b = map(np.float32, ref.alpha_affine(0.5))
    dropped = np.float32(ref.alpha_dropout(x, 0.5, *DRAW)[0][~kept(x.shape)][0])
    return np.where(of_maps(x), x * a + b, dropped)


def connected(x, weight, bias):
    masks = ref.dropconnect_masks((len(x), len(weight) + 1, weight.shape[1]), 0.5, *DRAW)
    return ref.dropconnect(x, weight, bias, masks, 0.5)


def of_connected(dy, x, weight, bias):
    masks = ref.dropconnect_masks((len(x), len(weight) + 1, weight.shape[1]), 0.5, *DRAW)
    return ref.dropconnect_gradients(x, weight, bias, masks, 0.5, dy)


def of_concrete(dy, x, logit):
    noise = ref.logistics(lines(x), *DRAW)
    dlogit = ref.concrete_gradient(x, dy, logit, 0.1, noise).sum(dtype=np.float64)
    return ref.concrete(dy, logit, 0.1, noise), dlogit


def sigma_of(log_alpha):
    return np.exp(np.minimum(log_alpha, 0) / 2).astype(np.float32)


def of_variational(dy, x, log_alpha):
    noise = ref.normals(lines(x), *DRAW)
    slopes = ref.noise_gradient(x, dy, noise).sum(axis=0, dtype=np.float64)
    dlog_alpha = np.where(log_alpha > 0, 0, 0.5 * sigma_of(log_alpha) * slopes)
    return ref.noise_scale(dy, sigma_of(log_alpha), noise), dlog_alpha


def of_adversarial(dy, x, gradient):
    _, mask, scale = ref.adversarial_dropout(x, gradient, 0.05, 0.0, *DRAW)
    return np.where(mask, dy * scale.astype(np.float32)[:, None], np.float32(0))


CASES = {
    "dropout": Case({"x": X}, *masked(ref.dropout, 0.5)),
    "dropout_add": Case(
        {"x": X, "residual": R},
        lambda x, r: ref.fused(x, kept(x.shape), 0.5, residual=r),
        lambda dy, x, r: (ref.apply(dy, kept(x.shape), 0.5), dy),
    ),
    "bias_dropout_add": Case(
        {"x": X, "bias": B, "residual": R},
        lambda x, b, r: ref.fused(x, kept(x.shape), 0.5, bias=b, residual=r),
        of_bias,
        close=(1,),
    ),
    "relu_dropout": Case({"x": X}, lambda x: ref.fused(x, kept(x.shape), 0.5, relu=True), of_relu),
    "bias_relu_dropout": Case(
        {"x": X, "bias": B},
        lambda x, b: ref.fused(x, kept(x.shape), 0.5, bias=b, relu=True),
        lambda dy, x, b: with_sums(of_relu(dy, x + b)),
        close=(1,),
    ),
    "bias_gelu_dropout": Case(
        {"x": X, "bias": B},
        lambda x, b: ref.fused(x, kept(x.shape), 0.5, bias=b, with_gelu=True),
        lambda dy, x, b: with_sums(ref.fused_gelu_gradient(dy, kept(x.shape), 0.5, x, b)),
        close=(1,),
    ),
    "alpha_dropout": Case(
        {"x": X},
        *masked(
            ref.alpha_dropout,
            0.5,
            gradient=lambda dy, x: ref.alpha_gradient(dy, kept(x.shape), 0.5),
        ),
    ),
    "feature_alpha_dropout": Case(
        {"x": MAPS}, of_alpha_maps, lambda dy, x: ref.alpha_gradient(dy, of_maps(x), 0.5)
    ),
    "spatial_dropout": Case({"x": MAPS}, *masked(ref.spatial_dropout, 0.5)),
    "locked_dropout": Case({"x": SEQUENCE}, *masked(ref.locked_dropout, 0.5)),
    "embedding_dropout": Case({"weight": TABLE}, *masked(ref.embedding_dropout, 0.1)),
    "embedding_dropout, ids": Case(
        {"weight": TABLE, "ids": IDS},
        lambda weight, ids: ref.embedding_dropout(weight, 0.1, *DRAW, ids=ids),
        lambda dy, weight, ids: ref.embedding_gradient(dy, weight.shape, ids, 0.1, *DRAW),
        on_host=("ids",),
    ),
    "drop_path": Case({"x": MAPS}, *masked(ref.drop_path, 0.5)),
    "drop_block": Case(
        {"x": MAPS},
        lambda x: ref.drop_block(x, 0.1, 7, *DRAW)[0],
        lambda dy, x: ref.rescaled(dy, ref.drop_block(x, 0.1, 7, *DRAW)[1]),
    ),
    "gaussian_dropout": Case(
        {"x": X}, *masked(lambda x, *_: ref.noise_scale(x, 1.0, ref.normals(lines(x), *DRAW)))
    ),
    "gaussian_noise": Case(
        {"x": X, "std": 0.7},
        lambda x, std: ref.noise_add(x, std, ref.normals(lines(x), *DRAW)),
        lambda dy, *_: dy,
    ),
    "dropconnect": Case({"x": X, "weight": W, "bias": BIAS}, connected, of_connected),
    "concrete_dropout": Case(
        {"x": X, "logit": LOGIT},
        lambda x, logit: ref.concrete(x, logit, 0.1, ref.logistics(lines(x), *DRAW)),
        of_concrete,
        close=(1,),
    ),
    "variational_dropout": Case(
        {"x": X, "log_alpha": numbers(40).astype(np.float64)},
        lambda x, log_alpha: ref.noise_scale(x, sigma_of(log_alpha), ref.normals(lines(x), *DRAW)),
        of_variational,
        on_host=("log_alpha",),
        close=(1,),
    ),
    "zoneout": Case(
        {"previous": X, "new": R},
        lambda previous, new: ref.zoneout(previous, new, 0.1, *DRAW)[0],
        lambda dy, *_: ref.zoneout_gradient(dy, kept(dy.shape, 0.1)),
    ),
    "softmax_dropout": Case(
        {"scores": X},
        lambda x: ref.softmax_dropout(x, True, kept(x.shape), 1.0, 2.0)[0],
        lambda dy, x: ref.softmax_dropout_backward(
            dy, ref.softmax_dropout(x, True, kept(x.shape), 1.0, 2.0)[1], kept(x.shape), 1.0, 2.0
        ),
        kernels=False,
    ),
    "targeted_dropout": Case(
        {"weight": W},
        lambda weight: ref.targeted_dropout(weight, 0.5, 0.5, "weight", *DRAW)[0],
        lambda dy, weight: np.where(
            ref.targeted_dropout(weight, 0.5, 0.5, "weight", *DRAW)[1], dy, np.float32(0)
        ),
        kernels=False,
    ),
    "adversarial_dropout": Case(
        {"x": X, "gradient": R},
        lambda x, gradient: ref.adversarial_dropout(x, gradient, 0.05, 0.0, *DRAW)[0],
        of_adversarial,
        kernels=False,
    ),
    "sparse_variational_linear": Case(
        {"x": X, "weight": W, "log_variance": W - 3},
        lambda x, w, v: ref.sparse_variational_linear(x, w, v, None, DRAW),
        lambda dy, x, w, v: ref.sparse_variational_gradients(x, w, v, DRAW, dy)[:3],
        kernels=False,
        close=(-1, 0, 1, 2),
    ),
}
# What is no op: it returns no context.
OTHERS = {
    *("STREAM_VERSION", "Context", "Rng", "__version__", "concrete_regularizer", "cpu_features"),
    *(
        "cuda",
        "debug",
        "dropconnect_inference",
        "get_include",
        "get_num_threads",
        "keep_mask",
        "layers",
    ),
    *("kl_divergence", "mc", "reference", "schedules", "set_num_threads", "squared_divergence"),
    *("sparse_variational_kl", "targeted_prune", "variational_kl"),
}
SAVES = [
    (name, save)
    for name in CASES
    for save in ("bits", "seed")
    if save == "bits" or "save" in inspect.signature(getattr(fd, name.split(",")[0])).parameters
]
EACH = pytest.mark.parametrize(("name", "save"), SAVES)


def listed(grads):
    return grads if isinstance(grads, tuple) else (grads,)


def run(name, case, operands, save):
    op = getattr(fd, name.split(",")[0])
    takes_save = "save" in inspect.signature(op).parameters
    return op(**operands, rng=RNG(), **({"save": save} if takes_save else {}))


def compare(actual, expected, close):
    for k, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if k in close:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        else:
            assert_same_bits(np.asarray(a), np.asarray(b, a.dtype))


def test_every_op_is_here():
    assert {name.split(",")[0] for name in CASES} | OTHERS == set(fd.__all__)
    assert not OTHERS & CASES.keys()


@pytest.mark.skipif(SIMULATED, reason="once is enough")
@EACH
def test_numpy_against_the_reference(name, save):
    case = CASES[name]
    y, ctx = run(name, case, case.operands, save)
    expected = case.y(*case.operands.values())
    compare([y], [expected], [k + 1 for k in case.close])
    dy = numbers(*y.shape)[::-1]
    gradients = listed(case.gradients(dy, *case.operands.values()))
    compare(listed(ctx.backward(dy)), gradients, case.close)


@pytest.fixture
def kernels(monkeypatch):
    """Kernels for what the process has: compiled for this CPU, or as Python in the simulator."""
    if not find_spec("numba"):
        pytest.skip("Numba is not installed: pip install 'fastdrop[numba]'")
    if SIMULATED:  # starts a Python thread for each
        monkeypatch.setattr(launch, "THREADS", 3)
        monkeypatch.setattr(launch, "MAX_BLOCKS", 2)
        return
    monkeypatch.setattr(launch, "where", lambda: "njit")


def there(case):
    return {
        key: to_fake(value) if isinstance(value, np.ndarray) and key not in case.on_host else value
        for key, value in case.operands.items()
    }


@EACH
def test_a_device_against_numpy(name, save, kernels):
    case = CASES[name]
    if not case.kernels:
        with pytest.raises(TypeError, match=r"is a CUDA array, .* has no kernels"):
            run(name, case, there(case), save)
        return
    y, ctx = run(name, case, there(case), save)
    expected, here = run(name, case, case.operands, save)
    assert isinstance(y, FakeArray)
    assert_same_bits(y.host, expected)
    dy = numbers(*expected.shape)
    for a, b in zip(listed(ctx.backward(to_fake(dy))), listed(here.backward(dy)), strict=True):
        assert isinstance(a, FakeArray)
        assert_same_bits(a.host, np.asarray(b))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].kernels])
def test_the_functions_for_devices_take_operands_by_name(name, kernels):
    case = CASES[name]
    y, _ = getattr(cuda, name.split(",")[0])(**there(case), rng=RNG())
    assert_same_bits(y.host, run(name, case, case.operands, "bits")[0])


@pytest.mark.parametrize("name", CASES)
def test_masked_arrays_are_refused(name):
    """An op would lose their mask, silently; so would an `out`."""
    case, op, rng = CASES[name], getattr(fd, name.split(",")[0]), RNG()
    arrays = {k: a for k, a in case.operands.items() if isinstance(a, np.ndarray)}
    for key, a in arrays.items():
        with pytest.raises(TypeError, match=rf"{key} is a masked array"):
            op(**{**case.operands, key: np.ma.masked_array(a, a == a.flat[0])}, rng=rng)
    y, ctx = run(name, case, case.operands, "bits")
    with pytest.raises(TypeError, match=r"\w+ is a masked array"):
        ctx.backward(np.ma.masked_array(y))
    if "out" in inspect.signature(op).parameters:
        with pytest.raises(TypeError, match="out is a masked array"):
            op(**case.operands, rng=rng, out=np.ma.masked_array(y))
    assert rng.state == RNG().state


@pytest.mark.parametrize("name", CASES)
def test_out_that_overlaps_itself_is_refused(name, request):
    """Two elements in one place: the last one written would count, silently."""
    case, op, rng = CASES[name], getattr(fd, name.split(",")[0]), RNG()
    if "out" not in inspect.signature(op).parameters:
        return
    y, ctx = run(name, case, case.operands, "bits")
    once = np.zeros(y.size, y.dtype)
    overlapping = [
        np.lib.stride_tricks.as_strided(once, y.shape, strides)
        for strides in ((0,) * y.ndim, (y.itemsize,) * y.ndim)
    ]
    calls = [lambda out: op(**case.operands, rng=rng, out=out)]
    if "out" in inspect.signature(ctx.backward).parameters:
        calls.append(lambda out: ctx.backward(y, out=out))
    for call in calls:
        for out in overlapping:
            with pytest.raises(ValueError, match="out must not overlap itself"):
                call(out)
    assert rng.state == RNG().state
    assert not once.any()
    if case.kernels:
        request.getfixturevalue("kernels")
        for out in overlapping:
            with pytest.raises(ValueError, match="out must not overlap itself"):
                op(**there(case), rng=rng, out=FakeArray(out))
