"""Spotify's audio features, as further columns of a song table."""

import numpy as np
import pandas as pd

from lyric_utils._checks import checked
from lyric_utils._files import LyricsError
from lyric_utils.tables import as_number

# Lowest and highest value, and unit. Source: Spotify's Web API reference, "Audio features".
AUDIO_FEATURES = dict.fromkeys(["danceability", "energy", "speechiness", "acousticness"], (0, 1, ""))
AUDIO_FEATURES |= {"instrumentalness": (0, 1, ""), "liveness": (0, 1, ""), "mode": (0, 1, " (minor, major)")}
AUDIO_FEATURES |= {"key": (-1, 11, " (unknown, C to B)"), "time_signature": (0, 11, " beats in a bar")}
AUDIO_FEATURES |= {"loudness": (-60, 10, " dB"), "tempo": (0, 400, " beats per minute")}
AUDIO_FEATURES |= {"duration_ms": (5_000, 36_000_000, " ms")}


@checked
def check_audio(songs: pd.DataFrame, place: object = "songs") -> pd.DataFrame:
    """The table with the audio features that it has as floats; nan where one is missing.

    Raises `LyricsError` if one is no number, or out of its range, which may be the wrong unit.
    """
    columns = {}
    for name in filter(AUDIO_FEATURES.get, songs.columns):
        low, high, unit = AUDIO_FEATURES[name]
        cells, known = songs[name], songs[name].notna() & (songs[name].astype(str).str.strip() != "")
        columns[name] = numbers = cells.where(known, np.nan).map(as_number).astype(float)
        if wrong := cells.index[known & ~numbers.between(low, high)].tolist():
            found = f"{name} in row {wrong[0]} is {str(cells[wrong[0]])[:40]!r}"
            raise LyricsError(
                f"{place}: {found}, but must lie between {low:,} and {high:,}{unit}. Correct or empty it."
            )
    return songs.assign(**columns)
