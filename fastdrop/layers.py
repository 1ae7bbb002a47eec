"""Stateful layers: ``layer(x)``, ``layer.backward(dy)``, ``.train()``, ``.eval()``.

Each stands beside its op, in the op's module; here they are all together.
"""

from fastdrop.adversarial import AdversarialDropout
from fastdrop.functional import Dropout
from fastdrop.stateful import Layer
from fastdrop.targeted import TargetedDropout

__all__ = ["AdversarialDropout", "Dropout", "Layer", "TargetedDropout"]
