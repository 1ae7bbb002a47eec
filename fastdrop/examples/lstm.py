"""A recurrent network in plain NumPy that predicts the next character, with four kinds of dropout.

One LSTM layer (Hochreiter and Schmidhuber 1997) between a table of character vectors and a softmax,
backpropagation through time written by hand, Adam. The text is Python's own language reference, of
which the network gets so little that it learns it by heart. Run it with
``python -m fastdrop train lstm``.

Arrays have the steps in front: (time, batch, units).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import fastdrop as fd

Array = npt.NDArray[np.floating]
Characters = npt.NDArray[np.int64]
Parameters = dict[str, Array]


@dataclass(frozen=True)
class Rates:
    """How much is dropped where; by default nothing."""

    words: float = 0.0  # embedding dropout: characters of the table, one mask a batch
    inputs: float = 0.0  # locked dropout: what enters and leaves the layer, one mask a sequence
    recurrent: float = 0.0  # what h tells the gates, one mask a sequence
    hidden: float = 0.0  # zoneout of h, a new mask each step
    cell: float = 0.0  # zoneout of c, a new mask each step


class LSTM:
    """One layer, over all steps of a sequence.

    i, f, o, g = sigmoid, sigmoid, sigmoid, tanh of (x W + dropout(h') U + b)
    c = zoneout(c', f c' + i g)
    h = zoneout(h', o tanh(f c' + i g))

    h' and c' are those of the step before, 0 in front of the first. Recurrent dropout is that of
    Gal and Ghahramani (2016), zoneout that of Krueger et al. (2017).
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        rates: Rates,
        init: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        self.rates = rates
        self.W = (init.standard_normal((inputs, 4 * units)) / np.sqrt(inputs)).astype(dtype)
        self.U = (init.standard_normal((units, 4 * units)) / np.sqrt(units)).astype(dtype)
        self.b = np.repeat([0, 1, 0, 0], units).astype(dtype)  # to begin with, f remembers

    def __call__(self, x: Array, rng: fd.Rng, training: bool) -> Array:
        """h of each step, (time, batch, units), from x, (time, batch, inputs)."""
        time, batch, _ = x.shape
        units = len(self.U)
        gates = (x @ self.W + self.b).reshape(time, batch, 4, units)
        h, c, tanh_c, heard = np.zeros((4, time + 1, batch, units), x.dtype)
        rates, how = self.rates, {"training": training}
        held = rng.spawn(1)[0] if training else rng
        self.contexts = []
        for t in range(time):
            again = fd.Rng(held.seed)  # the same seed and call at each step: the same mask
            heard[t], recurrent = fd.dropout(h[t], rates.recurrent, rng=again, **how)
            a = gates[t]
            a += (heard[t] @ self.U).reshape(a.shape)
            a[:, :3] = sigmoid(a[:, :3])
            a[:, 3] = np.tanh(a[:, 3])
            i, f, o, g = a.swapaxes(0, 1)
            new_c = f * c[t] + i * g
            tanh_c[t] = np.tanh(new_c)
            c[t + 1], zone_c = fd.zoneout(c[t], new_c, rates.cell, rng=rng, **how)
            h[t + 1], zone_h = fd.zoneout(h[t], o * tanh_c[t], rates.hidden, rng=rng, **how)
            self.contexts.append((recurrent, zone_c, zone_h))
        self.saved = x, gates, c, tanh_c, heard
        return h[1:]

    def backward(self, dy: Array) -> tuple[Array, Parameters]:
        """Gradients of x and of the parameters, from those of h of each step."""
        x, gates, c, tanh_c, heard = self.saved
        da = np.empty_like(gates)
        dh = dc = np.zeros_like(dy[0])
        for t in reversed(range(len(dy))):
            recurrent, zone_c, zone_h = self.contexts[t]
            i, f, o, g = gates[t].swapaxes(0, 1)
            dh_before, dnew_h = zone_h.backward(dh + dy[t])
            dc_before, dnew_c = zone_c.backward(dc)
            dnew_c += dnew_h * o * (1 - tanh_c[t] ** 2)
            da[t, :, 0] = dnew_c * g * i * (1 - i)
            da[t, :, 1] = dnew_c * c[t] * f * (1 - f)
            da[t, :, 2] = dnew_h * tanh_c[t] * o * (1 - o)
            da[t, :, 3] = dnew_c * i * (1 - g**2)
            dc = dc_before + dnew_c * f
            dh = dh_before + recurrent.backward(da[t].reshape(len(dh), -1) @ self.U.T)
        da = da.reshape(*dy.shape[:2], -1)
        grads = {"W": product(x, da), "U": product(heard[:-1], da), "b": da.sum(axis=(0, 1))}
        return da @ self.W.T, grads


class Network:
    """A table of character vectors, the layer, and logits of the next character."""

    def __init__(
        self,
        characters: int,
        units: int,
        rates: Rates,
        seed: int,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        init = np.random.default_rng(seed)
        self.rates, self.rng = rates, fd.Rng(seed)
        self.lstm = LSTM(units, units, rates, init, dtype)
        self.table = init.standard_normal((characters, units)).astype(dtype)
        self.V = (init.standard_normal((units, characters)) / np.sqrt(units)).astype(dtype)
        self.d = np.zeros(characters, dtype)

    @property
    def parameters(self) -> Parameters:
        """All that is learned: the arrays themselves."""
        own = {"table": self.table, "V": self.V, "d": self.d}
        return own | {"W": self.lstm.W, "U": self.lstm.U, "b": self.lstm.b}

    def loss(self, ids: Characters, training: bool = False) -> float:
        """Mean cross-entropy, in nats, of all characters but the first of ids, (time, batch)."""
        how = {"rng": self.rng, "training": training}
        locked = {"time_axis": 0, **how}
        x, self.looked_up = fd.embedding_dropout(self.table, self.rates.words, ids=ids[:-1], **how)
        x, self.entered = fd.locked_dropout(x, self.rates.inputs, **locked)
        h = self.lstm(x, **how)
        self.h, self.left = fd.locked_dropout(h, self.rates.inputs, **locked)
        self.p = softmax(self.h @ self.V + self.d)
        self.targets = ids[1:, :, None]
        return float(-np.log(np.take_along_axis(self.p, self.targets, -1)).mean())

    def backward(self) -> Parameters:
        """Gradients of the last loss, with the names of the parameters."""
        dlogits = self.p.copy()
        right = np.take_along_axis(dlogits, self.targets, -1)
        np.put_along_axis(dlogits, self.targets, right - 1, -1)
        dlogits /= self.targets.size
        dx, grads = self.lstm.backward(self.left.backward(dlogits @ self.V.T))
        grads["table"] = self.looked_up.backward(self.entered.backward(dx))
        return grads | {"V": product(self.h, dlogits), "d": dlogits.sum(axis=(0, 1))}


class Adam:
    """Kingma and Ba (2015); its moments beside each parameter."""

    def __init__(self, parameters: Parameters, rate: float = 5e-3) -> None:
        self.parameters, self.rate, self.step = parameters, rate, 0
        self.moments = {k: (np.zeros_like(p), np.zeros_like(p)) for k, p in parameters.items()}

    def __call__(self, grads: Parameters, b1: float = 0.9, b2: float = 0.999) -> None:
        """Update the parameters in place."""
        self.step += 1
        size = self.rate * np.sqrt(1 - b2**self.step) / (1 - b1**self.step)
        for name, (m, v) in self.moments.items():
            m += (1 - b1) * (grads[name] - m)
            v += (1 - b2) * (grads[name] ** 2 - v)
            self.parameters[name] -= size * m / (np.sqrt(v) + 1e-8)


def product(x: Array, dy: Array) -> Array:
    """Gradient of W in y = x @ W: the sum over the steps."""
    return sum(x_t.T @ dy_t for x_t, dy_t in zip(x, dy, strict=True))


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), which does not overflow this way."""
    return 0.5 * (1 + np.tanh(0.5 * a))


def softmax(z: Array) -> Array:
    """Probabilities along the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def read(length: int) -> tuple[Characters, Characters, int]:
    """Two successive pieces of Python's language reference as numbers, and how many there are."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))[: 2 * length]
    characters, ids = np.unique(list(text), return_inverse=True)
    return ids[:length], ids[length:], len(characters)


def windows(ids: Characters, starts: Characters, steps: int) -> Characters:
    """Pieces of steps + 1 characters, (steps + 1, len(starts))."""
    return ids[starts + np.arange(steps + 1)[:, None]]


def train(
    epochs: int, seed: int, length: int = 10_000, units: int = 64, steps: int = 40, batch: int = 16
) -> None:
    """Train without and with dropout side by side; print the losses over both pieces of text."""
    learned, held_out, characters = read(length)
    rates = Rates(words=0.05, inputs=0.2, recurrent=0.2, hidden=0.05, cell=0.1)
    networks = [Network(characters, units, r, seed) for r in (Rates(), rates)]
    updates = [Adam(network.parameters) for network in networks]
    order = np.random.default_rng([seed, 1])
    part = length // batch  # to score, a piece is cut into as many parts as a batch has
    pieces = [windows(p, np.arange(batch) * part, part - 1) for p in (learned, held_out)]
    print(f"{length} characters to learn, the next {length} to validate; nats a character\n")
    print("        without dropout     with dropout")
    print("epoch   train   valid       train   valid")
    for epoch in range(1, epochs + 1):
        for _ in range(length // (batch * steps)):
            ids = windows(learned, order.integers(0, length - steps, batch), steps)
            for network, update in zip(networks, updates, strict=True):
                network.loss(ids, training=True)
                update(network.backward())
        if epoch % max(1, epochs // 10) == 0:
            row = [network.loss(piece) for network in networks for piece in pieces]
            print("{:5}   {:.3f}   {:.3f}       {:.3f}   {:.3f}".format(epoch, *row), flush=True)
