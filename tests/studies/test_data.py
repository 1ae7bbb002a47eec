"""The studies' images: every file format, written here, and what is wrong with files."""

import gzip
import hashlib
import pickle
import struct
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from fastdrop.studies import data
from fastdrop.studies.data import DataError, load
from fastdrop.studies.files import alone_in


def idx_header(*shape):
    return b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()


def idx(array):
    return idx_header(*array.shape) + array.tobytes()


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


FEW = np.zeros((3, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({b"data": FEW, b"labels": [1, -1, 2]}, "has labels from -1 to 2, where CIFAR-10"),
        ({b"data": FEW, b"labels": [1, 10, 2]}, "has labels from 1 to 10, where CIFAR-10"),
        ({b"data": FEW, b"labels": [1, 2**70, 2]}, "its arrays are of another kind"),
        ({b"data": FEW, b"labels": [1, 2]}, r"images of shape \(3, 3072\) and 2 labels"),
        ({b"data": FEW[:, 1:], b"labels": [1, 2, 3]}, r"images of shape \(3, 3071\)"),
        ({b"data": FEW.reshape(-1), b"labels": [1, 2, 3]}, r"images of shape \(9216,\)"),
        ({b"data": FEW[:0], b"labels": []}, "data_batch_2 is not one of CIFAR-10's batches"),
        ({b"data": FEW.astype(float), b"labels": [1, 2, 3]}, "its arrays are of another kind"),
        ({b"data": FEW, b"labels": "abc"}, "its arrays are of another kind"),
        ({b"labels": [1, 2, 3]}, "data_batch_2 is not one of CIFAR-10's batches"),
        ([FEW], "data_batch_2 is not one of CIFAR-10's batches"),
        (None, "data_batch_2 is not one of CIFAR-10's batches"),
    ],
)
def test_cifar_pickles_of_another_shape(tmp_path, batch, message):
    write_cifar(tmp_path, "python 3")
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(DataError, match=message) as raised:
        load(str(tmp_path), 0)
    assert str(tmp_path / "data_batch_2") in str(raised.value)
    assert str(raised.value).endswith("remove it and get it again")


def test_a_module_is_not_imported_for_a_pickle(tmp_path):
    """Its last name alone is that of something harmless."""
    write_cifar(tmp_path, "python 3")
    (tmp_path / "data_batch_1").write_bytes(b"cnumpy.f2py.__main__\ndtype\n.")
    with pytest.raises(DataError, match=r"asks for numpy\.f2py\.__main__\.dtype"):
        load(str(tmp_path), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: b"not an IDX file", "train-images.*is not an IDX file"),
        (lambda raw: b"", "train-images.*is not an IDX file"),
        (lambda raw: raw[:-1], r"holds 1599 elements, its header says \[100, 4, 4\]"),
        (lambda raw: raw + b"1", "holds more than 1600 elements, its header says"),
        (lambda raw: raw[:9], "train-images.*ends within its header"),
        (lambda raw: b"\0\0\x0d" + raw[3:], "as its type is 0x0d: convert it"),
        (lambda raw: b"\0\1" + raw[2:], "train-images.*is not an IDX file"),
        (lambda raw: idx_header(*[1] * 100) + b"1", "has 100 axes in its header"),
        (lambda raw: idx_header(), "has 0 axes in its header"),
        (lambda raw: idx_header(0, *[2**32 - 1] * 3), "has no elements, its header says"),
        (lambda raw: idx_header(60, 0, 8), r"has no elements, its header says \[60, 0, 8\]"),
        (lambda raw: idx_header(100, *[2**32 - 1] * 3), r"holds \d+ elements at the most, its"),
        (lambda raw: gzip.compress(raw)[:-9], "train-images.*is damaged"),
        (lambda raw: gzip.compress(raw)[:2], "train-images.*is damaged"),
        (lambda raw: gzip.compress(raw)[:2] + raw, "train-images.*is damaged"),
        (lambda raw: gzip.compress(raw)[:-8] + bytes(8), "train-images.*is damaged .CRC"),
        (lambda raw: gzip.compress(raw + bytes(9)), "holds more than 1600 elements"),
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


def test_labels_beyond_the_classes(tmp_path):
    write_idx(tmp_path, "train", *some(100, 4, 4))
    images, labels = some(20, 4, 4)
    write_idx(tmp_path, "t10k", images, labels + np.uint8(3))
    with pytest.raises(DataError, match="t10k-labels have a class 7, train-labels none above 4"):
        load(str(tmp_path), 0)
    write_idx(tmp_path, "train", some(100, 4, 4)[0], np.full(100, 7, np.uint8))
    with pytest.raises(DataError, match="all labels to train are 7: two classes are needed"):
        load(str(tmp_path), 0)


@pytest.fixture
def most_memory():
    """How many bytes Python had at once, in MB, since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [(100, 4, 4), (100, 2**20, 2**10), (200 << 20, 1, 1)])
def test_a_bomb_is_not_unpacked(tmp_path, shape, most_memory):
    """200 kB that become 200 MB: more than the header says, less, and as many with few labels."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb") as file:
        file.write(idx_header(*shape))
        for _ in range(200):
            file.write(bytes(1 << 20))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(some(100, 1)[1]))
    before = most_memory()
    with pytest.raises(DataError, match=r"train-images.* (holds|do not belong)"):
        load(str(tmp_path), 0)
    assert most_memory() - before < 5


def test_a_file_that_can_not_be_read(tmp_path):
    write_idx(tmp_path, "train", *some(100, 4, 4))
    path = tmp_path / "train-labels-idx1-ubyte"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte cannot be read \("):
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


def test_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MNIST_SERVERS", ("http://127.0.0.1:9",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(data.Unreachable, match=r"MNIST cannot be downloaded to .*, or --data dig"):
        load("mnist", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fastdrop" / "mnist" / "lock"))
    with pytest.raises(data.Unreachable, match=r"MNIST cannot be downloaded to .*Not a directory"):
        load("mnist", 0)


def test_one_process_downloads_at_a_time(server, tmp_path):
    folder = tmp_path / "cache" / "fastdrop" / "mnist"
    with alone_in(folder), pytest.raises(DataError, match=r"in use by process \d+ .* begin again"):
        load("mnist", 0)
    assert load("mnist", 0).name == "MNIST"
    with alone_in(folder):
        load("mnist", 0)  # all is there


def test_wrong_labels():
    digits = load("digits", 3)
    noisy = digits.with_wrong_labels(0.2, 3)
    changed = noisy.t_train != digits.t_train
    np.testing.assert_array_equal(changed, noisy.is_wrong)
    assert changed.sum() == len(changed) // 5
    assert set(noisy.t_train) == set(range(10))
    for kept in ("x_train", "x_valid", "t_valid", "x_test", "t_test"):
        assert getattr(noisy, kept) is getattr(digits, kept)
    part = noisy.part(100, 7)
    assert (part.t_train != digits.t_train[:100]).sum() == part.is_wrong.sum() == 20
    by = (noisy.t_train - digits.t_train)[changed] % 10
    assert set(by) == set(range(1, 10))  # each other class, and never the right one
    other = digits.with_wrong_labels(0.2, 4)
    assert (other.t_train != noisy.t_train).any()
    assert noisy.name == "scikit-learn's digits, 20 % of the labels to train wrong"
    assert digits.with_wrong_labels(0.125, 0).name.endswith(" 12.5 % of the labels to train wrong")
