"""The tables of results are what the saved predictions say."""

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import lyric_utils as lu
from benchmarks.common import read_json
from benchmarks.quality import measure, methods
from benchmarks.quality.comparison import compare, difference, load_comparison, time_table, transfer_table

TRUTH = np.linspace(0.1, 0.6, 40)
WORDS = "word TF-IDF + ridge"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Results of two methods on 40 songs of each table, one with two seeds, one unfinished."""
    columns = {"lora@billboard-42": TRUTH + 0.1, "lora@billboard-43": TRUTH + 0.3, "full@billboard-42": np.nan}
    columns |= {f"word_tfidf_ridge@{name}": np.full(40, 0.5) for name in ("billboard", "subset", "both")}
    songs = pd.DataFrame({"row": range(40), "artist": ["NA", "B", "C", "D"] * 10, "year": 2001, "valence": TRUTH})
    tables = [songs.assign(table="billboard", **columns), songs.assign(table="subset", valence=1 - TRUTH, **columns)]
    for protocol in ("test", "folds"):
        pd.concat(tables).to_csv(tmp_path / f"{protocol}.csv", index=False)
    tables[0].to_csv(tmp_path / "time.csv", index=False)
    monkeypatch.setattr(methods, "RESULTS", tmp_path)


def test_a_method_is_the_mean_over_its_seeds(results):
    comparison = load_comparison()
    assert list(comparison.predictions) == [WORDS, "LoRA"]
    assert comparison.artists[0] == "NA"
    table = compare(comparison, reference="LoRA")
    lora = table.loc["LoRA", "mse"]
    assert lora["value"] == pytest.approx((0.01 + 0.09) / 2)
    assert (lora["smallest"], lora["largest"]) == (pytest.approx(0.01), pytest.approx(0.09))
    expected = 0.05 - np.mean((TRUTH - 0.5) ** 2)
    assert table.loc[WORDS, ("difference", "value")] == pytest.approx(expected)
    assert difference(comparison, WORDS, "LoRA")["value"] == pytest.approx(-expected)
    assert compare(load_comparison(trained_on="both"), reference="LoRA")["difference"].isna().all(axis=None)


def test_what_was_not_measured_is_named(results):
    with pytest.raises(lu.LyricsError, match=r"time\.csv: no method was trained on 'subset' and tested on 'subset'"):
        load_comparison("time", "subset")
    with pytest.raises(lu.LyricsError, match=r"song\.csv.*benchmarks\.quality\.measure song"):
        load_comparison("song")


def test_transfer_has_a_line_per_training_table(results):
    table = transfer_table(["LoRA", WORDS])
    assert table.index.tolist() == [("LoRA", "billboard"), *((WORDS, name) for name in ("billboard", "subset", "both"))]
    seeds = [lu.score(1 - TRUTH, TRUTH + shift)["r2"] for shift in (0.1, 0.3)]
    assert table.loc[("LoRA", "billboard"), ("r2", "subset", "folds")] == pytest.approx(np.mean(seeds))
    assert table.loc[("LoRA", "billboard"), ("pearson", "billboard", "test")] == pytest.approx(1)


def test_time_tells_order_from_level(results):
    lora = time_table().loc["LoRA"]
    assert (lora["pearson"], lora["slope"]) == (pytest.approx(1), pytest.approx(1))
    assert lora["mean_prediction"] - lora["mean_truth"] == pytest.approx(0.1)
    assert lora["r2"] == pytest.approx(1 - 0.01 / TRUTH.var())
    assert np.isnan(time_table().loc[WORDS, "slope"])


@pytest.mark.parametrize("protocol", ["test", "folds", "song", "time"])
def test_what_was_measured_is_whole(protocol):
    table, costs = methods.read_predictions(protocol), read_json(methods.RESULTS / "runs.json")
    measured = [run for run in measure.runs() if run.protocol == protocol and run.name in costs]
    assert {"constant", "char_structure_ridge", "nystroem_ridge"} <= {run.method for run in measured}
    assert not [run.name for run in measured if table[run.column].isna().any()]


@pytest.mark.parametrize(("column", "folder"), measure.SHIPPED.items(), ids=measure.SHIPPED.values())
def test_the_shipped_checkpoints_say_what_the_table_says(column, folder):
    shipped = lu.load_results(ROOT / "trained_models" / folder).predictions.set_index("row")
    tested = methods.read_predictions("test").loc["subset" if "@subset" in column else "billboard"]
    assert shipped.index.tolist() == tested.index.tolist()
    np.testing.assert_allclose(shipped["valence"], tested["valence"], atol=1e-4)
    np.testing.assert_allclose(shipped["prediction"], tested[column], atol=1e-4)
