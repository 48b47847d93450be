"""Where songs come from: the shipped sample, a file of your own, two public tables on GitHub, or all of Kaggle's."""

import os
from pathlib import Path

import pandas as pd
import pooch

from lyric_utils._checks import Seed, checked
from lyric_utils._files import LyricsError, describe, write_file
from lyric_utils._progress import progress
from lyric_utils.billboard import read_billboard
from lyric_utils.profiles import Count, Profile
from lyric_utils.tables import read_songs

SAMPLE = Path(__file__).resolve().parent.parent / "datasets" / "sample_150.pkl"
KAGGLE_HANDLE = "edenbd/150k-lyrics-labeled-with-spotify-valence"
GITHUB = "https://raw.githubusercontent.com"
SOURCES = {  # where a source is, and its files; on GitHub at a fixed commit, so that their sha256 is fixed as well
    "billboard": (
        f"{GITHUB}/mikkelkrogsholm/billboard/2f83cb5b4551d74fb2da4c1516dbe708ecab06bc/data",
        {"lyrics.rda": "5bd993f26a58cfc62e2369a15d4b5df597cc6228f38a77ab94d9f66aa8462d4f",
         "spotify_track_data.rda": "f8f0eb2af9513d10556bccafbfd3d15bd2dc5d583406f2439d5602317d3feced"},
    ),
    "subset": (  # 7,999 songs from three bands of valence, by the author of the Kaggle data set
        f"{GITHUB}/EdenBD/lyrics-sentiment/7eaf7e0e1b0c2a1e4eb8aee9647e4bbed6bf0cc7",
        {"diversified.xlsx": "aac01bc856f7338b00ea2aa01e23eacb3fc6e5b5010e946440835397096cabc1"},
    ),
    "kaggle": (f"https://www.kaggle.com/datasets/{KAGGLE_HANDLE}", {"labeled_lyrics_cleaned.csv": None}),
}  # fmt: skip


@checked
def load_source(profile: Profile) -> pd.DataFrame:
    """Read the songs of a `Profile` as they are in their source: `clean_songs` comes next, then `draw_songs`.

    "sample" is the file in this repository. "billboard" (2.1 MiB, joined by `read_billboard`, whose report is printed),
    "subset" (2.7 MiB) and "kaggle" (through kagglehub) are downloaded once and kept, unless the environment variable
    `LYRICS_DATA` names a song table to read instead, or a folder with the files of the source. Raises `LyricsError` if
    the file is missing or not a song table, or the download failed.
    """
    if profile.source == "sample" and not SAMPLE.is_file():
        raise LyricsError(f"{SAMPLE}: missing. Install lyric_utils in place, from a clone: pip install -e .")
    given = SAMPLE if profile.source == "sample" else os.environ.get("LYRICS_DATA")
    if given and not Path(given).exists():
        raise LyricsError(f"LYRICS_DATA={given}: no such file. Correct the path, or unset it to download the songs.")
    if given and not Path(given).is_dir():
        return read_songs(given)
    url, files = SOURCES[profile.source]
    try:
        paths = [
            _find_in(Path(given), name) if given else _download(url, name, sha256) for name, sha256 in files.items()
        ]
    except LyricsError:
        raise
    except Exception as error:  # pooch, requests, urllib3 and kagglehub have dozens of kinds
        way_out = "Try again later, or set LYRICS_DATA to the path of a song table on this machine."
        raise LyricsError(f"{url}: not downloaded to {cache_folder()} ({describe(error)}). {way_out}") from error
    if profile.source != "billboard":
        return read_songs(*paths)
    songs, report = read_billboard(*paths)
    print(report)
    return songs


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


def _find_in(folder: Path, name: str) -> Path:
    """A file of a source in a folder of the user's; a table may be of another kind, such as diversified.csv."""
    found = [folder / name, *sorted(folder.glob(f"{Path(name).stem}.*"))]
    if not (files := [*filter(Path.is_file, found)]):
        raise LyricsError(f"LYRICS_DATA={folder}: no {name} in it. Add it, name a song table, or unset LYRICS_DATA.")
    return files[0]


def _download(url: str, name: str, sha256: str | None) -> Path:
    if sha256 is None:
        return _find_kaggle(name)
    pooch.get_logger().setLevel("WARNING")
    store = pooch.create(cache_folder(), url, registry={name: f"sha256:{sha256}"}, retry_if_failed=2)
    with progress(desc="download", total=1, unit="B", unit_scale=True, delay=1) as bar:  # pooch sets the total
        return Path(store.fetch(name, downloader=pooch.HTTPDownloader(progressbar=bar)))


def _find_kaggle(name: str) -> Path:
    # kagglehub keeps the file, but asks Kaggle for the newest version each time. The note lets later runs do without.
    note = cache_folder() / "kaggle_table.txt"
    if note.is_file() and (known := Path(note.read_text(encoding="utf-8"))).is_file():
        return known
    import kagglehub

    path = Path(kagglehub.dataset_download(KAGGLE_HANDLE, path=name))
    write_file(note, str(path).encode())
    return path
