"""The README's example runs as it stands."""

import re
from pathlib import Path

import numpy as np


def test_example():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(example, names)
    np.testing.assert_array_equal(names["again"], names["ctx"].mask())
