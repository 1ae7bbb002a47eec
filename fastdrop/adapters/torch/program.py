"""`enable`: every dropout of a program that goes through PyTorch's dispatcher becomes ours.

PyTorch composes ``aten::dropout`` of other operators. A kernel for CPU tensors, with autograd and
without, comes before that composition: for ``F.dropout``, attention, LSTM and all else that calls
it, in Python or C++. What it does not serve it hands to the composition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdrop.adapters.torch.draws import FROM_GENERATOR
from fastdrop.adapters.torch.kernels import dropped_whole, is_plain
from fastdrop.ops.door import ALPHA_DROPOUT, DROPOUT

LEAST = 2048
"""Elements; PyTorch's own kernels are done with a smaller tensor sooner than a call of Python."""

KEYS = "AutogradCPU", "CPU"  # the second one for inference_mode
OPS = {"dropout": DROPOUT, "alpha_dropout": ALPHA_DROPOUT}


class Enabled:
    """What `enable` returns; `close` ends it, as the end of a ``with`` block does."""

    def __init__(self) -> None:
        self._open = True

    def close(self) -> None:
        """Has no effect if it is closed already. Others that are open keep dropout ours."""
        if self._open:
            self._open = False
            _handles.remove(self)
            if not _handles:
                _uninstall()

    def __enter__(self) -> Enabled:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_handles: list[Enabled] = []
_libraries: list[Any] = []


def enable() -> Enabled:
    """Let fastdrop do every dropout of CPU tensors in this process.

    It reaches ``F.dropout``, in place too, ``F.alpha_dropout``, ``nn.MultiheadAttention``,
    ``scaled_dot_product_attention``, ``nn.LSTM`` and ``nn.GRU``, and models that call these. Masks
    come from PyTorch's CPU generator (``torch.manual_seed``), with other bits than PyTorch's.
    PyTorch's own do all else: other devices and dtypes, DTensors, nested tensors, function
    transforms (``torch.func``), forward-mode differentiation, tensors of fewer than 2,048
    elements, and whole feature maps (``F.dropout2d``).

    It does not act inside ``torch.compile``, where PyTorch decomposes dropout before it gets here:
    there `replace` helps. Nor in what ``torch.jit.script`` has made of a model, which TorchScript
    optimizes itself.

    Returns
    -------
    Enabled
        Has ``close()`` and is a context manager. `disable` closes all.

    Examples
    --------
    >>> from fastdrop.adapters.torch import enable
    >>> with enable():
    ...     model(x).sum().backward()  # doctest: +SKIP
    """
    if not _handles:
        _install()
    handle = Enabled()
    _handles.append(handle)
    return handle


def disable() -> None:
    """Give every dropout back to PyTorch; no effect if `enable` has not been called."""
    for handle in list(_handles):
        handle.close()


def _install() -> None:
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)
    for name, op in OPS.items():
        for kernel, full in ((_kernel, name), (_in_place, name + "_")):
            run = kernel(op, getattr(torch.ops.aten, full).default)
            for key in KEYS:
                library.impl(full, run, key)


def _uninstall() -> None:
    while _libraries:
        _libraries.pop()._destroy()


def _kernel(op: int, theirs: Any) -> Any:
    def run(x: Tensor, p: float, train: bool) -> Tensor:
        if not _is_ours(x, p, train):
            result: Tensor = theirs._op_dk(COMPOSED, x, p, train)
            return result
        return dropped_whole(x, FROM_GENERATOR, p, op)

    return run


def _in_place(op: int, theirs: Any) -> Any:
    def run(x: Tensor, p: float, train: bool) -> Tensor:
        if not _is_ours(x, p, train):
            result: Tensor = theirs._op_dk(COMPOSED, x, p, train)
            return result
        return x.copy_(dropped_whole(x, FROM_GENERATOR, p, op))

    return run


COMPOSED = torch._C.DispatchKey.CompositeImplicitAutograd


def _is_ours(x: Tensor, p: float, train: bool) -> bool:
    return train and 0.0 < p <= 1.0 and x.numel() >= LEAST and is_plain(x)
