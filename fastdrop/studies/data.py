"""Labelled images: IDX and CIFAR-10 files, MNIST's servers, scikit-learn's digits, a formula.

Images are (number, height, width, channels), float32 in [0, 1].
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

MNIST_SERVERS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
MNIST_SHA256 = {  # of what is in the gzipped files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
CIFAR_SHAPE = 3, 32, 32


class DataError(Exception):
    """Files that are missing, damaged, or not what they should be."""


@dataclass(frozen=True)
class Data:
    """Images and labels 0 ... classes - 1 of three splits."""

    name: str
    x_train: Images
    t_train: Labels
    x_valid: Images
    t_valid: Labels
    x_test: Images
    t_test: Labels

    @property
    def classes(self) -> int:
        """How many there are."""
        return 1 + max(int(t.max()) for t in (self.t_train, self.t_valid, self.t_test))

    def part(self, train: int, valid: int) -> Data:
        """The same with fewer images to train and to validate; they are in random order."""
        return replace(
            self,
            x_train=self.x_train[:train],
            t_train=self.t_train[:train],
            x_valid=self.x_valid[:valid],
            t_valid=self.t_valid[:valid],
        )

    def __str__(self) -> str:
        n, *shape = self.x_train.shape
        size = " x ".join(map(str, shape))
        counts = f"{n} images to train, {len(self.t_valid)} to validate, {len(self.t_test)} to test"
        # Names the split, too: another seed has another checksum.
        return f"{self.name}: {counts}, {size}, checksum {zlib.crc32(self.t_train.tobytes()):08x}"


def load(source: str, seed: int) -> Data:
    """The images of a folder, or of "mnist", "digits" or "synthetic".

    A fifth of the training images, drawn by `seed`, is for validation. Where there is no set of
    test images, a fifth of all is taken for that first, the same for every seed.
    """
    name, images, labels, *test = NAMED.get(source, lambda: _folder(Path(source)))()
    if not test:
        images, labels, *test = _split(images, labels, 0)
    return Data(name, *_scaled(*_split(images, labels, seed), *test))


def _split(images: Bytes, labels: Labels, seed: int) -> tuple[Bytes, Labels, Bytes, Labels]:
    order = np.random.default_rng([seed, 2]).permutation(len(labels))
    held, rest = np.split(order, [len(labels) // 5])
    return images[rest], labels[rest], images[held], labels[held]


def _scaled(*splits: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Images to [0, 1], labels as they are."""
    return [a.astype(np.float32) / np.float32(255) if a.ndim > 1 else a for a in splits]


def _folder(folder: Path) -> tuple[Any, ...]:
    """Whatever a folder holds: (name, images, labels) and, if they are there, those to test."""
    if not folder.is_dir():
        raise DataError(f"--data: {folder} is no folder, nor one of {', '.join(NAMED)}")
    if any(folder.glob("train-images*")):
        return _idx(folder)
    for place in (folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"):
        for suffix, read in ((".bin", _read_cifar_binary), ("", _read_cifar_pickle)):
            if (place / f"data_batch_1{suffix}").exists():
                return _cifar(place, suffix, read)
    raise DataError(
        f"{folder} has neither IDX files (train-images*, train-labels*) nor CIFAR-10's batches "
        "(data_batch_1.bin or data_batch_1, ...)"
    )


def _idx(folder: Path) -> tuple[Any, ...]:
    """MNIST's files or others named and built like them; those to test may be missing."""
    train = _read_pair(folder, "train")
    if not any(folder.glob("t10k-images*")):
        return folder.name, *train
    test = _read_pair(folder, "t10k")
    shape, other = train[0].shape[1:], test[0].shape[1:]
    if shape != other:
        raise DataError(f"{folder}: images to train are {shape}, those to test {other}")
    return folder.name, *train, *test


def _read_pair(folder: Path, stem: str) -> tuple[Bytes, Labels]:
    found = []
    for kind in ("images", "labels"):
        paths = sorted(folder.glob(f"{stem}-{kind}*"))
        if not paths:
            raise DataError(f"{folder} has no file {stem}-{kind}*, which belongs to the other")
        found.append(read_idx(paths[0]))
    images, labels = found
    if images.ndim not in (3, 4) or labels.shape != images.shape[:1] or len(labels) < 10:
        raise DataError(
            f"{folder}: {stem}-images of shape {images.shape} and {stem}-labels of shape "
            f"{labels.shape} do not belong together: they should be (number, height, width) or "
            "(number, height, width, channels), and (number,), at least 10"
        )
    return images.reshape(*images.shape[:3], -1), labels.astype(np.int64)


def read_idx(path: Path) -> Bytes:
    """An IDX file of unsigned bytes, gzipped or not: a header and an array in C order."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is damaged: {error}") from None
    ndim = raw[3] if len(raw) > 3 else 0
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * ndim:
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    shape = [int(n) for n in np.frombuffer(raw, ">u4", ndim, 4)]
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim)
    if data.size != np.prod(shape, dtype=object):
        raise DataError(f"{path} holds {data.size} elements, its header says {shape}")
    return data.reshape(shape)


def _cifar(
    folder: Path, suffix: str, read: Callable[[Path], tuple[Bytes, Labels | Bytes]]
) -> tuple[Any, ...]:
    """The five batches to train, the one to test."""
    batches = []
    for stem in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        path = folder / f"{stem}{suffix}"
        if not path.exists():
            raise DataError(f"{folder} has no file {path.name}, one of CIFAR-10's six")
        images, labels = read(path)
        if not len(labels) or images.size != len(labels) * 3072 or labels.max() > 9:
            raise DataError(f"{path} does not hold 32 x 32 images in three colours of 10 classes")
        images = images.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
        batches.append((images, labels.astype(np.int64)))
    images, labels = zip(*batches[:5], strict=True)
    return "CIFAR-10", np.concatenate(images), np.concatenate(labels), *batches[5]


def _read_cifar_binary(path: Path) -> tuple[Bytes, Bytes]:
    """Rows of a label and 3072 bytes."""
    raw = np.fromfile(path, np.uint8)
    if raw.size % 3073:
        raise DataError(f"{path} holds {raw.size} bytes, which is no multiple of 3073")
    rows = raw.reshape(-1, 3073)
    return rows[:, 1:], rows[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """A pickle may call anything; CIFAR-10's need no more than NumPy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            return super().find_class(module, name)
        raise DataError(f"it asks for {module}.{name}")


def _read_cifar_pickle(path: Path) -> tuple[Bytes, Bytes]:
    """Python 2's dictionary of data and labels."""
    try:
        batch = _ArraysOnly(BytesIO(path.read_bytes()), encoding="bytes").load()
        images, labels = (np.asarray(batch[key]) for key in (b"data", b"labels"))
        if images.dtype != np.uint8 or labels.ndim != 1 or labels.dtype.kind != "i":
            raise DataError("its arrays are of another kind")
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{path} is not one of CIFAR-10's batches: {error}") from None
    return images, labels


def _mnist() -> tuple[Any, ...]:
    """MNIST, downloaded once; if that is not possible, the digits."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        return _idx(download_mnist(cache / "fastdrop" / "mnist"))
    except (URLError, TimeoutError, ConnectionError) as error:
        print(
            f"MNIST cannot be downloaded ({error}): scikit-learn's digits are used instead; "
            "--data takes a folder with MNIST's files",
            file=sys.stderr,
        )
    return _digits()


def download_mnist(folder: Path) -> Path:
    """Fetch what is not in the folder yet; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha256 in MNIST_SHA256.items():
        path = folder / f"{name}.gz"
        if not path.exists():
            raw = _fetch(f"{name}.gz")
            try:
                found = hashlib.sha256(gzip.decompress(raw)).hexdigest()
            except (EOFError, zlib.error, gzip.BadGzipFile):
                found = "of no gzipped file"
            if found != sha256:
                raise DataError(f"{name}.gz was downloaded with SHA-256 {found}, not {sha256}")
            part = path.with_suffix(".part")
            part.write_bytes(raw)
            part.replace(path)
    return folder


def _fetch(name: str) -> bytes:
    """A file of the first server that has it."""
    problem: OSError = URLError("no server")
    for server in MNIST_SERVERS:
        try:
            with urlopen(f"{server}/{name}", timeout=20) as answer:
                size = int(answer.headers.get("Content-Length") or 0) or None
                with tqdm(total=size, desc=name, unit="B", unit_scale=True) as bar:
                    pieces = []
                    while piece := answer.read(1 << 16):
                        pieces.append(piece)
                        bar.update(len(piece))
            return b"".join(pieces)
        except (URLError, TimeoutError, ConnectionError) as error:
            problem = error
    raise problem


def _digits() -> tuple[Any, ...]:
    """The 8 x 8 digits that come with scikit-learn."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = np.round(images * (255 / 16)).astype(np.uint8)
    return "scikit-learn's digits", images.reshape(-1, 8, 8, 1), labels.astype(np.int64)


def _synthetic(number: int = 600, size: int = 16, classes: int = 4) -> tuple[Any, ...]:
    """Coloured stripes, somewhere, under noise; the class is their direction."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, number)
    y, x = np.mgrid[:size, :size] * (2 * np.pi / 5)
    angle, phase = (a[:, None, None] for a in (np.pi / classes * labels, rng.uniform(0, 6, number)))
    stripes = np.sin(x * np.cos(angle) + y * np.sin(angle) + phase)[..., None]
    images = 0.5 + 0.3 * stripes * rng.uniform(0.3, 1, (number, 1, 1, 3))
    images += 0.15 * rng.standard_normal(images.shape)
    return "synthetic stripes", (images.clip(0, 1) * 255).astype(np.uint8), labels


NAMED: dict[str, Callable[[], tuple[Any, ...]]] = {
    "mnist": _mnist,
    "digits": _digits,
    "synthetic": _synthetic,
}
