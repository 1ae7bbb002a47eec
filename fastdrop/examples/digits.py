"""Handwritten digits: scikit-learn's bundled 8x8 ones, or MNIST-format IDX files from a folder."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(NamedTuple):
    """Images (N, pixels) float32 in [0, 1] and labels (N,) of the two splits."""

    x_train: npt.NDArray[np.float32]
    x_valid: npt.NDArray[np.float32]
    t_train: npt.NDArray[np.int64]
    t_valid: npt.NDArray[np.int64]


def load(folder: Path | None, seed: int) -> Digits:
    """The digits with a fifth held out for validation, drawn by `seed`, stratified by label."""
    if folder is None:
        images, labels = load_digits(return_X_y=True)
        peak = 16.0
    else:
        images = read_idx(find(folder, "train-images"))
        labels = read_idx(find(folder, "train-labels"))
        if images.ndim < 2 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{folder}: images of shape {images.shape} and labels of shape {labels.shape} "
                "do not belong together"
            )
        peak = 255.0
    x = images.reshape(len(images), -1).astype(np.float32) / np.float32(peak)
    t = labels.astype(np.int64)
    return Digits(*train_test_split(x, t, test_size=0.2, random_state=seed, stratify=t))


def find(folder: Path, stem: str) -> Path:
    """The IDX file whose name begins with `stem`, gzipped or not."""
    found = sorted(folder.glob(stem + "*"))
    if not found:
        raise FileNotFoundError(f"{folder} has no file {stem}*; --data takes MNIST's IDX files")
    return found[0]


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes (https://yann.lecun.com/exdb/mnist, "file format")."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    ndim = raw[3]
    shape = np.frombuffer(raw, ">u4", ndim, 4).astype(int)
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim)
    if data.size != shape.prod():
        raise ValueError(f"{path} holds {data.size} bytes, its header says {shape.prod()}")
    return data.reshape(shape)
