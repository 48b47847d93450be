"""Where songs come from: the shipped sample, a file of your own, the public table on GitHub, or all of Kaggle's."""

import hashlib
import os
import time
from pathlib import Path

import pandas as pd
import requests
from filelock import FileLock
from tqdm import tqdm

from lyric_utils.profiles import Profile
from lyric_utils.songs import LyricsError, read_songs, written_whole

SAMPLE = Path(__file__).resolve().parent.parent / "datasets" / "sample_150.pkl"
COMMIT = "7eaf7e0e1b0c2a1e4eb8aee9647e4bbed6bf0cc7"  # the commit is fixed, so the bytes are
SUBSET = {  # 7,999 songs from three bands of valence, by the author of the Kaggle data set; size in bytes
    "url": f"https://raw.githubusercontent.com/EdenBD/lyrics-sentiment/{COMMIT}/diversified.xlsx",
    "size": 2_819_572,
    "sha256": "aac01bc856f7338b00ea2aa01e23eacb3fc6e5b5010e946440835397096cabc1",
}
KAGGLE_HANDLE, KAGGLE_FILE = "edenbd/150k-lyrics-labeled-with-spotify-valence", "labeled_lyrics_cleaned.csv"

TIMEOUTS = (5, 30)  # seconds to connect, and between two pieces of an answer
ATTEMPTS, PAUSE = 4, 1.0  # connections made for one download, and seconds before the second (then twice, thrice that)
BLOCK = 2**14  # bytes written at a time
WAY_OUT = "Try again later, or set LYRICS_DATA to the path of a .csv, .xlsx or .pkl song table on this machine."


def load_source(profile: Profile) -> pd.DataFrame:
    """Read the songs of a profile as they stand in their source: `clean_songs` comes next, then `draw_songs`.

    The source "sample" is the file shipped with this repository. For the others, the file that the environment variable
    `LYRICS_DATA` names is read if it is set; else "subset" is downloaded from GitHub (2.7 MiB) and "kaggle" through
    kagglehub, once, and kept on this machine.

    Raises:
        LyricsError: the file is missing or no song table, or the download failed.
    """
    subset = cache_folder() / "diversified.xlsx"
    finders = {"sample": _find_sample, "subset": lambda: download(path=subset, **SUBSET), "kaggle": _find_kaggle}
    if profile.source not in finders:
        raise LyricsError(f"source={profile.source!r} of profile {profile.name!r}: use one of {', '.join(finders)}.")
    given = os.environ.get("LYRICS_DATA")
    if not given or profile.source == "sample":
        return read_songs(finders[profile.source]())
    if not Path(given).is_file():
        raise LyricsError(f"LYRICS_DATA={given}: no such file. Correct the path, or unset it to download the songs.")
    return read_songs(given)


def draw_songs(songs: pd.DataFrame, count: int | None, seed: int) -> pd.DataFrame:
    """Draw `count` songs (None: all) from a cleaned table, keeping its order; same table and seed, same songs.

    Raises `LyricsError` if the table has fewer songs than that, or `count` is below 1.
    """
    if count is None:
        return songs
    if not 1 <= count <= len(songs):
        raise LyricsError(f"{count:,} songs cannot be drawn from {len(songs):,}: ask for fewer, or use a larger table.")
    return songs.sample(count, random_state=seed).sort_index().reset_index(drop=True)


def cache_folder() -> Path:
    """Where downloads and computed values are kept: `LYRICS_CACHE`, or `.cache/lyric_utils` in the home folder."""
    return Path(os.environ.get("LYRICS_CACHE") or Path.home() / ".cache" / "lyric_utils").expanduser()


def _find_sample() -> Path:
    if not SAMPLE.is_file():
        raise LyricsError(f"{SAMPLE}: missing. Install lyric_utils in place, from a clone: pip install -e .")
    return SAMPLE


def _find_kaggle() -> Path:
    # kagglehub keeps the file, but asks Kaggle for the newest version each time. The note lets later runs do without.
    note = cache_folder() / "kaggle_table.txt"
    try:
        if note.is_file() and (known := Path(note.read_text(encoding="utf-8"))).is_file():
            return known
        import kagglehub  # slow to import, and no other source needs it

        path = Path(kagglehub.dataset_download(KAGGLE_HANDLE, path=KAGGLE_FILE))
        with written_whole(note) as temporary:
            temporary.write_text(str(path), encoding="utf-8")
    except Exception as error:  # kagglehub has a dozen kinds without a common parent
        url, reason = f"https://www.kaggle.com/datasets/{KAGGLE_HANDLE}", f"{type(error).__name__}: {error}"
        raise LyricsError(f"{url}: no {KAGGLE_FILE} from there ({reason}). {WAY_OUT}") from error
    return path


def download(url: str, path: str | Path, size: int, sha256: str) -> Path:
    """Bring a file of `size` bytes and known checksum to `path`, unless it is there already; return `path`.

    What arrives is kept in a `.part` file beside it, so that a later attempt, or run, fetches only the rest (HTTP
    Range: RFC 9110, section 14). It takes the final name only when size and checksum agree. Of several processes, one
    downloads and the others wait. Raises `LyricsError`: no connection, an HTTP error, a wrong file, no place to write.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{sha256[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not _is_expected(path, size, sha256):
                path.unlink(missing_ok=True)
                _complete(url, part, size, sha256)
                part.replace(path)
    except requests.RequestException as error:
        answer = error.response
        reason = type(error).__name__ if answer is None else f"HTTP {answer.status_code} {answer.reason}"
        raise LyricsError(f"{url}: {reason} at {_length(part):,} of {size:,} bytes. {WAY_OUT}") from error
    except OSError as error:
        raise LyricsError(f"{path}: cannot be written ({error}). Set LYRICS_CACHE to another folder.") from error
    return path


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_expected(path: Path, size: int, sha256: str) -> bool:
    return _length(path) == size and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _complete(url: str, part: Path, size: int, sha256: str) -> None:
    """Fetch what `part` lacks, then check the whole; if an earlier run left damage, fetch all of it anew."""
    left_over = _length(part)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch_rest(url, part, size)
            break
        except requests.RequestException as error:
            status = 500 if error.response is None else error.response.status_code
            if attempt == ATTEMPTS or status < 500 or isinstance(error, requests.ConnectTimeout):
                raise
            time.sleep(PAUSE * attempt)
    if not _is_expected(part, size, sha256):
        part.unlink()
        if not left_over:
            raise LyricsError(f"{url}: not the expected {size:,} bytes of sha256 {sha256}, discarded. {WAY_OUT}")
        _complete(url, part, size, sha256)


def _fetch_rest(url: str, part: Path, size: int) -> None:
    start = _length(part)
    if start >= size:
        return
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}  # a range of the file, not of its gzip
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS) as response:
        response.raise_for_status()
        if response.headers.get("Content-Range") != f"bytes {start}-{size - 1}/{size}":
            start = 0  # this server ignores ranges, and sends all
        if start + int(response.headers.get("Content-Length", size - start)) != size:
            raise LyricsError(f"{url}: not the expected file of {size:,} bytes. {WAY_OUT}")
        bar = tqdm(desc=part.name.split(".")[0], total=size, initial=start, unit="B", unit_scale=True)
        with bar, open(part, "ab" if start else "wb") as file:
            for block in response.iter_content(BLOCK):
                bar.update(file.write(block))
                if file.tell() > size:  # another file, perhaps endless: the checksum will refuse it
                    return
    if _length(part) < size:
        raise requests.ConnectionError("the answer ended too early")
