"""A layer for each op: ``layer(x)``, ``layer.backward(dy)``, ``.train()``, ``.eval()``.

>>> rng = fastdrop.Rng(1234)                  # one for all layers of a model
>>> layer = fastdrop.layers.Dropout(0.5, rng=rng)
>>> y = layer(x)
>>> dx = layer.backward(dy)

Most take the arguments of their op, and a rate that may be a function of the step (see
`fastdrop.schedules`): ``help(fastdrop.layers.Dropout)``. What all of them have stands in `Layer`.

======================  ============================================================================
elements                Dropout, AlphaDropout, GaussianDropout, GaussianNoise
whole features          SpatialDropout, FeatureAlphaDropout, DropBlock
whole examples, rows    DropPath, LockedDropout
fused                   ReluDropout, DropoutAdd, BiasDropoutAdd, BiasReluDropout, BiasGeluDropout,
                        SoftmaxDropout
recurrent               Zoneout
with parameters         EmbeddingDropout, DropConnect, TargetedDropout, ConcreteDropout,
                        VariationalDropout, SparseVariationalLinear
two passes              AdversarialDropout
======================  ============================================================================

Those with parameters have ``.parameters`` and ``.gradients``. `state` and `load_state` save and
restore all layers of a model.
"""

# No __all__: with one, help(fastdrop.layers) repeats for each layer what all of them inherit.
from fastdrop.layers.fixed import AlphaDropout as AlphaDropout
from fastdrop.layers.fixed import BiasDropoutAdd as BiasDropoutAdd
from fastdrop.layers.fixed import BiasGeluDropout as BiasGeluDropout
from fastdrop.layers.fixed import BiasReluDropout as BiasReluDropout
from fastdrop.layers.fixed import DropBlock as DropBlock
from fastdrop.layers.fixed import Dropout as Dropout
from fastdrop.layers.fixed import DropoutAdd as DropoutAdd
from fastdrop.layers.fixed import DropPath as DropPath
from fastdrop.layers.fixed import FeatureAlphaDropout as FeatureAlphaDropout
from fastdrop.layers.fixed import GaussianDropout as GaussianDropout
from fastdrop.layers.fixed import GaussianNoise as GaussianNoise
from fastdrop.layers.fixed import LockedDropout as LockedDropout
from fastdrop.layers.fixed import ReluDropout as ReluDropout
from fastdrop.layers.fixed import SoftmaxDropout as SoftmaxDropout
from fastdrop.layers.fixed import SpatialDropout as SpatialDropout
from fastdrop.layers.fixed import Zoneout as Zoneout
from fastdrop.layers.layer import Layer as Layer
from fastdrop.layers.learned import AdversarialDropout as AdversarialDropout
from fastdrop.layers.learned import ConcreteDropout as ConcreteDropout
from fastdrop.layers.learned import DropConnect as DropConnect
from fastdrop.layers.learned import EmbeddingDropout as EmbeddingDropout
from fastdrop.layers.learned import SparseVariationalLinear as SparseVariationalLinear
from fastdrop.layers.learned import TargetedDropout as TargetedDropout
from fastdrop.layers.learned import VariationalDropout as VariationalDropout
from fastdrop.layers.saving import load_state as load_state
from fastdrop.layers.saving import state as state
