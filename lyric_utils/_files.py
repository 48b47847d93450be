"""The one error of the package, and files that are written whole or not at all."""

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory


class LyricsError(ValueError):
    """Input that cannot be used; the message names what is wrong, where, and the way out."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success; on failure (`LyricsError`) nothing is left behind."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise LyricsError(f"{path}: cannot be written ({error.strerror or error}); nothing was changed.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_write_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` on success; on failure (`LyricsError`) nothing is left behind."""
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(".tmp", f".{folder.name}.", folder.parent, ignore_cleanup_errors=True) as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            yield new
            try:
                if folder.is_dir():
                    folder.rename(old)
                new.rename(folder)
            finally:
                if old.is_dir() and not folder.exists():
                    old.rename(folder)
    except OSError as error:
        raise LyricsError(f"{folder}: cannot be written ({error.strerror or error}); nothing was changed.") from error


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it. Call it only where no other process can be writing."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
