"""The studies' images: every file format, written here, and what is wrong with files."""

import gzip
import hashlib
import pickle
import struct
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from fastdrop.studies import data
from fastdrop.studies.data import DataError, load


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write_idx(folder, stem, images, labels, suffix=""):
    for kind, array in ((f"images-idx{images.ndim}", images), ("labels-idx1", labels)):
        raw = idx(array)
        path = folder / f"{stem}-{kind}-ubyte{suffix}"
        path.write_bytes(gzip.compress(raw) if suffix else raw)


def some(n, *shape):
    """Images whose first pixel tells the label."""
    labels = (np.arange(n) % 5).astype(np.uint8)
    images = np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)
    images.reshape(n, -1)[:, 0] = labels * 51
    return images, labels


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3)])
def test_idx(tmp_path, suffix, shape):
    write_idx(tmp_path, "train", *some(100, *shape), suffix)
    write_idx(tmp_path, "t10k", *some(20, *shape), suffix)
    d = load(str(tmp_path), seed=3)
    channels = shape[2] if len(shape) > 2 else 1
    assert d.x_train.shape == (80, 5, 6, channels)
    assert d.x_valid.shape == (20, 5, 6, channels)
    assert d.x_train.dtype == np.float32
    assert d.classes == 5
    for x, t in ((d.x_train, d.t_train), (d.x_valid, d.t_valid), (d.x_test, d.t_test)):
        np.testing.assert_allclose(x[:, 0, 0, 0], t / 5)
    expected = some(20, *shape)[0].reshape(20, 5, 6, channels)
    np.testing.assert_allclose(d.x_test, expected / 255, rtol=1e-6)  # in its order


def test_the_seed_splits_train_and_validation_but_not_test(tmp_path):
    write_idx(tmp_path, "train", *some(100, 4, 4))
    a, b, again = (load(str(tmp_path), seed) for seed in (0, 1, 0))
    assert [len(t) for t in (a.t_train, a.t_valid, a.t_test)] == [64, 16, 20]
    np.testing.assert_array_equal(a.x_test, b.x_test)
    np.testing.assert_array_equal(a.x_train, again.x_train)
    assert not np.array_equal(a.x_valid, b.x_valid)
    assert str(a) == str(again) != str(b)
    assert len({x.tobytes() for x in np.concatenate([a.x_train, a.x_valid, a.x_test])}) == 100


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_what_needs_no_file(name):
    d = load(name, 0)
    assert d.x_train.ndim == 4
    assert d.x_train.min() >= 0
    assert d.x_train.max() <= 1
    assert set(d.t_train) == set(d.t_valid) == set(d.t_test) == set(range(d.classes))


def python2(images, labels):
    """A batch as CIFAR-10 has it: with strings of bytes, as Python 3 does not write them."""
    text = images.tobytes()
    shape = b"".join(b"J" + struct.pack("<i", n) for n in images.shape) + b"\x86"
    kind = (
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    array += b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", len(text)) + text + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."


def write_cifar(folder, kind):
    for k, stem in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        rng = np.random.default_rng(k)
        images = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, 20, dtype=np.uint8)
        if kind == "binary":
            rows = np.concatenate([labels[:, None], images], axis=1)
            (folder / f"{stem}.bin").write_bytes(rows.tobytes())
        elif kind == "python 2":
            (folder / stem).write_bytes(python2(images, labels))
        else:
            batch = {b"data": images, b"labels": [int(n) for n in labels]}
            (folder / stem).write_bytes(pickle.dumps(batch, 2))
    return images, labels


@pytest.mark.parametrize("kind", ["binary", "python 2", "python 3"])
def test_cifar(tmp_path, kind):
    inner = tmp_path / "cifar-10-batches-bin"
    inner.mkdir()
    images, labels = write_cifar(inner, kind)
    d = load(str(tmp_path), 0)
    assert d.x_train.shape == (80, 32, 32, 3)
    np.testing.assert_array_equal(d.t_test, labels)
    np.testing.assert_allclose(d.x_test[7, 2, 9, 1], images[7, 1024 + 2 * 32 + 9] / 255)
    (inner / ("test_batch" + (".bin" if kind == "binary" else ""))).unlink()
    with pytest.raises(DataError, match="has no file test_batch"):
        load(str(tmp_path), 0)


class Shell:
    def __reduce__(self):
        return print, ("called by a pickle",)


def test_a_pickle_can_not_call_what_it_likes(tmp_path, capsys):
    write_cifar(tmp_path, "python 2")
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": Shell(), b"labels": [1]}))
    with pytest.raises(DataError, match=r"data_batch_3 is not .* asks for builtins\.print"):
        load(str(tmp_path), 0)
    assert capsys.readouterr().out == ""


def damaged(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("suffix", [".bin", ""])
def test_damaged_cifar(tmp_path, suffix):
    write_cifar(tmp_path, "binary" if suffix else "python 2")
    damaged(tmp_path / f"data_batch_2{suffix}", lambda raw: raw[:-100])
    with pytest.raises(DataError, match="data_batch_2"):
        load(str(tmp_path), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"not an IDX file", "train-images.*is not an IDX file"),
        (lambda raw: b"", "train-images.*is not an IDX file"),
        (lambda raw: raw[:-1], r"holds 1599 elements, its header says \[100, 4, 4\]"),
        (lambda raw: raw + b"1", "holds 1601 elements"),
        (lambda raw: gzip.compress(raw)[:-9], "train-images.*is damaged"),
        (lambda raw: idx(np.zeros((99, 4, 4), np.uint8)), "do not belong together"),
        (lambda raw: idx(np.zeros(100, np.uint8)), "do not belong together"),
        (lambda raw: idx(np.zeros((100, 4, 5), np.uint8)), r"train are \(4, 5, 1\), those to test"),
    ],
)
def test_damaged_idx(tmp_path, change, message):
    write_idx(tmp_path, "train", *some(100, 4, 4))
    write_idx(tmp_path, "t10k", *some(20, 4, 4))
    load(str(tmp_path), 0)
    damaged(tmp_path / "train-images-idx3-ubyte", change)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path), 0)


def test_missing(tmp_path):
    with pytest.raises(DataError, match=r"nothing is no folder, nor one of mnist, digits, syn"):
        load(str(tmp_path / "nothing"), 0)
    with pytest.raises(DataError, match=r"has neither IDX files \(train-images"):
        load(str(tmp_path), 0)
    write_idx(tmp_path, "train", *some(100, 4, 4))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"has no file train-labels"):
        load(str(tmp_path), 0)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A small MNIST on a server of our own, whose folder is yielded, and an empty cache."""
    folder = tmp_path / "server"
    folder.mkdir()
    write_idx(folder, "train", *some(100, 28, 28), ".gz")
    write_idx(folder, "t10k", *some(20, 28, 28), ".gz")
    hashes = {
        path.stem: hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
        for path in sorted(folder.iterdir())
    }
    assert hashes.keys() == data.MNIST_SHA256.keys()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setattr(data, "MNIST_SERVERS", ("http://127.0.0.1:9", address))
        monkeypatch.setattr(data, "MNIST_SHA256", hashes)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield folder
        http.shutdown()


def test_mnist_is_downloaded_once(server, capsys):
    d = load("mnist", 0)
    assert d.x_train.shape == (80, 28, 28, 1)
    assert "train-images-idx3-ubyte.gz: 100%" in capsys.readouterr().err
    for path in server.iterdir():
        path.unlink()
    assert str(load("mnist", 0)) == str(d)


def test_a_download_with_another_hash_is_refused(server):
    path = server / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz .* SHA-256 .*, not"):
        load("mnist", 0)
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="of no gzipped file"):
        load("mnist", 0)


def test_without_a_network_the_digits_serve(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "MNIST_SERVERS", ("http://127.0.0.1:9",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load("mnist", 0).name == "scikit-learn's digits"
    assert "MNIST cannot be downloaded" in capsys.readouterr().err
