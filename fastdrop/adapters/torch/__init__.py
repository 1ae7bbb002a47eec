"""Dropout for PyTorch: for a whole program, a whole model, or a layer.

`enable` is one line for a program as it is::

    from fastdrop.adapters import torch as fastdrop_torch

    fastdrop_torch.enable()  # every dropout of CPU tensors: attention's and LSTM's, too

`replace` makes a model's dropout modules fastdrop's, which ``torch.compile`` takes, too::

    model = fastdrop_torch.replace(model)

and the modules can be written down where ``torch.nn``'s are::

    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), Dropout(0.5), nn.Linear(512, 10))

`LockedDropout`, `DropPath`, `Zoneout`, `EmbeddingDropout`, `GaussianDropout`, `GaussianNoise` and
`DropConnect` are `fastdrop.layers`' of the same names: the masks of their ops for the same seed and
call. ``torch.compile`` takes all of them. They have all derivatives that PyTorch has, but for
`DropConnect` with a mask for each example, which has the first, by autograd, and no transforms of
``torch.func``.

An ONNX export of our modules has PyTorch's Dropout, which knows no seed, in train mode.

Each call draws a mask of its own, named by a seed and a call number. Without ``seed=`` PyTorch's
CPU generator gives both, so ``torch.manual_seed`` repeats a run. With it, a module counts its
calls, and the metadata of its state dict says where it is: a run with the same seed that goes on
from there draws the masks that it would have drawn. In data-parallel training give each rank
another seed, or all draw the same masks; a rank that loads another's state dict keeps its seed.

Gradient checkpointing computes again with the same mask (it must preserve the random state, as it
does unless told otherwise). A module with a seed takes a number from PyTorch's generator only where
a checkpoint may be at work: without gradients, or where hooks see what is saved for backward.
Two checkpointed passes of a module with a seed, both begun from one ``torch.manual_seed`` and both
before either goes back, cannot be told from each other: there leave ``seed=`` out.

A module without a seed has the same mask in both passes of ``torch.compile`` with an
``activation_memory_budget`` of 0.5 or 0.1; with 0.0 PyTorch's compiler draws again in the backward
pass, as it does for ``nn.Dropout``, and gradients are wrong: do not use that.

Tensors on the CPU are float16, bfloat16, float32 or float64, in any layout, and are not copied
(bfloat16 is, without ml_dtypes); those on a GPU go to `fastdrop.cuda`. Other tensors are dropped by
PyTorch's own modules, if there is no seed. For backward a bit per element is kept. In a CUDA graph
captured by hand the mask would be the same each time, as the draw is decided on the CPU.
"""

from fastdrop.adapters.torch.connect import DropConnect
from fastdrop.adapters.torch.models import replace, restore
from fastdrop.adapters.torch.modules import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    dropout,
)
from fastdrop.adapters.torch.program import disable, enable
from fastdrop.adapters.torch.variants import (
    DropPath,
    EmbeddingDropout,
    GaussianDropout,
    GaussianNoise,
    LockedDropout,
    Zoneout,
)

__all__ = [
    "AlphaDropout",
    "DropConnect",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "LockedDropout",
    "Zoneout",
    "disable",
    "dropout",
    "enable",
    "replace",
    "restore",
]
