"""Folders that one process has at a time, and files that are replaced as a whole."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt

    def _take(file: BinaryIO) -> None:
        """Windows lets nobody read what is locked, so that is a byte behind all that is written."""
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class InUse(Exception):
    """Another process has the folder."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Have a folder to oneself.

    The system holds the lock and frees it with the process, however that ends. So the file ``lock``
    stays where it is: it only tells others who has the lock.

    Raises
    ------
    InUse
        Another process, or another call in this one, has the folder; the message says which.
    OSError
        The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+b", buffering=0) as file:
        try:
            _take(file)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            who = file.read(200).decode("ascii", "replace") or "another process"
            raise InUse(f"{folder} is in use by {who}") from None
        except OSError as error:
            raise OSError(error.errno, f"no lock ({error.strerror})", str(folder)) from None
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())
        yield


def write(path: Path, content: bytes) -> None:
    """Replace a file as a whole: whatever happens, the old one or the new one is there.

    For one process at a time, as in `alone_in`: all that write the same file have the same part.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None  # says where
        raise
