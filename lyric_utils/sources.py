"""Where songs come from: the shipped sample, a file of your own, the public table on GitHub, or all of Kaggle's."""

import os
from pathlib import Path

import pandas as pd
import pooch

from lyric_utils._checks import Seed, checked
from lyric_utils._files import LyricsError, describe, write_file
from lyric_utils._progress import progress
from lyric_utils.profiles import Count, Profile
from lyric_utils.tables import read_songs

SAMPLE = Path(__file__).resolve().parent.parent / "datasets" / "sample_150.pkl"
COMMIT = "7eaf7e0e1b0c2a1e4eb8aee9647e4bbed6bf0cc7"  # a fixed commit, so the bytes are fixed as well
# 7,999 songs from three bands of valence, by the author of the Kaggle data set
SUBSET_URL = f"https://raw.githubusercontent.com/EdenBD/lyrics-sentiment/{COMMIT}/diversified.xlsx"
SUBSET_SHA256 = "aac01bc856f7338b00ea2aa01e23eacb3fc6e5b5010e946440835397096cabc1"
KAGGLE_HANDLE, KAGGLE_FILE = "edenbd/150k-lyrics-labeled-with-spotify-valence", "labeled_lyrics_cleaned.csv"
KAGGLE_URL = f"https://www.kaggle.com/datasets/{KAGGLE_HANDLE}"


@checked
def load_source(profile: Profile) -> pd.DataFrame:
    """Read the songs of a `Profile` as they are in their source: `clean_songs` comes next, then `draw_songs`.

    "sample" is the file in this repository. "subset" (2.7 MiB, from GitHub) and "kaggle" (through kagglehub) are
    downloaded once and kept, unless the environment variable `LYRICS_DATA` names a song table to read instead. Raises
    `LyricsError` if the file is missing or not a song table, or the download failed.
    """
    if profile.source == "sample" and not SAMPLE.is_file():
        raise LyricsError(f"{SAMPLE}: missing. Install lyric_utils in place, from a clone: pip install -e .")
    given = SAMPLE if profile.source == "sample" else os.environ.get("LYRICS_DATA")
    if given and not Path(given).exists():
        raise LyricsError(f"LYRICS_DATA={given}: no such file. Correct the path, or unset it to download the songs.")
    url, find = (SUBSET_URL, _find_subset) if profile.source == "subset" else (KAGGLE_URL, _find_kaggle)
    try:
        path = given or find()
    except Exception as error:  # pooch, requests, urllib3 and kagglehub have dozens of kinds
        way_out = "Try again later, or set LYRICS_DATA to the path of a song table on this machine."
        raise LyricsError(f"{url}: not downloaded to {cache_folder()} ({describe(error)}). {way_out}") from error
    return read_songs(path)


@checked
def draw_songs(songs: pd.DataFrame, count: Count | None, seed: Seed) -> pd.DataFrame:
    """Draw `count` songs (None: all) from a cleaned table, keeping its order; same table and seed, same songs."""
    if count is None:
        return songs
    if count > len(songs):
        raise LyricsError(f"{count:,} songs cannot be drawn from {len(songs):,}: ask for fewer, or use a larger table.")
    return songs.reset_index(drop=True).sample(count, random_state=seed).sort_index().reset_index(drop=True)


def cache_folder() -> Path:
    """Where downloads and computed values are kept: `LYRICS_CACHE`, or `.cache/lyric_utils` in the home folder."""
    try:
        return Path(os.environ.get("LYRICS_CACHE") or "~/.cache/lyric_utils").expanduser()
    except RuntimeError as error:
        raise LyricsError("there is no home folder to keep a cache in. Set LYRICS_CACHE to a folder.") from error


def _find_subset() -> Path:
    pooch.get_logger().setLevel("WARNING")
    site, name = SUBSET_URL.rsplit("/", 1)
    store = pooch.create(cache_folder(), site, registry={name: f"sha256:{SUBSET_SHA256}"}, retry_if_failed=2)
    with progress(desc="download", total=1, unit="B", unit_scale=True, delay=1) as bar:  # pooch sets the total
        return Path(store.fetch(name, downloader=pooch.HTTPDownloader(progressbar=bar)))


def _find_kaggle() -> Path:
    # kagglehub keeps the file, but asks Kaggle for the newest version each time. The note lets later runs do without.
    note = cache_folder() / "kaggle_table.txt"
    if note.is_file() and (known := Path(note.read_text(encoding="utf-8"))).is_file():
        return known
    import kagglehub

    path = Path(kagglehub.dataset_download(KAGGLE_HANDLE, path=KAGGLE_FILE))
    write_file(note, str(path).encode())
    return path
