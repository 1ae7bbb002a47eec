"""No committed text or picture tells a path of the machine that made it."""

import re
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Folders of a user, of a job, of a mount. What every system has, as /dev/full, is no machine's.
PATH = re.compile(
    r"(?:(?<![\w.~$}/-])|(?<=file://))/"
    r"(?:home|media|mnt|private|root|scratch|tmp|Users|var/folders|work|workspace)/\w"
    r"|\b[A-Za-z]:\\+(?:Users|Temp|Windows)\b"
)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"bKGD"}


def committed():
    try:
        names = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout")
    paths = [ROOT / name for name in filter(None, names.split("\0"))]
    return [path for path in paths if path.is_file()]  # one may be deleted, and not yet committed


def words(png):
    """All text in a PNG: comments, and whatever else is not pixels."""
    assert png.startswith(SIGNATURE)
    at = len(SIGNATURE)
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        data = png[at + 8 : at + 8 + length]
        if kind in (b"zTXt", b"iTXt", b"iCCP"):  # may be compressed, behind a name and some flags
            for begin in range(min(len(data), 200)):
                try:
                    yield zlib.decompress(data[begin:]).decode("latin-1")
                    break
                except zlib.error:
                    pass
        if kind not in PIXELS:
            yield data.decode("latin-1")
        at += 12 + length


def test_text():
    found = []
    for path in committed():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a picture, below
        lines = enumerate(text.splitlines(), 1)
        found += [f"{path.relative_to(ROOT)}:{n}: {x}" for n, x in lines if PATH.search(x)]
    assert not found, "\n".join(found)


def test_pictures():
    pictures = [path for path in committed() if path.suffix == ".png"]
    assert pictures
    for path in pictures:
        for text in words(path.read_bytes()):
            assert not PATH.search(text), f"{path.relative_to(ROOT)}: {text}"
            assert str(ROOT) not in text


@pytest.mark.parametrize("folder", ["home/me", "root", "tmp", "Users/me", "work/tree", "mnt/disk"])
@pytest.mark.parametrize("before", ["", "see ", "'", "(", "=", "file://"])
def test_a_path_is_found(folder, before):
    assert PATH.search(f"{before}/{folder}/x.png")


def test_a_path_of_windows_is_found():
    assert PATH.search("C:" + r"\Users\me")
    assert PATH.search("c:" + r"\\Users\\me")


@pytest.mark.parametrize(
    "text", ["a/tmp/b", "https://x.org/home/me", "./work/x", "/dev/full", "$d/tmp/x"]
)
def test_what_is_no_path_of_a_machine_is_not(text):
    assert not PATH.search(text)


def chunk(kind, data):
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "comment",
    [
        (b"tEXt", b"Title\0%s"),
        (b"eXIf", b"MM\0*%s"),
        (b"tIME", b"%s"),
        (b"iTXt", b"Title\0\0\0\0\0%s"),
    ],
)
def test_a_path_in_a_picture_is_found(comment):
    kind, data = comment
    path = b"/home" + b"/me/x.npz"
    assert any(PATH.search(text) for text in words(SIGNATURE + chunk(kind, data % path)))


@pytest.mark.parametrize("begin", [(b"zTXt", b"Title\0\0"), (b"iTXt", b"Title\0\1\0\0\0")])
def test_a_compressed_path_in_a_picture_is_found(begin):
    kind, name = begin
    path = zlib.compress(b"from /home" + b"/me/x.npz")
    assert any(PATH.search(text) for text in words(SIGNATURE + chunk(kind, name + path)))
