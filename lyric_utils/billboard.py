"""Hits of 1960 to 2016 with natural labels and audio features: the two tables of the R package billboard, joined."""

import re
import warnings
from pathlib import Path

import pandas as pd

from lyric_utils._checks import PathLike, checked
from lyric_utils._files import describe, read_file
from lyric_utils.audio import AUDIO_FEATURES, check_audio
from lyric_utils.songs import CleaningReport, artist_key, has_words

LYRICS_COLUMNS = ["title", "artist", "year", "lyrics"]  # of a year's hundred most successful singles
TRACK_COLUMNS = {"track_name": "title", "artist_name": "artist", "year": "year", "valence": "valence"}


@checked
def read_billboard(lyrics: PathLike, tracks: PathLike) -> tuple[pd.DataFrame, CleaningReport]:
    """Join the files lyrics.rda and spotify_track_data.rda by artist and title, a title's brackets and suffix aside.

    Of several tracks of a song, that of the nearest year counts; where such tracks differ in valence, none does.
    Returns a song table with the further columns year and audio features, and where every row of the lyrics went.
    Raises `LyricsError` if a file is missing, is no R data, or lacks a column, or a feature is out of its range.
    """
    songs, place = _read(lyrics, LYRICS_COLUMNS), tracks
    tracks = _read(place, [*TRACK_COLUMNS, *AUDIO_FEATURES]).rename(columns=TRACK_COLUMNS)
    tracks = check_audio(tracks, place).groupby(_keys(tracks))
    values = ["valence", *AUDIO_FEATURES]
    found = pd.DataFrame(index=songs.index, columns=values, dtype=float)
    reason = pd.Series(index=songs.index, dtype=object)
    for row, key in _keys(songs).items():
        if not has_words(songs["lyrics"][row]):
            reason[row] = "no lyrics"
        elif key not in tracks.groups:
            reason[row] = "no track"
        else:
            track = tracks.get_group(key)
            distance = (track["year"] - songs["year"][row]).abs()
            nearest = track[distance == distance.min()]
            reason[row] = "several tracks" if nearest["valence"].nunique() > 1 else None
            found.loc[row] = nearest[values].iloc[0]
    songs = songs.join(found).assign(row=songs.index, reason=reason)
    dropped = songs.loc[reason.notna(), ["row", "artist", "title", "reason"]].reset_index(drop=True)
    songs = songs.loc[reason.isna(), ["row", "artist", "title", "lyrics", "valence", "year", *AUDIO_FEATURES]]
    return songs.reset_index(drop=True), CleaningReport(len(reason), len(songs), dropped)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """The one data frame in a file of R data."""
    import rdata

    try:
        with warnings.catch_warnings():  # of R classes that are data frames, too
            warnings.simplefilter("ignore")
            content = rdata.conversion.convert(rdata.parser.parse_data(read_file(path), extension=".rda"))
        [table] = content.values()
        table.columns = [*map(str, table.columns)]
        missing = [name for name in columns if name not in table.columns]
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path}: not a data frame in R's format ({describe(error)}). Download it again.") from error
    if missing:
        raise ValueError(f"{path}: column {missing[0]!r} is missing. Download it again.")
    year = pd.to_numeric(table["year"], errors="coerce").astype(float)
    if not year.between(1900, 2100).all():
        raise ValueError(f"{path}: column 'year' holds something else than years. Download it again.")
    table = table[columns].astype(object).where(table[columns].notna(), None)
    return table.assign(year=year.to_numpy().astype(int)).reset_index(drop=True)


def _keys(songs: pd.DataFrame) -> pd.Series:
    """What two entries of a song share: artist and title, without brackets, " - Remastered", and guests."""
    titles = songs["title"].fillna("").map(lambda title: re.sub(r"\s*[(\[].*?[)\]]", "", title) or title)
    keys = zip(songs["artist"].map(artist_key), titles.str.split(r"\s-\s").str[0].map(artist_key), strict=True)
    return pd.Series([" - ".join(key) for key in keys], index=songs.index)
