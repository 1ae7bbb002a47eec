"""Labelled images: IDX and CIFAR-10 files, MNIST's servers, scikit-learn's digits, a formula.

Images are (number, height, width, channels), float32 in [0, 1].
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from fastdrop.studies.files import InUse, alone_in, write

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Content = BinaryIO | gzip.GzipFile

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
DEFLATE = 1032  # bytes that one of a gzipped file can stand for, at most
AGAIN = "remove it and get it again"


class DataError(Exception):
    """Files that are missing, damaged, or not what they should be."""


class Unreachable(DataError):
    """What would be downloaded cannot be."""


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
    is_wrong: npt.NDArray[np.bool_] | None = None  # of t_train; None: no label was replaced

    @property
    def classes(self) -> int:
        """How many there are."""
        return 1 + max(int(t.max()) for t in (self.t_train, self.t_valid, self.t_test))

    def part(self, train: int, valid: int | None) -> Data:
        """The same with fewer images to train and to validate; they are in random order."""
        return replace(
            self,
            x_train=self.x_train[:train],
            t_train=self.t_train[:train],
            x_valid=self.x_valid[:valid],
            t_valid=self.t_valid[:valid],
            is_wrong=None if self.is_wrong is None else self.is_wrong[:train],
        )

    def with_wrong_labels(self, fraction: float, seed: int) -> Data:
        """The same, a fraction of the labels to train replaced by another class at random.

        The images are in random order, so any evenly spaced ones are a random choice, of which a
        `part` has its share.
        """
        count = np.floor(np.arange(len(self.t_train) + 1) * fraction)
        is_wrong = np.diff(count) > 0
        by = np.random.default_rng([seed, 5]).integers(1, self.classes, is_wrong.sum())
        labels = self.t_train.copy()
        labels[is_wrong] = (labels[is_wrong] + by) % self.classes
        name = f"{self.name}, {100 * fraction:g} % of the labels to train wrong"
        return replace(self, name=name, t_train=labels, is_wrong=is_wrong)

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

    Raises
    ------
    DataError
        Says which file is at fault, and what to do. `Unreachable` if MNIST cannot be downloaded.
    """
    name, images, labels, *test = NAMED.get(source, lambda: _folder(Path(source)))()
    if len(np.unique(labels)) < 2:
        raise DataError(f"{source}: all labels to train are {labels[0]}: two classes are needed")
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
    name = folder.resolve().name
    train = _read_pair(folder, "train")
    if not any(folder.glob("t10k-images*")):
        return name, *train
    test = _read_pair(folder, "t10k")
    shape, other = train[0].shape[1:], test[0].shape[1:]
    if shape != other:
        raise DataError(f"{folder}: images to train are {shape}, those to test {other}; {SAME}")
    classes, beyond = (int(labels.max()) for _, labels in (train, test))
    if beyond > classes:
        raise DataError(
            f"{folder}: t10k-labels have a class {beyond}, train-labels none above {classes}; "
            f"{SAME}"
        )
    return name, *train, *test


SAME = "both must be of one set: get its four files again"


def _read_pair(folder: Path, stem: str) -> tuple[Bytes, Labels]:
    paths = []
    for kind in ("images", "labels"):
        found = sorted(folder.glob(f"{stem}-{kind}*"))
        if not found:
            raise DataError(
                f"{folder} has no file {stem}-{kind}*, which belongs to the other: add it"
            )
        paths.append(found[0])
    # Both headers first: what does not belong together need not be unpacked.
    images, labels = (idx_shape(path) for path in paths)
    if len(images) not in (3, 4) or labels != images[:1] or labels[0] < 10:
        raise DataError(
            f"{folder}: {stem}-images of shape {images} and {stem}-labels of shape {labels} do not "
            "belong together: they should be (number, height, width) or (number, height, width, "
            "channels), and (number,), at least 10"
        )
    pixels, classes = (read_idx(path) for path in paths)
    return pixels.reshape(*images[:3], -1), classes.astype(np.int64)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file; what goes wrong with it says which one it is, and what to do."""
    try:
        with path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged ({error}): {AGAIN}") from None
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{path} cannot be read ({why}): make it a readable file") from None


def _unpacked(file: BinaryIO) -> tuple[Content, int]:
    """What is in a file, gzipped or not, and how many bytes it can be at the most."""
    size, start = os.fstat(file.fileno()).st_size, file.read(2)
    file.seek(0)
    if start == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file), size * DEFLATE
    return file, size


def idx_shape(path: Path) -> tuple[int, ...]:
    """The shape that the header of an IDX file gives: one to four axes, none empty."""
    with _opened(path) as file:
        return _header(path, _unpacked(file)[0])


def _header(path: Path, file: Content) -> tuple[int, ...]:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise DataError(f"{path} is not an IDX file of unsigned bytes: {AGAIN}")
    if start[2] != 8:
        raise DataError(
            f"{path} is not an IDX file of unsigned bytes, type 0x08, as its type is "
            f"0x{start[2]:02x}: convert it"
        )
    ndim = start[3]
    if not 1 <= ndim <= 4:
        raise DataError(f"{path} has {ndim} axes in its header, where 1 to 4 are read: {AGAIN}")
    sizes = file.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise DataError(f"{path} ends within its header: {AGAIN}")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    if 0 in shape:
        raise DataError(f"{path} has no elements, its header says {list(shape)}: {AGAIN}")
    return shape


def read_idx(path: Path) -> Bytes:
    """An IDX file of unsigned bytes, gzipped or not: a header and an array in C order.

    No more is unpacked than the header announces, and nothing if the file is too small for that.
    """
    with _opened(path) as file:
        content, most = _unpacked(file)
        shape = _header(path, content)
        number, raw = prod(shape), bytearray()
        says = f"its header says {list(shape)}: {AGAIN}"
        if number > most:
            raise DataError(f"{path} holds {most} elements at the most, {says}")
        while piece := content.read(min(1 << 20, number + 1 - len(raw))):
            raw += piece
    if len(raw) != number:
        held = len(raw) if len(raw) < number else f"more than {number}"
        raise DataError(f"{path} holds {held} elements, {says}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _cifar(
    folder: Path, suffix: str, read: Callable[[Path], tuple[Bytes, Labels | Bytes]]
) -> tuple[Any, ...]:
    """The five batches to train, the one to test."""
    batches = []
    for stem in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        path = folder / f"{stem}{suffix}"
        if not path.exists():
            raise DataError(f"{folder} has no file {path.name}, one of CIFAR-10's six: add it")
        images, labels = read(path)
        if not len(labels) or images.shape != (len(labels), prod(CIFAR_SHAPE)):
            raise DataError(
                f"{path} has images of shape {images.shape} and {len(labels)} labels, where "
                f"(number, {prod(CIFAR_SHAPE)}) and as many labels, at least 1, are read: {AGAIN}"
            )
        if labels.min() < 0 or labels.max() > 9:
            raise DataError(
                f"{path} has labels from {labels.min()} to {labels.max()}, where CIFAR-10 has "
                f"0 to 9: {AGAIN}"
            )
        images = images.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1)
        batches.append((images, labels.astype(np.int64)))
    images, labels = zip(*batches[:5], strict=True)
    return "CIFAR-10", np.concatenate(images), np.concatenate(labels), *batches[5]


def _read_cifar_binary(path: Path) -> tuple[Bytes, Bytes]:
    """Rows of a label and 3072 bytes."""
    with _opened(path) as file:
        raw = np.frombuffer(file.read(), np.uint8)
    if raw.size % 3073:
        raise DataError(f"{path} holds {raw.size} bytes, which is no multiple of 3073: {AGAIN}")
    rows = raw.reshape(-1, 3073)
    return rows[:, 1:], rows[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """A pickle may call anything; CIFAR-10's need no more than NumPy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        # To the letter, as looking into a module runs what it does when it is imported.
        if f"{module}.{name}" in {
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
            "numpy.ndarray",
            "numpy.dtype",
            "_codecs.encode",
        }:
            return super().find_class(module, name)
        raise DataError(f"it asks for {module}.{name}")


def _read_cifar_pickle(path: Path) -> tuple[Bytes, Bytes]:
    """Python 2's dictionary of data and labels."""
    with _opened(path) as file:
        raw = file.read()
    try:
        batch = _ArraysOnly(BytesIO(raw), encoding="bytes").load()
        images, labels = (np.asarray(batch[key]) for key in (b"data", b"labels"))
        if images.dtype != np.uint8 or labels.ndim != 1 or labels.dtype.kind != "i":
            raise DataError("its arrays are of another kind")
    except Exception as error:  # a damaged pickle can raise anything
        why = str(error) or type(error).__name__
        raise DataError(f"{path} is not one of CIFAR-10's batches ({why}): {AGAIN}") from None
    return images, labels


def _mnist() -> tuple[Any, ...]:
    """MNIST, downloaded once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return "MNIST", *_idx(download_mnist(cache / "fastdrop" / "mnist"))[1:]


def download_mnist(folder: Path) -> Path:
    """Fetch what is not in the folder yet; the folder."""
    missing = [name for name in MNIST_SHA256 if not (folder / f"{name}.gz").exists()]
    if not missing:
        return folder  # which may be another's, and not for us to write
    try:
        with alone_in(folder):
            for name in missing:
                write(folder / f"{name}.gz", _fetch(f"{name}.gz"))
    except InUse as error:
        raise DataError(f"{error}, which downloads MNIST: begin again when it has ended") from None
    except (OSError, HTTPException) as error:
        raise Unreachable(
            f"MNIST cannot be downloaded to {folder} ({error}): give --data a folder with its "
            "files, or --data digits"
        ) from None
    return folder


def _fetch(name: str) -> bytes:
    """A file of the first server that has it, which must be MNIST's."""
    raw = _download(name)
    try:
        found = hashlib.sha256(gzip.decompress(raw)).hexdigest()
    except (EOFError, zlib.error, gzip.BadGzipFile):
        found = "of no gzipped file"
    if found != MNIST_SHA256[name.removesuffix(".gz")]:
        raise DataError(
            f"{name} was downloaded with SHA-256 {found}, not that of MNIST: give --data a folder "
            "with its files"
        )
    return raw


def _download(name: str) -> bytes:
    """A file of the first server that has it."""
    problem: Exception = URLError("no server")
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
        except (OSError, HTTPException) as error:
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
