"""Stateful layers: ``layer(x)``, ``layer.backward(dy)``, ``.train()``, ``.eval()``.

Each stands beside its op, in the op's module; here they are all together.
"""

from fastdrop.base.layer import Layer
from fastdrop.ops.adversarial import AdversarialDropout
from fastdrop.ops.alpha import AlphaDropout, FeatureAlphaDropout
from fastdrop.ops.concrete import ConcreteDropout
from fastdrop.ops.dropblock import DropBlock
from fastdrop.ops.dropconnect import DropConnect
from fastdrop.ops.dropout import Dropout
from fastdrop.ops.gaussian import GaussianDropout, GaussianNoise
from fastdrop.ops.shared import DropPath, EmbeddingDropout, LockedDropout, SpatialDropout
from fastdrop.ops.targeted import TargetedDropout
from fastdrop.ops.variational import SparseVariationalLinear, VariationalDropout
from fastdrop.ops.zoneout import Zoneout

__all__ = [
    "AdversarialDropout",
    "AlphaDropout",
    "ConcreteDropout",
    "DropBlock",
    "DropConnect",
    "DropPath",
    "Dropout",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "Layer",
    "LockedDropout",
    "SparseVariationalLinear",
    "SpatialDropout",
    "TargetedDropout",
    "VariationalDropout",
    "Zoneout",
]
