"""The table of results is what the saved predictions say."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import lyric_utils as lu
from benchmarks.quality.comparison import (
    compare,
    difference,
    load_comparison,
    load_curves,
    load_encoder_comparison,
)
from benchmarks.quality.measure import SHIPPED
from benchmarks.quality.methods import METHODS, RESULTS

TRUTH = np.linspace(0, 1, 40)


@pytest.fixture
def folder(tmp_path):
    """Results of two methods, one with two seeds, and of one of them on 300 and 600 songs."""
    columns = {"lora-42": TRUTH + 0.1, "lora-43": TRUTH + 0.3, "word_tfidf_ridge": np.full(40, 0.5)}
    columns |= {"word_tfidf_ridge-300": np.full(40, 0.6), "word_tfidf_ridge-600": np.full(40, 0.55)}
    table = pd.DataFrame({"row": range(40), "artist": ["NA", "B", "C", "D"] * 10, "valence": TRUTH, **columns})
    table.to_csv(tmp_path / "artist.csv", index=False)
    (tmp_path / "runs.json").write_text(json.dumps({"artist/constant": {"songs": 4155}}))
    return tmp_path


def test_a_method_is_the_mean_over_its_seeds(folder):
    comparison = load_comparison(folder=folder)
    assert list(comparison.predictions) == ["word TF-IDF + ridge", "LoRA"]
    table = compare(comparison, reference="LoRA")
    lora = table.loc["LoRA", "mse"]
    assert lora["value"] == pytest.approx((0.01 + 0.09) / 2)
    assert (lora["smallest"], lora["largest"]) == (pytest.approx(0.01), pytest.approx(0.09))
    expected = 0.05 - np.mean((TRUTH - 0.5) ** 2)
    assert table.loc["word TF-IDF + ridge", ("difference", "value")] == pytest.approx(expected)
    assert difference(comparison, "word TF-IDF + ridge", "LoRA")["value"] == pytest.approx(-expected)


def test_curves_have_the_methods_measured_at_every_size(folder):
    curves = load_curves((300, 600), folder)
    assert list(curves) == ["word TF-IDF + ridge"]
    assert curves["word TF-IDF + ridge"].index.tolist() == [300, 600, 4155]


def test_what_was_not_measured_is_named(folder):
    with pytest.raises(lu.LyricsError, match=r"artist\.csv: contains no run on 999 songs"):
        load_comparison(songs=999, folder=folder)
    with pytest.raises(lu.LyricsError, match=r"song\.csv.*benchmarks\.quality\.measure"):
        load_comparison("song", folder=folder)
    with pytest.raises(lu.LyricsError, match=r"larger_encoder\.csv.*benchmarks\.quality\.larger_encoder"):
        load_encoder_comparison(folder=folder)


@pytest.mark.parametrize("split_by", ["artist", "folds"])
def test_every_method_was_measured(split_by):
    missing = {method.label for method in METHODS.values()} - set(load_comparison(split_by).predictions)
    assert missing == (set() if split_by == "artist" else {METHODS["lora_paper"].label, METHODS["full"].label})


def test_the_shipped_checkpoints_say_what_the_table_says():
    """The first seed of each shipped method is in the table with the predictions of its checkpoint."""
    real = load_comparison()
    for name in SHIPPED:
        predictions = lu.load_results(ROOT / "trained_models" / name).predictions
        np.testing.assert_allclose(predictions["valence"], real.truth, atol=1e-4)
        np.testing.assert_allclose(predictions["prediction"], real.predictions[METHODS[name].label][0], atol=1e-4)


@pytest.mark.parametrize("split_by", ["artist", "folds"])
def test_encoders_are_compared_on_the_same_songs(split_by):
    larger = pd.read_csv(RESULTS / "larger_encoder.csv", keep_default_na=False)
    songs = pd.read_csv(RESULTS / f"{split_by}.csv", keep_default_na=False)
    assert larger.loc[larger["split"] == split_by, "row"].tolist() == songs["row"].tolist()
    comparison = load_encoder_comparison(split_by)
    assert {encoder for _, encoder in comparison.predictions} > {"MiniLM", "all-mpnet-base-v2, 8 layers"}
    for [prediction] in comparison.predictions.values():
        assert lu.score(comparison.truth, prediction)["r2"] > 0.2
