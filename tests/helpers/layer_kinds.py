"""The kinds of layers, by name."""

import fastdrop as fd

NAMES = sorted(name for name in fd.layers.__all__ if name[0].isupper() and name != "Layer")
