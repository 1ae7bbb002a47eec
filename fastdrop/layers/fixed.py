"""Layers that are one op and learn nothing."""

from typing import Any

from fastdrop.layers.layer import OpLayer
from fastdrop.ops.alpha import alpha_dropout, feature_alpha_dropout
from fastdrop.ops.dropblock import drop_block
from fastdrop.ops.dropout import dropout
from fastdrop.ops.fused import (
    bias_dropout_add,
    bias_gelu_dropout,
    bias_relu_dropout,
    dropout_add,
    relu_dropout,
)
from fastdrop.ops.gaussian import gaussian_dropout, gaussian_noise
from fastdrop.ops.shared import drop_path, locked_dropout, spatial_dropout
from fastdrop.ops.softmax import softmax_dropout
from fastdrop.ops.zoneout import zoneout


class Dropout(OpLayer, op=dropout):
    pass


class SpatialDropout(OpLayer, op=spatial_dropout):
    pass


class LockedDropout(OpLayer, op=locked_dropout):
    pass


class AlphaDropout(OpLayer, op=alpha_dropout):
    pass


class FeatureAlphaDropout(OpLayer, op=feature_alpha_dropout):
    pass


class GaussianDropout(OpLayer, op=gaussian_dropout):
    pass


class GaussianNoise(OpLayer, op=gaussian_noise):
    pass


class ReluDropout(OpLayer, op=relu_dropout):
    pass


class DropoutAdd(OpLayer, op=dropout_add, inputs=2):
    pass


class BiasDropoutAdd(OpLayer, op=bias_dropout_add, inputs=3):
    pass


class BiasReluDropout(OpLayer, op=bias_relu_dropout, inputs=2):
    pass


class BiasGeluDropout(OpLayer, op=bias_gelu_dropout, inputs=2):
    pass


class SoftmaxDropout(OpLayer, op=softmax_dropout):
    def _forward(self, *inputs: Any, **options: Any) -> tuple[Any, Any]:
        if len(inputs) > 1:  # not out, as elsewhere: it might be meant for a mask
            raise TypeError("a call of SoftmaxDropout takes scores; give mask= and out= by name")
        return super()._forward(*inputs, **options)


class DropBlock(OpLayer, op=drop_block):
    pass


class Zoneout(OpLayer, op=zoneout, inputs=2):
    pass


class DropPath(OpLayer, op=drop_path):
    def share_batch(self) -> None:
        """One draw for the whole batch; see `Layer.share_batch`."""
        self.mode = "batch"
