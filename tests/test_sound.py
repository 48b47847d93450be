"""The table of words and sound is what its data card says, and its measured results are those of the program."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import lyric_utils as lu
from benchmarks.quality import sound
from benchmarks.quality.methods import RESULTS
from lyric_utils.audio import AUDIO_FEATURES, check_audio
from lyric_utils.songs import artist_key

SONGS = sound.read_table()


def test_the_table_is_small_complete_and_has_no_lyrics():
    assert sound.TABLE.stat().st_size < 500_000
    assert list(SONGS) == [*sound.ABOUT, *AUDIO_FEATURES, "side", "fold", "words"]
    assert SONGS.index.is_unique
    assert not SONGS.isna().any(axis=None)
    assert SONGS[["valence", "words"]].stack().between(0, 1).all()
    check_audio(SONGS)


def test_the_data_card_counts_the_songs():
    card = (ROOT / "datasets" / "README.md").read_text()
    sides = SONGS["side"].value_counts()
    assert f"({sides['train']:,} / {sides['validation']:,} / {sides['test']:,} songs)" in card
    assert f"\n{len(SONGS):,} hits of {SONGS['year'].min()} to {SONGS['year'].max()}" in card
    valence = SONGS["valence"]
    assert f"Valence has mean {valence.mean():.3f} and standard deviation {valence.std():.3f}" in card


def test_an_artist_has_one_side_and_one_fold():
    by_artist = SONGS.groupby(SONGS["artist"].map(artist_key))
    assert (by_artist["fold"].nunique() == 1).all()
    assert ((SONGS["fold"] < 0) == (SONGS["side"] == "test")).all()


def test_added_r2_is_the_difference_of_two_scores():
    truth, better, worse = SONGS["valence"], 0.5 * SONGS["valence"] + 0.3, SONGS["words"]
    value, low, high = sound.added_r2(truth, better, worse, SONGS["artist"])
    assert value == pytest.approx(lu.score(truth, better)["r2"] - lu.score(truth, worse)["r2"])
    assert low < value < high


def test_saved_results_are_those_of_the_saved_predictions():
    table = pd.read_csv(RESULTS / "sound.csv", keep_default_na=False, na_values=[""]).set_index("row").loc[SONGS.index]
    found = json.loads((RESULTS / "sound.json").read_text())
    assert np.array_equal(table["valence"], SONGS["valence"])
    for protocol, part in {"folds": table[SONGS["fold"] >= 0], "test": table[SONGS["fold"] < 0]}.items():
        for name, scores in found[protocol]["scores"].items():
            assert lu.score(part["valence"], part[name])["r2"] == pytest.approx(scores["r2"][0])
