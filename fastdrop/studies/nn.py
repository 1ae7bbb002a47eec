"""A small neural network library in plain NumPy, for the studies; copy what you need.

A layer is called forward, ``y = layer(x)``, then back, ``dx = layer.backward(dy)``, and leaves the
gradients of what it learns in ``layer.gradients``: the same as the layers of `fastdrop.layers`, so
they mix. The first axis counts the examples. Images are (number, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdrop as fd

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]
Arrays = dict[str, Array]


class Layer:
    """What the layers of this module share: names of parameters, and what is left of a step."""

    learned: tuple[str, ...] = ()
    wants_dx = True  # False: nothing in front of it learns
    saved: Any = None  # of the forward pass for the backward pass

    @property
    def parameters(self) -> Arrays:
        """The arrays themselves, to be updated in place."""
        return {name: getattr(self, name) for name in self.learned}

    def __getstate__(self) -> dict[str, Any]:
        """Between two steps nothing is saved that is needed again."""
        return {k: v for k, v in vars(self).items() if k not in ("saved", "gradients")}


class Dense(Layer):
    """y = x W + b."""

    learned = "W", "b"

    def __init__(
        self, inputs: int, outputs: int, init: np.random.Generator, gain: float = 2.0
    ) -> None:
        self.W = normal(init, (inputs, outputs), gain / inputs)
        self.b = np.zeros(outputs, np.float32)

    def __call__(self, x: Array) -> Array:
        self.saved = x
        y = x @ self.W
        y += self.b
        return y

    def backward(self, dy: Array) -> Array | None:
        self.gradients = {"W": self.saved.T @ dy, "b": dy.sum(axis=0)}
        return dy @ self.W.T if self.wants_dx else None


class Conv(Layer):
    """Convolution with square filters; zeros around the image keep its size.

    The filters are a matrix, (size * size * channels, filters), by which each patch of the image is
    multiplied. A few images at a time, so that their patches stay in the cache.
    """

    learned = "W", "b"

    def __init__(
        self, channels: int, filters: int, init: np.random.Generator, size: int = 3
    ) -> None:
        self.size = size
        inputs = size * size * channels
        self.W = normal(init, (inputs, filters), 2 / inputs)
        self.b = np.zeros(filters, np.float32)

    def __call__(self, x: Array) -> Array:
        self.saved = x
        y = self._convolve(x, self.W)
        y += self.b
        return y

    def backward(self, dy: Array) -> Array | None:
        x, filters = self.saved, dy.shape[-1]
        dW = np.zeros_like(self.W)
        for images in self._slices(x):
            dW += self._patches(x[images]).T @ dy[images].reshape(-1, filters)
        self.gradients = {"W": dW, "b": dy.reshape(-1, filters).sum(axis=0)}
        if not self.wants_dx:
            return None
        turned = self.W.reshape(self.size, self.size, -1, filters)[::-1, ::-1].swapaxes(2, 3)
        return self._convolve(dy, turned.reshape(-1, x.shape[-1]))

    def _convolve(self, x: Array, W: Array) -> Array:
        y = np.empty((*x.shape[:3], W.shape[1]), x.dtype)
        for images in self._slices(x):
            np.matmul(self._patches(x[images]), W, out=y[images].reshape(-1, W.shape[1]))
        return y

    def _slices(self, x: Array) -> Iterator[slice]:
        few = max(1, (1 << 19) // (x[0].size * self.size**2))
        return (slice(i, i + few) for i in range(0, len(x), few))

    def _patches(self, x: Array) -> Array:
        """Row r holds what the filters see of pixel r."""
        n, height, width, channels = x.shape
        around = self.size // 2
        padded = np.zeros((n, height + 2 * around, width + 2 * around, channels), x.dtype)
        padded[:, around : around + height, around : around + width] = x
        windows = np.lib.stride_tricks.sliding_window_view(padded, (self.size,) * 2, axis=(1, 2))
        return windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * height * width, -1)


class MaxPool(Layer):
    """The largest of each 2 x 2 pixels; a last odd row or column is left out."""

    def __call__(self, x: Array) -> Array:
        parts = _quarters(x)
        y = np.maximum(np.maximum(parts[0], parts[1]), np.maximum(parts[2], parts[3]))
        self.saved = x, y
        return y

    def backward(self, dy: Array) -> Array:
        x, y = self.saved
        dx = np.zeros_like(x)
        free = np.ones(y.shape, np.bool_)  # of equal pixels the first one has the gradient
        for part, dpart in zip(_quarters(x), _quarters(dx), strict=True):
            largest = part == y
            largest &= free
            free ^= largest
            np.multiply(dy, largest, out=dpart)
        return dx


def _quarters(x: Array) -> list[Array]:
    height, width = (n // 2 * 2 for n in x.shape[1:3])
    return [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]


class Flatten(Layer):
    """A row an example."""

    def __call__(self, x: Array) -> Array:
        self.saved = x.shape
        return x.reshape(len(x), -1)

    def backward(self, dy: Array) -> Array:
        return dy.reshape(self.saved)


class ReLU(Layer):
    """y = max(x, 0), in place, as the layer in front needs its output no more.

    A `Dropout` behind it may work in place, too: where that makes y zero, it makes dy zero.
    """

    def __call__(self, x: Array) -> Array:
        self.saved = np.maximum(x, 0, out=x)
        return x

    def backward(self, dy: Array) -> Array:
        dy *= self.saved > 0
        return dy


class SELU(Layer):
    """Klambauer et al. (2017), equation 2; dense layers in front of it take gain = 1."""

    SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772

    def __call__(self, x: Array) -> Array:
        y = np.expm1(np.minimum(x, 0))
        y *= self.ALPHA
        y += np.maximum(x, 0)
        y *= self.SCALE
        self.saved = y
        return y

    def backward(self, dy: Array) -> Array:
        y = self.saved
        return dy * np.where(y > 0, self.SCALE, y + self.SCALE * self.ALPHA)


class Dropout(fd.layers.Dropout):
    """fastdrop's, in place."""

    def __call__(self, x: Array) -> Array:
        return super().__call__(x, out=x) if self.training else x

    def backward(self, dy: Array) -> Array:  # type: ignore[override]  # as the other layers here
        return super().backward(dy, out=dy) if self.training else dy


class LSTM(Layer):
    """Hochreiter and Schmidhuber (1997), over all steps of a sequence, with dropout inside.

    i, f, o, g = sigmoid, sigmoid, sigmoid, tanh of (x W + dropout(h') U + b)
    c = zoneout(c', f c' + i g)
    h = zoneout(h', o tanh(f c' + i g))

    h' and c' are those of the step before, 0 in front of the first. Recurrent dropout is that of
    Gal and Ghahramani (2016), one mask a sequence; zoneout that of Krueger et al. (2017), a new
    mask each step. x is (time, batch, inputs), h of each step (time, batch, units).
    """

    learned = "W", "U", "b"

    def __init__(
        self,
        inputs: int,
        units: int,
        init: np.random.Generator,
        recurrent: float = 0.0,
        hidden: float = 0.0,
        cell: float = 0.0,
        rng: fd.Rng | None = None,
    ) -> None:
        self.rates = recurrent, hidden, cell
        self.rng = rng
        self.training = True
        self.W = normal(init, (inputs, 4 * units), 1 / inputs)
        self.U = normal(init, (units, 4 * units), 1 / units)
        self.b = np.repeat(np.array([0, 1, 0, 0], np.float32), units)  # to begin with, f remembers

    def train(self, mode: bool = True) -> None:
        """As of fastdrop's layers."""
        self.training = mode

    def __call__(self, x: Array) -> Array:
        time, batch, _ = x.shape
        units = len(self.U)
        recurrent, hidden, cell = self.rates
        gates = (x @ self.W + self.b).reshape(time, batch, 4, units)
        h, c, tanh_c, heard = np.zeros((4, time + 1, batch, units), x.dtype)
        how: dict[str, Any] = {"training": self.training, "rng": self.rng}
        held = fd.Rng(self.rng.spawn(1)[0].seed if self.training and self.rng else 0)
        contexts = []
        for t in range(time):
            again = {**how, "rng": fd.Rng(held.seed)}  # the same at each step: the same mask
            with fd.debug(False):  # which takes one mask for two arrays for a fault
                heard[t], dropped = fd.dropout(h[t], recurrent, **again)
            a = gates[t]
            a += (heard[t] @ self.U).reshape(a.shape)
            a[:, :3] = sigmoid(a[:, :3])
            a[:, 3] = np.tanh(a[:, 3])
            i, f, o, g = a.swapaxes(0, 1)
            new_c = f * c[t] + i * g
            tanh_c[t] = np.tanh(new_c)
            c[t + 1], zone_c = fd.zoneout(c[t], new_c, cell, **how)
            h[t + 1], zone_h = fd.zoneout(h[t], o * tanh_c[t], hidden, **how)
            contexts.append((dropped, zone_c, zone_h))
        self.saved = x, gates, c, tanh_c, heard, contexts
        return h[1:]

    def backward(self, dy: Array) -> Array:
        x, gates, c, tanh_c, heard, contexts = self.saved
        da = np.empty_like(gates)
        dh = dc = np.zeros_like(dy[0])
        for t in reversed(range(len(dy))):
            dropped, zone_c, zone_h = contexts[t]
            i, f, o, g = gates[t].swapaxes(0, 1)
            dh_before, dnew_h = zone_h.backward(dh + dy[t])
            dc_before, dnew_c = zone_c.backward(dc)
            dnew_c += dnew_h * o * (1 - tanh_c[t] ** 2)
            da[t, :, 0] = dnew_c * g * i * (1 - i)
            da[t, :, 1] = dnew_c * c[t] * f * (1 - f)
            da[t, :, 2] = dnew_h * tanh_c[t] * o * (1 - o)
            da[t, :, 3] = dnew_c * i * (1 - g**2)
            dc = dc_before + dnew_c * f
            dheard = da[t].reshape(len(dh), -1) @ self.U.T
            with fd.debug(False):
                dh = dh_before + dropped.backward(dheard)
        da = da.reshape(*dy.shape[:2], -1)
        self.gradients = {
            "W": product(x, da),
            "U": product(heard[:-1], da),
            "b": da.sum(axis=(0, 1)),
        }
        return da @ self.W.T


class Network:
    """Layers one behind the other, of this module and of `fastdrop.layers`.

    Attributes
    ----------
    parameters : dict of str to ndarray
        All that is learned, with names like "0.W".
    gradients : dict of str to ndarray
        Those of the last `learn`.
    seconds : list of float
        What each layer took so far, in training.
    """

    def __init__(self, *layers: Any) -> None:
        self.layers = layers
        self.seconds = [0.0] * len(layers)
        self.first = next(k for k, layer in enumerate(layers) if layer.learned)
        if isinstance(layers[self.first], Layer):
            layers[self.first].wants_dx = False

    @property
    def parameters(self) -> Arrays:
        return self._named("parameters")

    @property
    def gradients(self) -> Arrays:
        return self._named("gradients")

    def _named(self, which: str) -> Arrays:
        learning = [(k, layer) for k, layer in enumerate(self.layers) if layer.learned]
        return {f"{k}.{n}": a for k, layer in learning for n, a in getattr(layer, which).items()}

    @property
    def dropouts(self) -> list[fd.layers.Layer]:
        """The layers of fastdrop."""
        return [layer for layer in self.layers if isinstance(layer, fd.layers.Layer)]

    @property
    def dropout_seconds(self) -> float:
        """What they took so far, in training."""
        timed = zip(self.layers, self.seconds, strict=True)
        return sum(s for layer, s in timed if isinstance(layer, fd.layers.Layer))

    def train(self, mode: bool = True) -> None:
        """Drop from now on, or no more."""
        for layer in self.layers:
            if hasattr(layer, "train"):
                layer.train(mode)

    def __call__(self, x: Array) -> Array:
        """The last layer's output."""
        for k, layer in enumerate(self.layers):
            start = perf_counter()
            x = layer(x)
            self.seconds[k] += perf_counter() - start
        return x

    def backward(self, dy: Array) -> None:
        """All gradients, from that of the output."""
        for k in range(len(self.layers) - 1, self.first - 1, -1):
            start = perf_counter()
            dy = self.layers[k].backward(dy)
            self.seconds[k] += perf_counter() - start

    def learn(self, x: Array, t: Labels) -> float:
        """Gradients of the loss of a batch, and that loss. To be overridden for other losses."""
        loss, dlogits = cross_entropy(self(x), t)
        self.backward(dlogits)
        return loss

    def predict(self, x: Array) -> Array:
        """Logits in evaluation mode, a slice of x at a time."""
        seconds = self.seconds.copy()
        self.train(False)
        logits = np.concatenate([self(x[i : i + 1000]) for i in range(0, len(x), 1000)])
        self.train()
        self.seconds = seconds
        return logits

    def score(self, x: Array, t: Labels) -> tuple[float, float]:
        """Accuracy and mean loss, in evaluation mode."""
        logits = self.predict(x)
        return float((logits.argmax(axis=1) == t).mean()), cross_entropy(logits, t)[0]


class Optimizer:
    """What follows the gradients, and what is done to weights besides.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Updated in place.
    rate : float or callable
        Learning rate, or a function of the step.
    weight_decay : float
        What is taken off each weight, times rate and weight; biases stay.
    max_norm : float
        Of the weights that lead into one unit.
    """

    def __init__(
        self,
        parameters: Arrays,
        rate: float | Callable[[int], float],
        weight_decay: float = 0.0,
        max_norm: float = np.inf,
    ) -> None:
        self.parameters, self.rate = parameters, rate
        self.weight_decay, self.max_norm = weight_decay, max_norm
        self.step = 0

    def __call__(self, gradients: Arrays) -> None:
        """One step."""
        rate = self.rate(self.step) if callable(self.rate) else self.rate
        self.step += 1
        for name, p in self.parameters.items():
            if self.weight_decay and p.ndim > 1:
                p *= 1 - rate * self.weight_decay
            self.update(name, p, gradients[name], rate)
            if self.max_norm < np.inf and p.ndim > 1:
                norms = np.sqrt(np.einsum("io,io->o", p, p))
                p *= np.minimum(1, self.max_norm / np.maximum(norms, 1e-30))

    def update(self, name: str, parameter: Array, gradient: Array, rate: float) -> None:
        """Change one parameter."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    def __init__(
        self,
        parameters: Arrays,
        rate: float | Callable[[int], float],
        momentum: float = 0.0,
        **more: float,
    ) -> None:
        super().__init__(parameters, rate, **more)
        self.momentum = momentum
        self.velocity = {name: np.zeros_like(p) for name, p in parameters.items()}

    def update(self, name: str, parameter: Array, gradient: Array, rate: float) -> None:
        v = self.velocity[name]
        v *= self.momentum
        v -= rate * gradient
        parameter += v


class Adam(Optimizer):
    """Kingma and Ba (2015); with weight_decay, that of Loshchilov and Hutter (2019)."""

    def __init__(
        self,
        parameters: Arrays,
        rate: float | Callable[[int], float] = 1e-3,
        b1: float = 0.9,
        b2: float = 0.999,
        **more: float,
    ) -> None:
        super().__init__(parameters, rate, **more)
        self.b1, self.b2 = b1, b2
        self.moments = {k: (np.zeros_like(p), np.zeros_like(p)) for k, p in parameters.items()}

    def update(self, name: str, parameter: Array, gradient: Array, rate: float) -> None:
        size = rate * float(np.sqrt(1 - self.b2**self.step)) / (1 - self.b1**self.step)
        for m, v, p, g in _pieces(*self.moments[name], parameter, gradient):
            s = g - m
            s *= 1 - self.b1
            m += s
            np.multiply(g, g, out=s)
            s -= v
            s *= 1 - self.b2
            v += s
            np.sqrt(v, out=s)
            s += 1e-8
            np.divide(m, s, out=s)
            s *= size
            p -= s


def _pieces(*arrays: Array, length: int = 1 << 14) -> Iterator[tuple[Array, ...]]:
    """Successive pieces of arrays of one shape, that stay in the cache together."""
    flat = [a.reshape(-1) for a in arrays]
    return (tuple(a[i : i + length] for a in flat) for i in range(0, flat[0].size, length))


class EarlyStopping:
    """Stops when the validation loss has not been lower for `patience` epochs; keeps the best."""

    def __init__(self, patience: int, parameters: Arrays) -> None:
        self.patience, self.best, self.waited = patience, np.inf, 0
        self.parameters = parameters
        self.kept = {name: p.copy() for name, p in parameters.items()}

    def __call__(self, loss: float) -> bool:
        """Whether to stop; then the parameters are those of the best epoch again."""
        self.waited += 1
        if loss < self.best:
            self.best, self.waited = loss, 0
            self._copy(self.parameters, self.kept)
        if self.waited < self.patience:
            return False
        self._copy(self.kept, self.parameters)
        return True

    @staticmethod
    def _copy(source: Arrays, target: Arrays) -> None:
        for name, p in source.items():
            np.copyto(target[name], p)


class Training:
    """A network, its optimizer and the order of its images: what the next epoch depends on."""

    def __init__(
        self,
        net: Network,
        update: Callable[[Arrays], None],
        seed: int,
        batch: int = 128,
        stop: EarlyStopping | None = None,
    ) -> None:
        self.net, self.update, self.batch, self.stop = net, update, batch, stop
        self.order = np.random.default_rng([seed, 1])
        self.done = False

    def epoch(self, data: Any, progress: Callable[[float], object]) -> dict[str, float]:
        """Train on all images once; what came of it. Tells its progress, from 0 to 1.

        Accuracies and losses are those after the epoch, without dropping, on all images.
        """
        seconds, dropout_seconds = -perf_counter(), -self.net.dropout_seconds
        order = self.order.permutation(len(data.t_train))
        for i in range(0, len(order), self.batch):
            index = order[i : i + self.batch]
            self.net.learn(data.x_train[index], data.t_train[index])
            self.update(self.net.gradients)
            progress((i + len(index)) / len(order))
        seconds += perf_counter()
        dropout_seconds += self.net.dropout_seconds
        train_accuracy, train_loss = self.net.score(data.x_train, data.t_train)
        accuracy, loss = self.net.score(data.x_valid, data.t_valid)
        if self.stop is not None:
            self.done = self.stop(loss)
        return {
            "train accuracy": train_accuracy,
            "train loss": train_loss,
            "validation accuracy": accuracy,
            "validation loss": loss,
            "seconds": seconds,
            "dropout seconds": dropout_seconds,
        }

    def test(self, data: Any) -> dict[str, float]:
        """Accuracy and loss on the images that nothing was chosen by."""
        accuracy, loss = self.net.score(data.x_test, data.t_test)
        return {"test accuracy": accuracy, "test loss": loss}


def normal(init: np.random.Generator, shape: tuple[int, ...], variance: float) -> Array:
    """Weights to begin with; variance 2 / inputs is that of He et al. (2015)."""
    return init.standard_normal(shape, np.float32) * np.float32(np.sqrt(variance))


def cross_entropy(logits: Array, t: Labels) -> tuple[float, Array]:
    """Mean of -log softmax(logits)[label] over the rows, and its gradient."""
    p = softmax(logits)
    rows = np.arange(len(t))
    loss = -np.log(np.maximum(p[rows, t], 1e-30)).mean(dtype=np.float64)
    p[rows, t] -= 1  # softmax minus the one-hot label
    p /= len(t)
    return float(loss), p


def softmax(z: Array) -> Array:
    """Probabilities along the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), which does not overflow this way."""
    return 0.5 * (1 + np.tanh(0.5 * a))


def product(x: Array, dy: Array) -> Array:
    """Gradient of W in y = x @ W: the sum over the steps."""
    return sum(x_t.T @ dy_t for x_t, dy_t in zip(x, dy, strict=True))
