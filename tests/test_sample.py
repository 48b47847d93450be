"""The 150 shipped songs: pickle and readable source agree, and the songs are what the data card says.

`pytest -s tests/test_sample.py` prints what was measured; the table in `datasets/README.md` is held to it.
"""

import re
import runpy
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import lyric_utils as lu
from lyric_utils.songs import is_english

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
LABEL = re.compile(r"^\W*(?:verse|chorus|refrain|bridge|intro|outro|hook)\b[\W\d]*$|^\[", re.IGNORECASE | re.MULTILINE)


@pytest.fixture(scope="module")
def songs():
    return lu.load_songs(DATASETS / "sample_150.pkl")


@pytest.fixture(scope="module")
def source():
    return runpy.run_path(str(DATASETS / "build_sample.py"))["read_source"]()


@pytest.fixture(scope="module")
def measured(songs):
    """What there is to know about the songs, by the names of the data card; printed once."""
    lyrics, valence, by_artist = songs["lyrics"], songs["valence"], songs["artist"].value_counts()
    words = lyrics.str.split().str.len()
    vocabulary = lyrics.str.lower().str.findall(WORD)
    songs_by_run = Counter(chain.from_iterable(map(runs_of_five, vocabulary)))
    chunks = lu.chunk_lyrics(lyrics.tolist(), lu.load_encoder().tokenizer).per_song
    values = {
        "songs": len(songs),
        "genres": songs["genre"].nunique(),
        "artists": len(by_artist),
        "most songs of one artist": int(by_artist.max()),
        "mean valence": round(valence.mean(), 3),
        "standard deviation of valence": round(valence.std(), 3),
        "fewest songs in a tenth of the valence range": int(np.histogram(valence, bins=10, range=(0, 1))[0].min()),
        "median words in a song": int(words.median()),
        "words in the shortest song": int(words.min()),
        "words in the longest song": int(words.max()),
        "songs under 90 words": int((words < 90).sum()),
        "distinct words": len(set(chain.from_iterable(vocabulary))),
        "most songs that share a run of five words": max(songs_by_run.values()),
        "songs longer than one chunk of 512 tokens": int((chunks > 1).sum()),
        "songs of three or more chunks": int((chunks >= 3).sum()),
        "songs of 11 chunks": int((chunks == 11).sum()),
        "songs identified as English": int(lyrics.map(is_english).sum()),
        "train, validation, test songs": " / ".join(str(len(side)) for side in lu.split_songs(songs, by="stored")),
    }
    print("\n\nthe sample, as measured\n" + "\n".join(f"  {value!s:>13}  {name}" for name, value in values.items()))
    return values


def runs_of_five(words):
    return set(zip(*(words[start:] for start in range(5)), strict=False))


def test_pickle_and_readable_source_hold_the_same_songs(songs, source):
    assert songs.to_dict("list") == source.to_dict("list")


def test_building_again_gives_the_same_bytes(source, tmp_path):
    lu.save_songs(source, tmp_path / "again.pkl")
    assert (tmp_path / "again.pkl").read_bytes() == (DATASETS / "sample_150.pkl").read_bytes()


def test_every_field_is_there_and_of_its_type(source):
    texts = ["artist", "title", "genre", "lyrics", "split"]
    assert set(source.columns) == {"row", "valence", *texts}
    assert source["row"].tolist() == list(range(150))
    assert source["title"].is_unique
    for column in texts:
        assert all(isinstance(text, str) and text.strip() == text != "" for text in source[column])
    assert source["valence"].between(0, 1).all()
    assert (source["valence"] == source["valence"].round(3)).all()


def test_songs_artists_and_genres(measured):
    assert measured["songs"] == 150
    assert measured["genres"] >= 12
    assert 45 <= measured["artists"] <= 70
    assert measured["most songs of one artist"] <= 8


def test_valence_is_spread_like_real_labels(measured):
    assert 0.45 <= measured["mean valence"] <= 0.55
    assert measured["standard deviation of valence"] >= 0.24
    assert measured["fewest songs in a tenth of the valence range"] > 0


def test_length_is_that_of_real_lyrics(measured):
    assert 180 <= measured["median words in a song"] <= 260
    assert measured["songs under 90 words"] >= 15
    assert measured["songs longer than one chunk of 512 tokens"] >= 18
    assert measured["songs of three or more chunks"] >= 4
    assert measured["songs of 11 chunks"] == 1


def test_words_are_written_not_assembled(measured):
    assert measured["distinct words"] >= 4_000
    assert measured["most songs that share a run of five words"] <= 3


def test_stored_split_keeps_artists_apart(songs, measured):
    assert measured["train, validation, test songs"] == "120 / 15 / 15"
    assert (songs.groupby("artist")["split"].nunique() == 1).all()


def test_cleaning_changes_nothing(songs, measured):
    assert measured["songs identified as English"] == 150
    cleaned, report = lu.clean_songs(songs)
    assert report.dropped.empty
    assert cleaned["lyrics"].tolist() == songs["lyrics"].tolist()


def test_lyrics_hold_no_section_labels(songs):
    assert not any(map(LABEL.search, songs["lyrics"]))


def test_data_card_states_what_is_measured(measured):
    card = (DATASETS / "README.md").read_text(encoding="utf-8")
    missing = [f"| {name} | {value} |" for name, value in measured.items() if f"| {name} | {value} |" not in card]
    assert not missing
