"""The GPU's kernels: one source for every target."""
