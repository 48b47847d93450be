"""The one error of the package, the one way to read a file, and the one way to write a file or a folder."""

import glob
import hashlib
import os
import re
import shutil
import stat
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from filelock import FileLock, Timeout

MAX_BYTES = 2**28  # of a file that is read at once


class LyricsError(ValueError):
    """Input that cannot be used; one line of at most 500 characters names what is wrong, where, and the way out."""

    def __init__(self, message: str):
        message = visible(message)
        super().__init__(message if len(message) <= 500 else f"{message[:300]} ... {message[-195:]}")


def visible(text: object) -> str:
    """A text in which control characters, line ends and terminal escapes are spelled out."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in str(text))


def describe(error: BaseException) -> str:
    """An error of another library in a few words."""
    if getattr(error, "strerror", None):
        return str(error.strerror).lower()
    text = textwrap.shorten(str(error), 200, placeholder=" ...").rstrip(".")
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"


def open_file(path: str | Path, limit: float = float("inf")) -> BinaryIO:
    """Open a regular file of at most `limit` bytes, else `LyricsError`: a pipe or a device may never end."""
    opener = lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # noqa: E731
    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise LyricsError(f"{path}: {describe(error)}. Check the path.") from error
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode) or about.st_size > limit:
        file.close()
        reason = f"larger than {limit:,} bytes, the most that is read at once; a table may be larger as .csv"
        raise LyricsError(f"{path}: {reason if stat.S_ISREG(about.st_mode) else 'not a regular file'}.")
    return file


def read_file(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a regular file, see `open_file`."""
    with open_file(path, limit) as file:
        return file.read()


def check_target(path: str | Path, pattern: bytes) -> None:
    """Raise `LyricsError` where a file stands that does not begin with `pattern`, as files of its kind do."""
    if os.path.lexists(path):
        with open_file(path) as file:
            if not re.match(pattern, file.read(100), re.DOTALL):
                raise LyricsError(f"{path}: exists and is something else. Remove it, or give another name.")


def write_file(path: str | Path, content: bytes, pattern: bytes = b"") -> None:
    """Write a file whole or not at all, over no other file than one that begins with `pattern`, see `replacing`."""
    check_target(path, pattern)
    with replacing(path) as new:
        new.write_bytes(content)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield where to write a new file or folder, which takes the place of `path` if all goes well.

    At any other end `path` is as it was before (`LyricsError`), and nothing is left beside it but by a killed process;
    what that left, the next writer of `path` puts right.
    """
    path = Path(os.path.realpath(path))  # what a link points at is replaced, not the link
    try:
        with exclusive(path):
            for left in path.parent.glob(f"{glob.escape(_hidden(path))}*.tmp"):  # of a killed writer
                _move_back(left / "old", path)
                shutil.rmtree(left)
            with TemporaryDirectory(".tmp", _hidden(path), path.parent, ignore_cleanup_errors=True) as temporary:
                new, old = Path(temporary, "new"), Path(temporary, "old")
                yield new
                try:
                    if path.is_dir():
                        path.rename(old)
                    elif path.is_file():
                        shutil.copymode(path, new)
                    new.replace(path)
                finally:
                    _move_back(old, path)
    except OSError as error:
        raise LyricsError(f"{path}: cannot be written ({describe(error)}); nothing was changed.") from error


def _move_back(old: Path, path: Path) -> None:
    """Undo the moving away of a folder that nothing has taken the place of."""
    if old.is_dir() and not os.path.lexists(path):
        old.rename(path)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep other processes from writing `path` at the same time: a second one gets a `LyricsError` at once."""
    lock = FileLock(path.with_name(f"{_hidden(path)}lock"), timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise LyricsError(f"{path}: another process is writing it. Wait for it, or give another name.") from error
    except OSError as error:
        raise LyricsError(f"{path}: cannot be written ({describe(error)}).") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _hidden(path: Path) -> str:
    """How the names of hidden files beside `path` begin: no two paths share it."""
    return f".{path.name[:40]}.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}."
