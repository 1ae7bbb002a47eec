"""The GPU's side: arrays, launches and kernels."""
