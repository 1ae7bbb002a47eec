"""An LSTM in plain NumPy with the three kinds of dropout a recurrent network wants.

Locked dropout of the input, one mask a sequence; dropout of the recurrent state with one mask held
over time (Gal and Ghahramani 2016); zoneout of state and cell (Krueger et al. 2017). Run it with
``python -m fastdrop.examples.lstm``: it learns to predict the next character of Python's own
documentation, without and with dropout.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

import fastdrop as fd

Array = npt.NDArray[np.floating]


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z))."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


class LSTM:
    """A layer of LSTM cells (Hochreiter and Schmidhuber 1997; Gers et al. 2000).

    At each step, with gates i, f, o and candidate g from one product:

        i, f, o, g = x W + (mask * h) U + b
        c' = sigmoid(f) c + sigmoid(i) tanh(g),    c <- zoneout(c, c')
        h' = sigmoid(o) tanh(c'),                  h <- zoneout(h, h')

    Parameters
    ----------
    inputs, hidden : int
    p_input, p_state : float
        Drop rates of input and recurrent state.
    p_zone : float
        Chance that an element of h or c keeps its value.
    rng : fastdrop.Rng
        Draws masks; a call each for input and state, two for zoneout at each step.
    init : numpy.random.Generator
        Draws the weights.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        p_input: float = 0.0,
        p_state: float = 0.0,
        p_zone: float = 0.0,
        rng: fd.Rng,
        init: np.random.Generator,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        def weights(rows: int) -> Array:
            limit = 1.0 / np.sqrt(hidden)
            return init.uniform(-limit, limit, (rows, 4 * hidden)).astype(dtype)

        self.hidden = hidden
        self.W, self.U, self.b = weights(inputs), weights(hidden), np.zeros(4 * hidden, dtype)
        self.b[hidden : 2 * hidden] = 1.0  # the forget gate begins open
        self.p_state = p_state
        self.input_dropout = fd.layers.LockedDropout(p_input, rng=rng)
        self.p_zone, self.rng = p_zone, rng
        self.training = True

    def __call__(self, x: Array) -> Array:
        """x of shape (batch, time, inputs) to h of shape (batch, time, hidden)."""
        batch, time, _ = x.shape
        zone = {"rng": self.rng, "training": self.training}
        self.input_dropout.train(self.training)
        self.x = self.input_dropout(x)
        z_input = self.x @ self.W + self.b
        # The same seed and call at each step: the same mask.
        seed, call = self.rng.take() if self.training else (0, 0)
        h = c = np.zeros((batch, self.hidden), x.dtype)
        out = np.empty((batch, time, self.hidden), x.dtype)
        self.steps = []
        for t in range(time):
            masked, state = fd.dropout(
                h, self.p_state, rng=fd.Rng(seed, call), training=self.training
            )
            z = z_input[:, t] + masked @ self.U
            i, f, o = (sigmoid(part) for part in np.split(z[:, : 3 * self.hidden], 3, axis=1))
            g = np.tanh(z[:, 3 * self.hidden :])
            new = f * c + i * g
            squashed = np.tanh(new)
            c_next, c_zone = fd.zoneout(c, new, self.p_zone, **zone)
            h, h_zone = fd.zoneout(h, o * squashed, self.p_zone, **zone)
            self.steps.append((masked, state, i, f, o, g, c, squashed, c_zone, h_zone))
            c, out[:, t] = c_next, h
        return out

    def backward(self, dout: Array) -> Array:
        """Gradient with respect to x; those of W, U and b go to `grads`."""
        dz_all = np.empty((*dout.shape[:2], 4 * self.hidden), dout.dtype)
        dU = np.zeros_like(self.U)
        dh = dc = np.zeros_like(dout[:, 0])
        for t in reversed(range(len(self.steps))):
            masked, state, i, f, o, g, c, squashed, c_zone, h_zone = self.steps[t]
            dh_kept, dh_new = h_zone.backward(dout[:, t] + dh)
            dc_kept, dc_new = c_zone.backward(dc)
            dc_new = dc_new + dh_new * o * (1.0 - squashed * squashed)
            dz = np.concatenate(
                (
                    dc_new * g * i * (1.0 - i),
                    dc_new * c * f * (1.0 - f),
                    dh_new * squashed * o * (1.0 - o),
                    dc_new * i * (1.0 - g * g),
                ),
                axis=1,
            )
            dU += masked.T @ dz
            dh = dh_kept + state.backward(dz @ self.U.T)
            dc = dc_kept + dc_new * f
            dz_all[:, t] = dz
        flat = dz_all.reshape(-1, dz_all.shape[-1])
        dW = self.x.reshape(-1, self.x.shape[-1]).T @ flat
        self.grads = {"W": dW, "U": dU, "b": flat.sum(axis=0)}
        return self.input_dropout.backward(dz_all @ self.W.T)


class CharacterModel:
    """Embedding, LSTM, linear layer to the logits of the next character; Adam."""

    def __init__(self, characters: int, hidden: int, rates: dict[str, float], seed: int) -> None:
        init = np.random.default_rng(seed)
        normal = init.standard_normal
        self.E = normal((characters, 32), np.float32)
        self.lstm = LSTM(32, hidden, **rates, rng=fd.Rng(seed), init=init)
        self.V = normal((hidden, characters), np.float32) / np.float32(np.sqrt(hidden))
        self.a = np.zeros(characters, np.float32)
        self.parameters = {
            "E": self.E,
            "V": self.V,
            "a": self.a,
            **{name: getattr(self.lstm, name) for name in ("W", "U", "b")},
        }
        self.moments = {k: (np.zeros_like(p), np.zeros_like(p)) for k, p in self.parameters.items()}

    def loss(self, text: npt.NDArray[np.intp]) -> tuple[float, Array]:
        """Mean cross-entropy in nats of predicting text[:, 1:], and the logits' gradient."""
        self.h = self.lstm(self.E[text[:, :-1]])
        z = self.h @ self.V + self.a
        z -= z.max(axis=-1, keepdims=True)
        log = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
        target = text[:, 1:, None]
        dz = np.exp(log)
        np.put_along_axis(dz, target, np.take_along_axis(dz, target, -1) - 1, -1)
        return -float(np.take_along_axis(log, target, -1).mean()), dz / np.float32(target.size)

    def step(self, text: npt.NDArray[np.intp], number: int) -> float:
        """One mini-batch: forward, backward, Adam with the gradient's norm clipped to 1."""
        value, dz = self.loss(text)
        flat = dz.reshape(-1, dz.shape[-1])
        dx = self.lstm.backward(dz @ self.V.T)
        dE = np.zeros_like(self.E)
        np.add.at(dE, text[:, :-1], dx)
        dV = self.h.reshape(-1, self.h.shape[-1]).T @ flat
        grads = {"E": dE, "V": dV, "a": flat.sum(axis=0), **self.lstm.grads}
        norm = np.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
        size = 3e-3 * np.sqrt(1 - 0.999**number) / (1 - 0.9**number)
        for name, g in grads.items():
            m, v = self.moments[name]
            g = g / max(1.0, norm)
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            self.parameters[name] -= size * m / (np.sqrt(v) + 1e-8)
        return value


def text_of_python(length: int) -> npt.NDArray[np.intp]:
    """The beginning of the language reference that Python ships, as numbers of characters."""
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics))[:length]
    return np.unique(list(text), return_inverse=True)[1]


def train(
    name: str, rates: dict[str, float], epochs: int, hidden: int = 128, seed: int = 0
) -> tuple[float, float]:
    """Mean losses over the last epoch's training batches, and over the validation text."""
    from tqdm import tqdm

    text = text_of_python(24_000)
    length, batch = 64, 32
    rows = text[: len(text) // length * length].reshape(-1, length)
    known, unknown = np.split(rows, [len(rows) * 3 // 4])
    model = CharacterModel(int(text.max()) + 1, hidden, rates, seed)
    order, number = np.random.default_rng(seed), 0
    for _ in tqdm(range(epochs), desc=f"{name:16}", unit="epoch"):
        losses = []
        for index in np.array_split(order.permutation(len(known)), len(known) // batch):
            number += 1
            losses.append(model.step(known[index], number))
    model.lstm.training = False
    return float(np.mean(losses)), model.loss(unknown)[0]


def main(argv: list[str] | None = None) -> None:
    """Train without and with dropout; print the losses."""
    parser = argparse.ArgumentParser(prog="python -m fastdrop.examples.lstm", description=__doc__)
    parser.add_argument("--epochs", type=int, default=40, help="passes over the text")
    parser.add_argument("--hidden", type=int, default=128, help="cells of the LSTM")
    arguments = parser.parse_args(argv)
    rates = {"p_input": 0.2, "p_state": 0.3, "p_zone": 0.05}
    print(f"{'':16}  training  validation   (cross-entropy of the next character, nats)")
    for name, chosen in (("without dropout", {}), ("with dropout", rates)):
        known, unknown = train(name, chosen, arguments.epochs, arguments.hidden)
        print(f"{name:16}  {known:8.3f}  {unknown:10.3f}")


if __name__ == "__main__":
    main()
