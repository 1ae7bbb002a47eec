"""A picture of each variant's mask, drawn by fastdrop: ``python docs/masks.py`` writes docs/masks/.

White is kept and black is dropped; of noise, grey is the middle. tests/project/test_pages.py holds
the pictures to what fastdrop draws.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import fastdrop as fd

ROWS, COLUMNS = 24, 48
PIXELS = 6  # a side of an element
GAP = 0.5  # between two maps, examples or matrices
SEED = 2014


def side_by_side(tiles):
    """(rows, columns, height, width) to one picture, a grey line between tiles."""
    tiles = np.pad(np.asarray(tiles, float), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=GAP)
    return np.concatenate([np.concatenate(list(row), axis=1) for row in tiles])[:-1, :-1]


def pictures():
    """Name and brightness of every element, 0 to 1, shape (height, width)."""
    rng = fd.Rng(SEED)
    ones = np.ones((ROWS, COLUMNS), np.float32)
    weight = np.random.default_rng(SEED).standard_normal(ones.shape, np.float32)
    maps = np.ones((2, 6, 12, 12), np.float32)
    sequences = np.ones((1, 3, ROWS, 16), np.float32)

    yield "dropout", fd.dropout(ones, 0.5, rng=rng)[1].mask()
    yield "spatial_dropout", side_by_side(fd.spatial_dropout(maps, 0.5, rng=rng)[1].mask())
    locked = fd.locked_dropout(sequences[0], 0.5, rng=rng)[1].mask()
    yield "locked_dropout", side_by_side(locked[None])
    yield "embedding_dropout", fd.embedding_dropout(ones, 0.3, rng=rng)[1].mask()
    yield "drop_path", fd.drop_path(ones, 0.3, rng=rng)[1].mask()
    block = fd.drop_block(np.ones((1, 2, 24, 24), np.float32), 0.25, 5, rng=rng)[1].mask()
    yield "drop_block", side_by_side(block)
    alpha, _ = fd.alpha_dropout(weight, 0.3, rng=rng)
    yield "alpha_dropout", _grey(alpha)
    feature = np.random.default_rng(SEED).standard_normal(maps.shape, np.float32)
    alpha, _ = fd.feature_alpha_dropout(feature, 0.3, rng=rng)
    yield "feature_alpha_dropout", side_by_side(_grey(alpha))
    yield "gaussian_dropout", _grey(fd.gaussian_dropout(ones, 0.5, rng=rng)[0] - 1)
    yield "gaussian_noise", _grey(fd.gaussian_noise(0 * ones, 1.0, rng=rng)[0])
    matrices = fd.reference.dropconnect_masks((3, 24, 16), 0.5, SEED, 0)
    yield "dropconnect", side_by_side(matrices[None])
    growing = np.linspace(-8, 0, COLUMNS)
    yield "variational_dropout", _grey(fd.variational_dropout(ones, growing, rng=rng)[0] - 1)
    kept, _ = fd.sparse_variational_linear(
        np.eye(ROWS, dtype=np.float32), weight, 2.0 * np.ones_like(weight), training=False
    )
    yield "sparse_variational_linear", kept != 0
    soft, _ = fd.concrete_dropout(ones, 0.0, 0.3, rng=rng)
    yield "concrete_dropout", soft / 2
    targeted, _ = fd.targeted_dropout(weight, 0.6, 0.5, mode="weight", rng=rng)
    yield "targeted_dropout", targeted != 0
    wave = np.sin(np.arange(COLUMNS) / 4 + np.arange(ROWS)[:, None])
    against, _ = fd.adversarial_dropout(ones, wave.astype(np.float32), 0.2, rng=rng)
    yield "adversarial_dropout", against != 0
    yield "zoneout", fd.zoneout(0 * ones, ones, 0.3, rng=rng)[0]
    passes = [fd.dropout(ones, 0.5, rng=fd.mc.pass_rng(SEED, t))[1].mask() for t in range(4)]
    yield "mc", np.mean(passes, axis=0)
    schedule = fd.schedules.curriculum(0.8, gamma=0.15)
    yield "schedules", [fd.keep_mask(COLUMNS, schedule(t), rng=rng) for t in range(ROWS)]


def _grey(noise):
    """Two standard deviations to either side of grey."""
    return np.clip(0.5 + noise / 4, 0, 1)


def image(brightness):
    """Of squares of PIXELS pixels."""
    levels = np.asarray(np.rint(255 * np.asarray(brightness, np.float64)), np.uint8)
    return Image.fromarray(np.kron(levels, np.ones((PIXELS, PIXELS), np.uint8)))


if __name__ == "__main__":
    folder = Path(__file__).parent / "masks"
    folder.mkdir(exist_ok=True)
    for name, brightness in pictures():
        image(brightness).save(folder / f"{name}.png", optimize=True)
