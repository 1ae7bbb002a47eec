"""Stateful layers: ``layer(x)``, ``layer.backward(dy)``, ``.train()``, ``.eval()``.

Each stands beside its op, in the op's module; here they are all together.
"""

from fastdrop.concrete import ConcreteDropout
from fastdrop.functional import Dropout
from fastdrop.gaussian import GaussianDropout, GaussianNoise
from fastdrop.stateful import Layer
from fastdrop.variational import SparseVariationalLinear, VariationalDropout

__all__ = [
    "ConcreteDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Layer",
    "SparseVariationalLinear",
    "VariationalDropout",
]
