"""Stateful layers: ``layer(x)``, ``layer.backward(dy)``, ``.train()``, ``.eval()``.

Each stands beside its op, in the op's module; here they are all together.
"""

from fastdrop.adversarial import AdversarialDropout
from fastdrop.alpha import AlphaDropout, FeatureAlphaDropout
from fastdrop.concrete import ConcreteDropout
from fastdrop.connections import DropConnect
from fastdrop.dropblock import DropBlock
from fastdrop.functional import Dropout
from fastdrop.gaussian import GaussianDropout, GaussianNoise
from fastdrop.recurrent import Zoneout
from fastdrop.shared import DropPath, EmbeddingDropout, LockedDropout, SpatialDropout
from fastdrop.stateful import Layer
from fastdrop.targeted import TargetedDropout
from fastdrop.variational import SparseVariationalLinear, VariationalDropout

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
