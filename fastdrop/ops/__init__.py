"""The operations, one idea a module: ``y, ctx = op(x, ..., rng=rng)``; see ARCHITECTURE.md."""
