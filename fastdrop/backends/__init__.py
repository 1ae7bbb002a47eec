"""What computes: the CPU's kernels, or a GPU's."""
