"""The billboard table: two R files joined, with an account of every row; and audio features in their units."""

import bz2

import numpy as np
import pandas as pd
import pytest
import rdata

import lyric_utils as lu
from lyric_utils.audio import AUDIO_FEATURES, check_audio
from lyric_utils.billboard import read_billboard
from lyric_utils.profiles import PROFILES

FEATURES = dict.fromkeys(AUDIO_FEATURES, 0.5) | {"key": 3, "mode": 1, "loudness": -7.5, "tempo": 120.0}
FEATURES |= {"duration_ms": 200_000, "time_signature": 4}


def songs_of(*rows):
    """Rows of (title, artist, year, lyrics)."""
    return pd.DataFrame(rows, columns=["title", "artist", "year", "lyrics"])


def tracks_of(*rows, **changes):
    """Rows of (title, artist, year, valence)."""
    names = ["track_name", "artist_name", "year", "valence"]
    return pd.DataFrame(rows, columns=names).assign(**FEATURES | changes)


SONGS = songs_of(
    ("River", "Ann", "1990", "down to the river and home"),
    ("Hill (Live)", "The Bees & Co", "1991", "up the hill and away"),
    ("Quiet", "Ann", "1992", None),
    ("Nowhere", "Cy", "1993", "no one has measured this one"),
    ("Twice", "Dee", "1994", "two tracks of the same year"),
    ("Again", "Eve", "1999", "the nearest year decides"),
)
TRACKS = tracks_of(
    ("River - 2009 Remaster", "Ann", "1990", 0.1),
    ("Hill", "Bees and Co feat. Ann", "1991", 0.2),
    ("Quiet", "Ann", "1992", 0.3),
    ("Twice", "Dee", "1994", 0.4),
    ("Twice", "Dee", "1994", 0.5),
    ("Again", "Eve", "1970", 0.6),
    ("Again", "Eve", "1998", 0.7),
)


@pytest.fixture
def join(tmp_path):
    """Write two tables as R data and read them joined."""

    def write_and_join(songs=SONGS, tracks=TRACKS):
        paths = tmp_path / "lyrics.rda", tmp_path / "spotify_track_data.rda"
        for path, table in zip(paths, (songs, tracks), strict=True):
            rdata.write_rda(path, {path.stem: table})
        return read_billboard(*paths)

    return write_and_join


def test_every_row_is_joined_or_accounted_for(join):
    songs, report = join()
    assert songs["row"].tolist() == [0, 1, 5]
    assert songs["valence"].tolist() == [0.1, 0.2, 0.7]
    assert songs["year"].tolist() == [1990, 1991, 1999]
    assert songs["loudness"].tolist() == [-7.5] * 3
    reasons = dict(zip(report.dropped["title"], report.dropped["reason"], strict=True))
    assert reasons == {"Quiet": "no lyrics", "Nowhere": "no track", "Twice": "several tracks"}
    assert report.rows_in == report.rows_kept + len(report.dropped) == 6


def test_two_tracks_that_agree_are_one(join):
    songs, _ = join(tracks=pd.concat([TRACKS, TRACKS]).query("track_name != 'Twice' or valence == 0.4"))
    assert "Twice" in set(songs["title"])


def test_audio_features_survive_cleaning(join):
    songs, _ = lu.clean_songs(join()[0])
    assert {"year", *AUDIO_FEATURES} < set(songs.columns)


def test_the_profile_reads_a_folder(join, tmp_path, monkeypatch, capsys):
    join()
    monkeypatch.setenv("LYRICS_DATA", str(tmp_path))
    assert lu.load_source(PROFILES["billboard"])["title"].tolist() == ["River", "Hill (Live)", "Again"]
    assert "6 rows in, 3 songs kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a data frame in R's format"),
        (b"artist,title,lyrics\n", "not a data frame in R's format"),
        (bz2.compress(b"RDX2\nX\n" + b"\0" * 40), "not a data frame in R's format"),
        (bz2.compress(b"RDX3\nX\n")[:-4], "not a data frame in R's format"),
    ],
)
def test_damaged_file(join, tmp_path, content, message):
    join()
    (tmp_path / "lyrics.rda").write_bytes(content)
    with pytest.raises(lu.LyricsError, match=rf"lyrics\.rda: {message}.*Download it again") as caught:
        read_billboard(tmp_path / "lyrics.rda", tmp_path / "spotify_track_data.rda")
    assert len(str(caught.value)) < 500


def test_truncated_file(join, tmp_path):
    join()
    path = tmp_path / "spotify_track_data.rda"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(lu.LyricsError, match=r"spotify_track_data\.rda: not a data frame"):
        read_billboard(tmp_path / "lyrics.rda", path)


@pytest.mark.parametrize("content", [{"x": "a text"}, {"a": SONGS, "b": SONGS}, {"x": np.arange(3.0)}])
def test_r_data_of_another_kind(join, tmp_path, content):
    join()
    rdata.write_rda(tmp_path / "lyrics.rda", content)
    with pytest.raises(lu.LyricsError, match=r"lyrics\.rda: "):
        read_billboard(tmp_path / "lyrics.rda", tmp_path / "spotify_track_data.rda")


def test_missing_column_and_year(join):
    with pytest.raises(lu.LyricsError, match=r"spotify_track_data\.rda: column 'tempo' is missing"):
        join(tracks=TRACKS.drop(columns="tempo"))
    with pytest.raises(lu.LyricsError, match=r"lyrics\.rda: column 'year' holds something else"):
        join(songs=SONGS.assign(year="then"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loudness", 7_500.0, "loudness in row 0 is '7500.0', but must lie between -60 and 10 dB"),
        ("duration_ms", 200.0, "between 5,000 and 36,000,000 ms"),
        ("energy", 50.0, "energy in row 0 is '50.0'"),
        ("tempo", "fast", "tempo in row 0 is 'fast'"),
    ],
)
def test_audio_features_in_other_units(join, name, value, message):
    with pytest.raises(lu.LyricsError, match=rf"spotify_track_data\.rda: .*{message}"):
        join(tracks=TRACKS.assign(**{name: value}))


def test_missing_audio_features_stay_missing():
    songs = pd.DataFrame({"energy": [0.5, None, ""], "title": ["a", "b", "c"]})
    checked = check_audio(songs)
    assert checked["energy"].isna().tolist() == [False, True, True]
    assert songs["energy"].tolist()[2] == "", "the table given stays as it is"
