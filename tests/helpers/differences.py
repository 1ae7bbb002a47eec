"""Gradients by central differences, in float64."""

import numpy as np


def assert_gradient(loss, value, gradient, step=1e-5, tolerance=1e-6):
    """loss() depends on the float64 array `value`, which is changed in place, element by element.

    `step` suits losses whose third derivative is near 1; the error is relative to the largest
    element of the gradient.
    """
    assert gradient.shape == value.shape
    numeric = np.empty(value.shape)
    for i in np.ndindex(value.shape):
        kept = value[i]
        value[i] = kept + step
        above = loss()
        value[i] = kept - step
        numeric[i] = (above - loss()) / (2 * step)
        value[i] = kept
    size = max(np.abs(numeric).max(initial=0), np.abs(gradient).max(initial=0))
    np.testing.assert_allclose(gradient, numeric, rtol=0, atol=tolerance * size)
