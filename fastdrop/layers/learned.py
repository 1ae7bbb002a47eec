"""Layers with parameters that are learned, or with more to do than one op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log, log1p
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastdrop._core import Draw, Place
from fastdrop.backends.cpu import normals
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.layers.layer import Layer, Rate
from fastdrop.ops.adversarial import adversarial_dropout, whole_examples
from fastdrop.ops.concrete import (
    LEAST_TEMPERATURE,
    LOGIT_LIMIT,
    concrete_dropout,
    concrete_regularizer,
    sigmoid,
)
from fastdrop.ops.dropconnect import MODES as dropconnect_modes
from fastdrop.ops.dropconnect import dropconnect
from fastdrop.ops.dropout import Context, dropout
from fastdrop.ops.shared import embedding_dropout
from fastdrop.ops.targeted import MODES as targeted_modes
from fastdrop.ops.targeted import targeted_dropout, targeted_prune
from fastdrop.ops.variational import (
    kept_weights,
    log_variance_range,
    sparse_variational_kl,
    sparse_variational_linear,
    variational_dropout,
    variational_kl,
)
from fastdrop.rng import Rng, RngLike, with_draw


class EmbeddingDropout(Layer):
    """An embedding table whose rows are dropped; learns ``layer.weight``.

    Parameters
    ----------
    weight : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, shape (words, ...)
        The table; kept as it is, not copied.
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    rng
        As in `Dropout`.
    """

    learned = ("weight",)

    def __init__(self, weight: npt.ArrayLike, p: Rate = 0.1, *, rng: RngLike = None) -> None:
        super().__init__(rng, p)
        self.weight = gate.array(weight, "weight")

    def _forward(self, ids: npt.ArrayLike) -> tuple[Any, Any]:
        return embedding_dropout(
            self.weight, self.rate(), ids=ids, rng=self.rng, training=self.training
        )

    def share_batch(self) -> None:
        """A word is dropped in all examples as it is; see `Layer.share_batch`."""

    def _divided(self, grads: Any) -> tuple[None, dict[str, npt.NDArray[Any]]]:
        """Ids have no gradient."""
        return None, {"weight": grads}

    def __repr__(self) -> str:
        return f"EmbeddingDropout(weight of {self.weight.shape}, p={self.p})"


class RangedLayer(Layer):
    """A layer with a learned parameter that has a range. One rule holds for all of them:

    Before the layer uses the parameter, it puts it back into its closed range, in place: the step
    of an optimiser may have led out of it. At a bound the gradient is that of the inner side. So no
    step makes a call fail, and a step too far is undone as soon as the loss wants it.
    """

    room: ClassVar[float] = 0.0
    """How far inside its range a parameter is put that was outside."""

    def _range(self) -> tuple[str, Any, Any]:
        """The parameter's name, and its least and largest values."""
        raise NotImplementedError(f"{type(self).__name__} says no range")

    def _project(self) -> Any:
        """The parameter, in its range."""
        name, low, high = self._range()
        value = gate.host(getattr(self, name), name)
        inside = (value >= low) & (value <= high)
        if not np.all(inside):  # NaN is in no range, and stays
            own = value if value.flags.writeable and value is getattr(self, name) else value.copy()
            np.copyto(own, np.clip(value, low + self.room, high - self.room), where=~inside)
            value = own
        if value is not getattr(self, name):
            setattr(self, name, value)
        return value


class ConcreteDropout(RangedLayer):
    """`concrete_dropout` as a layer; learns ``layer.logit``, which it keeps within +-40.

    Parameters
    ----------
    p : float
        Rate to begin with, below 1 and at least 4.25e-18, where the logit is -40; ``layer.p`` is
        the present one.
    temperature : float
    rng, shared_axes
        As in `Dropout`.
    weight_regularizer, dropout_regularizer : float
        As in `concrete_regularizer`.

    Examples
    --------
    >>> layer = fastdrop.layers.ConcreteDropout(0.1)
    >>> y = layer(x)
    >>> dx = layer.backward(dy)
    >>> value, dweight = layer.regularize(weight, features=x.shape[1])
    >>> layer.logit -= rate * layer.gradients["logit"]
    """

    learned = ("logit",)

    def __init__(
        self,
        p: float = 0.1,
        temperature: float = 0.1,
        *,
        rng: RngLike = None,
        shared_axes: int | Sequence[int] = (),
        weight_regularizer: float = 1e-6,
        dropout_regularizer: float = 1e-5,
    ) -> None:
        super().__init__(rng)
        p = gate.rate(p)
        if p in (0.0, 1.0):
            raise ValueError(f"p must be strictly between 0 and 1 to be learned, got {p}")
        self.logit = np.asarray(log(p) - log1p(-p))
        if self.logit < -LOGIT_LIMIT:
            raise ValueError(f"p must be at least {sigmoid(-LOGIT_LIMIT):.3g}, got {p}")
        self.temperature = gate.positive(temperature, "temperature", LEAST_TEMPERATURE)
        self.shared_axes = shared_axes
        self.weight_regularizer = gate.real(weight_regularizer, "weight_regularizer", 0.0)
        self.dropout_regularizer = gate.real(dropout_regularizer, "dropout_regularizer", 0.0)

    @property
    def p(self) -> float:  # type: ignore[override]  # read only
        """The rate that has been learned so far."""
        return sigmoid(float(np.clip(self.logit, -LOGIT_LIMIT, LOGIT_LIMIT)))

    def _range(self) -> tuple[str, Any, Any]:
        return "logit", -LOGIT_LIMIT, LOGIT_LIMIT

    def _forward(
        self, x: npt.ArrayLike, *, region: Region | None = None, rows: npt.ArrayLike | None = None
    ) -> tuple[Any, Any]:
        return concrete_dropout(
            x,
            self._project(),
            self.temperature,
            rng=self.rng,
            training=self.training,
            shared_axes=self.shared_axes,
            region=region,
            rows=rows,
        )

    def regularize(self, weight: npt.NDArray[Any], features: int) -> tuple[float, npt.NDArray[Any]]:
        """Add the regularizer's gradient to that of the logit, after `backward`.

        Returns
        -------
        value : float
        dweight : ndarray
        """
        value, dlogit, dweight = concrete_regularizer(
            self._project(),
            weight,
            features,
            weight_regularizer=self.weight_regularizer,
            dropout_regularizer=self.dropout_regularizer,
        )
        if "logit" not in self.gradients:
            raise RuntimeError("regularize needs a backward call of the layer before it")
        self.gradients["logit"] = self.gradients["logit"] + dlogit
        return value, dweight

    def __repr__(self) -> str:
        return f"ConcreteDropout(p={self.p:.6g}, temperature={self.temperature})"


class VariationalDropout(RangedLayer):
    """`variational_dropout` as a layer; learns ``layer.log_alpha``, which it keeps at most 0.

    Parameters
    ----------
    shape : tuple of int
        Of log_alpha: () for one of the layer, (features,) for one a neuron, or x's shape.
    alpha : float
        To begin with, above 0 and at most 1: the variance, p / (1 - p) of the dropout like it.
    rng, shared_axes
        As in `Dropout`.
    """

    learned = ("log_alpha",)

    def __init__(
        self,
        shape: tuple[int, ...] = (),
        alpha: float = 0.5,
        *,
        rng: RngLike = None,
        shared_axes: int | Sequence[int] = (),
    ) -> None:
        super().__init__(rng)
        alpha = gate.real(alpha, "alpha", 0.0, 1.0)
        if alpha == 0.0:
            raise ValueError("alpha must be above 0 to be learned, got 0.0")
        self.log_alpha = np.full(gate.shape(shape), np.log(alpha))
        self.shared_axes = shared_axes

    def _range(self) -> tuple[str, Any, Any]:
        return "log_alpha", -np.inf, 0.0

    def _forward(
        self, x: npt.ArrayLike, *, region: Region | None = None, rows: npt.ArrayLike | None = None
    ) -> tuple[Any, Any]:
        return variational_dropout(
            x,
            self._project(),
            rng=self.rng,
            training=self.training,
            shared_axes=self.shared_axes,
            region=region,
            rows=rows,
        )

    def kl(self) -> tuple[float, npt.NDArray[Any]]:
        """`variational_kl` of the layer, and its gradient."""
        return variational_kl(self._project())

    def __repr__(self) -> str:
        return f"VariationalDropout(shape={self.log_alpha.shape})"


class SparseVariationalLinear(RangedLayer):
    """`sparse_variational_linear` as a layer; learns weight, log_variance and bias.

    It keeps log_variance where log_alpha = log_variance - ln(weight^2 + 1e-8) is within +-8, as the
    divergence has no gradient beyond.

    Parameters
    ----------
    inputs, outputs : int
    bias : bool
    dtype : float32 or float64
    rng
        As in `Dropout`; also draws the initial weights.

    Notes
    -----
    Weights begin normal with standard deviation sqrt(2 / inputs), log_variance at -10.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: RngLike = None,
    ) -> None:
        super().__init__(rng)
        inputs, outputs = gate.count(inputs, "inputs", 0), gate.count(outputs, "outputs", 0)
        dtype, bias = gate.dtype(dtype), gate.flag(bias, "bias")
        scale = np.sqrt(2.0 / max(inputs, 1))
        self.log_variance = np.full((inputs, outputs), -10.0, dtype)
        self.bias = np.zeros(outputs, dtype) if bias else None
        self.learned = ("weight", "log_variance", *(("bias",) if bias else ()))

        def initial(draw: Draw) -> npt.NDArray[Any]:
            return (normals(draw) * scale).astype(dtype)

        self.weight = with_draw(self.rng, 0.0, Place((inputs, outputs)), initial)

    # log_alpha is a difference, which is rounded; and a small step of a weight moves the bounds.
    room = 2.0**-4

    def _range(self) -> tuple[str, Any, Any]:
        return "log_variance", *log_variance_range(self.weight)

    def _forward(
        self, x: npt.ArrayLike, *, region: Region | None = None, rows: npt.ArrayLike | None = None
    ) -> tuple[Any, Any]:
        return sparse_variational_linear(
            x,
            self.weight,
            self._project(),
            self.bias,
            rng=self.rng,
            training=self.training,
            region=region,
            rows=rows,
        )

    def kl(self) -> tuple[float, npt.NDArray[Any], npt.NDArray[Any]]:
        """`sparse_variational_kl` of the layer, and its gradients."""
        return sparse_variational_kl(self.weight, self._project())

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that evaluation leaves out."""
        pruned = ~kept_weights(self.weight, self._project())
        return float(pruned.mean()) if pruned.size else 0.0

    def __repr__(self) -> str:
        inputs, outputs = self.weight.shape
        return f"SparseVariationalLinear({inputs}, {outputs}, bias={self.bias is not None})"


class DropConnect(Layer):
    """`dropconnect` as a layer, with weights and bias that are learned.

    Parameters
    ----------
    inputs, outputs : int
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        An int seeds an `Rng` of the layer's own. Its first call draws the weights.
    bias : bool
        Whether there is one.
    mode, mask_bias
        As in `fastdrop.dropconnect`.
    dtype : float32 or float64

    Attributes
    ----------
    weight : ndarray, shape (inputs, outputs)
        Begins as normal variates of variance 2 / inputs (He et al. 2015).
    bias : ndarray, shape (outputs,), or None
        Begins as zeros.
    """

    learned: tuple[str, ...] = ("weight", "bias")

    def __init__(
        self,
        inputs: int,
        outputs: int,
        p: Rate = 0.5,
        *,
        rng: RngLike = None,
        bias: bool = True,
        mode: str = "example",
        mask_bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(rng, p)
        self.mode = gate.choice(mode, tuple(dropconnect_modes), "mode")
        self.mask_bias = gate.flag(mask_bias, "mask_bias")
        shape = gate.count(inputs, "inputs"), gate.count(outputs, "outputs")
        dtype, bias = gate.dtype(dtype), gate.flag(bias, "bias")
        self.bias = np.zeros(shape[1], dtype) if bias else None
        if not bias:
            self.learned = ("weight",)

        def initial(draw: Draw) -> npt.NDArray[Any]:
            init = np.random.default_rng((draw.seed, draw.call))
            return (init.standard_normal(shape) * np.sqrt(2.0 / inputs)).astype(dtype)

        self.weight = with_draw(self.rng, 0.0, Place(()), initial)

    def share_batch(self) -> None:
        """One mask for the whole batch; see `Layer.share_batch`."""
        self.mode = "batch"

    def _forward(self, x: npt.ArrayLike) -> tuple[Any, Any]:
        return dropconnect(
            x,
            self.weight,
            self.bias,
            self.rate(),
            rng=self.rng,
            training=self.training,
            mode=self.mode,
            mask_bias=self.mask_bias,
        )

    def __repr__(self) -> str:
        inputs, outputs = self.weight.shape
        return (
            f"DropConnect({inputs}, {outputs}, p={self.p}, bias={self.bias is not None}, "
            f"mode={self.mode!r}, mask_bias={self.mask_bias})"
        )


class TargetedDropout(Layer):
    """`targeted_dropout` as a layer; what it is called with are weights.

    Parameters
    ----------
    p, targeted : float or callable
        As in `targeted_dropout`, or functions of the step, such as `fastdrop.schedules.Ramp`; see
        `Layer`.
    mode
        As in `targeted_dropout`.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        An int seeds an `Rng` of the layer's own.

    Examples
    --------
    >>> layer = fastdrop.layers.TargetedDropout(0.5, 0.75, rng=1234)
    >>> y = x @ layer(W)
    >>> dW = layer.backward(x.T @ dy)
    >>> y = x @ layer.prune(W)                            # in the end
    """

    def __init__(
        self,
        p: Rate = 0.5,
        targeted: float | Callable[[int], float] = 0.5,
        *,
        mode: str = "weight",
        rng: RngLike = None,
    ) -> None:
        super().__init__(rng, p)
        self.targeted = targeted if callable(targeted) else gate.rate(targeted, "targeted")
        self.mode = gate.choice(mode, targeted_modes, "mode")

    def _forward(self, weight: npt.ArrayLike, *, region: Region | None = None) -> tuple[Any, Any]:
        return targeted_dropout(
            weight,
            self.rate(),
            self._fraction(),
            mode=self.mode,
            rng=self.rng,
            training=self.training,
            region=region,
        )

    def share_batch(self) -> None:
        """Weights are the same for all examples as they are; see `Layer.share_batch`."""

    def prune(self, weight: npt.ArrayLike) -> npt.NDArray[Any]:
        """`targeted_prune` with this layer's fraction, that of the step if it is a function."""
        return targeted_prune(weight, self._fraction(), mode=self.mode)

    def _fraction(self) -> float:
        return self.targeted(self.step) if callable(self.targeted) else self.targeted

    def __repr__(self) -> str:
        return f"TargetedDropout(p={self.p}, targeted={self.targeted}, mode={self.mode!r})"


class AdversarialDropout(Layer):
    """`adversarial_dropout` as a layer: a pass with the base mask, then one with the adversarial.

    ``layer(x)`` is ``dropout(x, p)``. ``layer.search(gradient)`` then gives `adversarial_dropout`
    of the same x, near the same mask: that of its region or rows, if the call gave some.
    ``layer.backward(dy)`` is of whichever was called last. The layer keeps x, not a copy: it must
    not change in between.

    Parameters
    ----------
    delta : float
        As in `adversarial_dropout`.
    p : float or callable
        Rate of the base mask, or a function of the step; see `Layer`.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        An int seeds an `Rng` of the layer's own.

    Examples
    --------
    Training a network of two layers, virtual form: labels where they are known, and a network that
    says the same without dropout and with the mask that disturbs it most.

    >>> from fastdrop import kl_divergence
    >>> layer = fastdrop.layers.AdversarialDropout(0.05, p=0.5, rng=1234)
    >>> for x, labels in batches:
    ...     h = np.maximum(x @ W1, 0)
    ...     y = layer(h)                                          # base mask
    ...     logits = y @ W2
    ...     loss, dlogits = kl_divergence(labels, logits)         # cross-entropy
    ...     dh, dW2 = layer.backward(dlogits @ W2.T), y.T @ dlogits
    ...     clean = h @ W2
    ...     _, dlogits = kl_divergence(clean, logits)
    ...     y = layer.search(dlogits @ W2.T)                      # adversarial mask
    ...     D, dlogits = kl_divergence(clean, y @ W2)
    ...     dh += strength * layer.backward(dlogits @ W2.T)
    ...     dW2 += strength * (y.T @ dlogits)
    ...     W1 -= rate * (x.T @ (dh * (h > 0)))
    ...     W2 -= rate * dW2

    In the supervised form, `labels` stand for `clean`: the search takes the gradient that the loss
    has given already, ``y = layer.search(dlogits @ W2.T)``, and p may be 0.
    """

    def __init__(self, delta: float = 0.05, p: Rate = 0.0, *, rng: RngLike = None) -> None:
        super().__init__(rng, p)
        self.delta = gate.rate(delta, "delta")

    def forget(self) -> None:
        super().forget()
        self._base: dict[bool, tuple[npt.NDArray[Any], Context]] = {}

    def __call__(self, x: npt.ArrayLike, **options: Any) -> npt.NDArray[Any]:
        x = gate.array(x)

        def changes(base: Context) -> dict[str, Any]:
            return {**self._changes(base), "_base": {**self._base, self.training: (x, base)}}

        return self._kept(self._forward, changes, (x,), options)

    def _forward(
        self, x: npt.ArrayLike, *, region: Region | None = None, rows: npt.ArrayLike | None = None
    ) -> tuple[Any, Any]:
        y, ctx = dropout(
            x, self.rate(), rng=self.rng, training=self.training, region=region, rows=rows
        )
        if ctx.draw is not None:
            whole_examples(ctx.draw.place)  # search could not go on from others
        return y, ctx

    def search(self, gradient: npt.ArrayLike) -> npt.NDArray[Any]:
        """y with the adversarial mask; gradient: of D with respect to y of the base mask.

        Takes no random call. In evaluation mode, y is a copy of x.
        """
        if self.training not in self._base:
            raise RuntimeError("search needs a forward call of the layer before it, in this mode")
        x, base = self._base[self.training]
        draw = base.draw
        same: dict[str, Any] = {"training": False}
        if draw is not None:
            place = draw.place
            same = {"rng": Rng(draw.seed, draw.call), "region": place.region, "rows": place.rows}
        return self._kept(
            adversarial_dropout,
            lambda ctx: {"_ctx": ctx},
            (x, gradient, self.delta, base.p),
            same,
        )

    def __repr__(self) -> str:
        return f"AdversarialDropout(delta={self.delta}, p={self.p})"
