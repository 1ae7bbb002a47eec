"""The kinds of layers, by name."""

import fastdrop as fd

NAMES = sorted(name for name in vars(fd.layers) if name[0].isupper() and name != "Layer")
