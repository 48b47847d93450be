"""The scores agree with scikit-learn and scipy, and the intervals behave as intervals should."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from lyric_utils import evaluation
from lyric_utils._files import LyricsError

METRICS = ["mse", "rmse", "mae", "r2", "pearson", "spearman"]
VALENCES = st.integers(0, 1000).map(lambda value: value / 1000)
PAIRS = st.lists(st.tuples(VALENCES, VALENCES), min_size=2, max_size=40)


def simulate(songs=400, noise=0.1, seed=0):
    random = np.random.default_rng(seed)
    truth = random.random(songs)
    return truth, 0.3 + 0.4 * truth + random.normal(0, noise, songs)


def simulate_artists(artists=40, songs_each=10, seed=0):
    """Songs whose errors are nearly the same within an artist."""
    random = np.random.default_rng(seed)
    names = np.repeat([f"artist {number}" for number in range(artists)], songs_each)
    truth = random.random(artists * songs_each)
    error = np.repeat(random.normal(0, 0.2, artists), songs_each) + random.normal(0, 0.02, len(truth))
    return truth, truth + error, names


@pytest.mark.filterwarnings("error")
@given(PAIRS)
def test_scores_agree_with_scikit_learn_and_scipy(pairs):
    truth, prediction = np.array(pairs).T
    score = evaluation.score(truth, prediction)
    assert list(score) == METRICS
    assert score["mse"] == pytest.approx(metrics.mean_squared_error(truth, prediction))
    assert score["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, prediction))
    assert score["mae"] == pytest.approx(metrics.mean_absolute_error(truth, prediction))
    if np.ptp(truth) == 0:
        assert np.isnan(score["r2"])
    else:
        assert score["r2"] == pytest.approx(metrics.r2_score(truth, prediction))
    if np.ptp(truth) == 0 or np.ptp(prediction) == 0:
        assert np.isnan([score["pearson"], score["spearman"]]).all()
    else:
        assert score["pearson"] == pytest.approx(stats.pearsonr(truth, prediction)[0], abs=1e-9)
        assert score["spearman"] == pytest.approx(stats.spearmanr(truth, prediction)[0], abs=1e-9)


@pytest.mark.filterwarnings("error")
@given(PAIRS)
def test_intervals_are_ordered_and_never_warn(pairs):
    truth, prediction = zip(*pairs, strict=True)
    table = evaluation.score_with_intervals(truth, prediction, resamples=20)
    drawn = table.dropna()
    assert (drawn["low"] <= drawn["high"]).all()


def test_a_single_song_has_scores_but_no_correlation():
    score = evaluation.score([0.5], [0.4])
    assert score["mse"] == pytest.approx(0.01)
    assert np.isnan([score["r2"], score["pearson"], score["spearman"]]).all()


def test_intervals_contain_the_value_and_agree_with_scipy():
    truth, prediction = simulate()
    table = evaluation.score_with_intervals(truth, prediction, resamples=2000)
    assert list(table.index) == METRICS
    assert list(table.columns) == ["value", "low", "high"]
    assert ((table["low"] < table["value"]) & (table["value"] < table["high"])).all()
    assert table["value"].to_dict() == evaluation.score(truth, prediction)
    for metric, measure in {"mse": metrics.mean_squared_error, "pearson": lambda t, p: stats.pearsonr(t, p)[0]}.items():
        interval = stats.bootstrap(
            (truth, prediction), measure, paired=True, vectorized=False, n_resamples=2000, method="percentile", rng=1
        ).confidence_interval
        width = interval.high - interval.low
        assert table.loc[metric, ["low", "high"]].to_numpy() == pytest.approx(interval, abs=0.12 * width)


def test_a_higher_level_gives_a_wider_interval():
    narrow, wide = (evaluation.score_with_intervals(*simulate(), level=level) for level in (0.5, 0.99))
    assert (wide["low"] < narrow["low"]).all()
    assert (wide["high"] > narrow["high"]).all()


def test_drawing_artists_widens_the_interval_of_clustered_songs():
    truth, prediction, artists = simulate_artists()
    by_song = evaluation.score_with_intervals(truth, prediction).loc["mse"]
    by_artist = evaluation.score_with_intervals(truth, prediction, groups=artists).loc["mse"]
    assert by_artist["value"] == by_song["value"]
    assert by_artist["high"] - by_artist["low"] > 2 * (by_song["high"] - by_song["low"])
    against_truth = (evaluation.paired_difference(truth, prediction, truth, groups) for groups in (None, artists))
    for mse, difference in zip((by_song, by_artist), against_truth, strict=True):
        assert difference == pytest.approx(mse.tolist())


def test_one_song_per_artist_is_the_same_as_no_groups():
    truth, prediction = simulate(60)
    names = [f"artist {number}" for number in range(60)]
    grouped = evaluation.score_with_intervals(truth, prediction, groups=names)
    pd.testing.assert_frame_equal(grouped, evaluation.score_with_intervals(truth, prediction))


@pytest.mark.parametrize(
    "function",
    [
        lambda seed: evaluation.score_with_intervals(*simulate(), seed=seed).to_numpy().tolist(),
        lambda seed: evaluation.paired_difference(*simulate(), np.full(400, 0.5), seed=seed),
    ],
)
def test_a_seed_fixes_the_interval(function):
    assert function(1) == function(1) != function(2)


def test_the_mse_interval_covers_the_true_mse_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        error = np.random.default_rng(seed).normal(0, 0.2, 200)
        low, high = evaluation.score_with_intervals(np.full(200, 0.5), 0.5 + error, resamples=200).loc[
            "mse", ["low", "high"]
        ]
        hits += low <= 0.04 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_thousand_resamples_of_1200_songs_are_quick():
    truth, prediction = simulate(1200)
    start = time.perf_counter()
    evaluation.score_with_intervals(truth, prediction, groups=np.arange(1200) // 3)
    assert time.perf_counter() - start < 2


def test_paired_difference_is_zero_for_equal_predictions():
    truth, prediction = simulate()
    assert evaluation.paired_difference(truth, prediction, prediction) == (0, 0, 0)


def test_paired_difference_sees_what_separate_intervals_hide():
    truth, prediction = simulate()
    better = truth + 0.95 * (prediction - truth)
    difference = evaluation.paired_difference(truth, better, prediction)
    separate = [evaluation.score_with_intervals(truth, side).loc["mse"] for side in (better, prediction)]
    assert difference.value == pytest.approx(separate[0]["value"] - separate[1]["value"])
    assert difference.low <= difference.value <= difference.high < 0
    assert separate[0]["high"] > separate[1]["low"]
    swapped = evaluation.paired_difference(truth, prediction, better)
    assert swapped == pytest.approx((-difference.value, -difference.high, -difference.low))


@given(PAIRS)
def test_error_by_bin_accounts_for_every_song_and_all_of_the_error(pairs):
    truth, prediction = np.array(pairs).T
    table = evaluation.error_by_bin(truth, prediction, truth, [0, 0.25, 0.5, 0.75, 1])
    score = evaluation.score(truth, prediction)
    assert table["songs"].sum() == len(truth)
    assert (table["songs"] * table["mse"]).sum() / len(truth) == pytest.approx(score["mse"])
    assert (table["songs"] * table["bias"]).sum() / len(truth) == pytest.approx((prediction - truth).mean())


def test_error_by_bin_holds_lower_edges_and_labels_whole_numbers():
    truth, prediction = np.zeros(6), np.array([0.1, 0.2, 0.2, 0.3, 0.4, 0.4])
    table = evaluation.error_by_bin(truth, prediction, [1, 2, 2, 3, 5, 9], [1, 2, 4, 5, np.inf])
    assert table["songs"].to_dict() == {"1": 1, "2–3": 3, "4": 0, "5+": 2}
    assert table["bias"].tolist() == pytest.approx([0.1, 0.7 / 3, np.nan, 0.4], nan_ok=True)
    table = evaluation.error_by_bin(truth, prediction, [0, 0.5, 0.6, 0.7, 0.8, 1], [0, 0.5, 1])
    assert table["songs"].to_dict() == {"0–0.5": 1, "0.5–1": 5}


def test_calibration_has_equal_bins_ordered_by_prediction():
    truth, prediction = simulate(103)
    table = evaluation.calibration(truth, prediction, bins=10)
    assert sorted(table["songs"]) == [10] * 7 + [11] * 3
    assert table["mean_prediction"].is_monotonic_increasing
    assert np.average(table["mean_truth"], weights=table["songs"]) == pytest.approx(truth.mean())
    assert evaluation.calibration(truth, truth)["mean_truth"].tolist() == pytest.approx(
        evaluation.calibration(truth, truth)["mean_prediction"].tolist()
    )


@pytest.mark.parametrize(
    ("songs", "level", "rank"),
    [(1, 0.5, 1), (1, 0.51, None), (9, 0.9, 9), (9, 0.91, None), (10, 0.9, 10), (19, 0.05, 1), (99, 0.55, 55)],
)
def test_the_width_is_the_residual_of_that_rank_or_infinite(songs, level, rank):
    residuals = np.random.default_rng(0).permutation(np.arange(1, songs + 1)) / 100
    assert evaluation.conformal_width(residuals, level) == (np.inf if rank is None else rank / 100)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("songs", [5, 19, 500])
def test_the_truth_of_new_songs_is_within_the_width_as_often_as_promised(songs, level):
    """On average over calibration songs: at least `level`, and less than 1 / (n + 1) more (Lei et al. 2018)."""
    random, covered = np.random.default_rng(0), []
    for _ in range(1_000):
        residuals = np.abs(random.standard_t(3, songs + 1_000))
        covered.append((residuals[songs:] <= evaluation.conformal_width(residuals[:songs], level)).mean())
    assert level - 0.01 < np.mean(covered) < level + 1 / (songs + 1) + 0.01


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: evaluation.score([], []), "truth"),
        (lambda: evaluation.score([0.1, 0.2], [0.1]), "lengths"),
        (lambda: evaluation.score([0.1, 0.2], [0.1, np.nan]), "prediction"),
        (lambda: evaluation.score([[0.1, 0.2]], [0.1, 0.2]), "truth"),
        (lambda: evaluation.score(["happy"], [0.1]), "truth"),
        (lambda: evaluation.score_with_intervals([0.1, 0.2], [0.1, 0.2], groups=["a"]), "groups"),
        (lambda: evaluation.score_with_intervals([0.1, 0.2], [0.1, 0.2], groups=["a", None]), "groups"),
        (lambda: evaluation.score_with_intervals([0.1, 0.2], [0.1, 0.2], groups=["a", "a"]), "two songs or groups"),
        (lambda: evaluation.score_with_intervals([0.1, 0.2], [0.1, 0.2], level=95), "level"),
        (lambda: evaluation.score_with_intervals([0.1, 0.2], [0.1, 0.2], resamples=0), "resample"),
        (lambda: evaluation.paired_difference([0.1, 0.2], [0.1, 0.2], [0.1]), "reference"),
        (lambda: evaluation.error_by_bin([0.1], [0.1], [5], [0, 1]), "outside"),
        (lambda: evaluation.error_by_bin([0.1], [0.1], [5], [9, 1]), "increasing"),
        (lambda: evaluation.calibration([0.1], [0.1], bins=2), "bins"),
        (lambda: evaluation.conformal_width([], 0.9), "residuals"),
        (lambda: evaluation.conformal_width([0.1, np.nan], 0.9), "residuals"),
        (lambda: evaluation.conformal_width([0.1], 90), "level"),
    ],
)
def test_bad_input_is_named_in_one_sentence(call, named):
    with pytest.raises(LyricsError, match=named) as error:
        call()
    assert "\n" not in str(error.value)
