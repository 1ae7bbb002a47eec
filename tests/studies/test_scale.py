"""SCALE.md: its example, its numbers, and the simulation of 4,096 ranks."""

import json
import re
from math import prod
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.studies import scale


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_shards_are_as_defined(p, capsys):
    """Four of 4,096 shards of 2^28 elements, and their points on other numbers of ranks."""
    assert scale.simulate(4, 2000, p, fd.Rng(7, 10**12)) == 0
    sigmas = re.findall(r" 268435456  0\.\d+  *([-+]\d+\.\d\d) ", capsys.readouterr().out)
    assert len(sigmas) == 4
    assert all(abs(float(sigma)) < 5 for sigma in sigmas)


def test_the_simulation_finds_what_is_wrong(monkeypatch, capsys):
    """With the masks of another call, p and 1 - p disagree about 2 p (1 - p) of the elements."""
    draw = scale.draw
    wrong = lambda start, shape, p, rng: draw(start, shape, p, fd.Rng(rng.seed, rng.call + 1))  # noqa: E731
    monkeypatch.setattr(scale, "draw", wrong)
    differ = scale.simulate(1, 5000, 0.2, fd.Rng(7))
    assert 0.25 < differ / 5000 < 0.4
    with pytest.raises(SystemExit, match="differ from the definition"):
        scale.main(["--shards", "1", "--points", "100"])


@pytest.mark.parametrize("grid", [scale.GRID, *scale.OTHER_GRIDS])
def test_every_element_has_one_owner(grid):
    assert prod(scale.WHOLE) == 2**40
    ranks = prod(grid)
    sizes = [prod(scale.shard(rank, grid)[1]) for rank in range(ranks)]
    assert sum(sizes) == 2**40
    for rank in (0, ranks // 3, ranks - 1):
        start, shape = scale.shard(rank, grid)
        for corner in scale.choose(shape, 0, np.random.default_rng(0)):
            assert scale.owner(corner + start, grid) == rank


def test_the_last_elements_and_calls():
    """The end of the counters: 2^62 elements, call 2^64 - 1; one more element is an error."""
    whole, rng = (2**31, 2**31), fd.Rng(2**64 - 1, 2**64 - 1)
    region = (2**31 - 3, 2**31 - 100), whole
    mask = fd.keep_mask((3, 100), 0.3, rng=rng, region=region)
    index = fd.reference.element_index((3, 100), region=region)
    assert index[-1, -1] == 2**62 - 1
    np.testing.assert_array_equal(mask, fd.reference.keep(index, 0.3, 2**64 - 1, 2**64 - 1))
    with pytest.raises(ValueError, match="global size of at most"):
        fd.keep_mask((3, 100), 0.3, rng=1, region=((0, 0), (2**31, 2**31 + 100)))


def test_restart():
    """A state that went through JSON: the same seeds of layers, the same calls."""
    rng = fd.Rng(1234)
    rng.spawn(3)
    saved = json.dumps(rng.state)
    expected = [r.seed for r in rng.spawn(4)], rng.take()
    restored = fd.Rng()
    restored.state = json.loads(saved)
    assert ([r.seed for r in restored.spawn(4)], restored.take()) == expected


def test_the_page():
    text = (Path(__file__).parents[2] / "SCALE.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(example, names)
    seeds, region, ctx = names["seeds"], names["region"], names["ctx"]
    assert len(set(seeds)) == 192
    assert (ctx.seed, ctx.call, ctx.nbytes) == (seeds[7], 20_000, 0)
    index = fd.reference.element_index((2, 64, 128), region=region)
    expected = fd.reference.keep(index, 0.2, seeds[7], 20_000)
    np.testing.assert_array_equal(names["y"][:2] != 0, expected)
    for name in re.search(r"Regions are taken by (.*?)\.", text, re.DOTALL)[1].split("`")[1::2]:
        assert "region" in getattr(fd, name).__annotations__, name
    for n, chance in ((192, "1e-15"), (4096, "5e-13"), (10**6, "3e-8")):
        assert chance in text
        assert n * (n - 1) / 2**65 == pytest.approx(float(chance), rel=0.15)
