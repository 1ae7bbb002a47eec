"""The slow, plain NumPy model of every kernel: what the compiled code must reproduce.

Nothing here is tuned; each function is its definition, written down. One module a family, named as
the family's module in `fastdrop.ops` is, except that `dropout` has `ops.fused`, too, `noise` is
what others draw, and `activation` what some of the fused ones compute. This package offers all of
their functions.
"""

from fastdrop.reference.activation import *  # noqa: F403
from fastdrop.reference.adversarial import *  # noqa: F403
from fastdrop.reference.alpha import *  # noqa: F403
from fastdrop.reference.concrete import *  # noqa: F403
from fastdrop.reference.dropblock import *  # noqa: F403
from fastdrop.reference.dropconnect import *  # noqa: F403
from fastdrop.reference.dropout import *  # noqa: F403
from fastdrop.reference.gaussian import *  # noqa: F403
from fastdrop.reference.noise import *  # noqa: F403
from fastdrop.reference.shared import *  # noqa: F403
from fastdrop.reference.softmax import *  # noqa: F403
from fastdrop.reference.targeted import *  # noqa: F403
from fastdrop.reference.variational import *  # noqa: F403
from fastdrop.reference.zoneout import *  # noqa: F403
