"""How good are the predicted valences? Scores, bootstrap intervals, mood classes and the noise ceiling.

Every function takes plain sequences (lists, arrays or Series), one value a song, and raises
`LyricsError` with one sentence when they are empty, unequal in length or hold a missing value.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import curve_fit
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, f1_score

from lyric_utils.songs import LyricsError

SMALLEST_VARIANCE = 1e-14  # values spread less than this (a standard deviation of 1e-7) count as constant


class Interval(NamedTuple):
    """A point estimate and the two ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def score(truth, prediction) -> dict[str, float]:
    """Score predictions: a dict with mse, rmse, mae, r2, pearson and spearman, each a float.

    mse, rmse and mae are >= 0 (lower is better); r2 is <= 1, and 0 for a model that always answers the mean
    of `truth`; the two correlations lie in [-1, 1]. r2 is nan when `truth` is constant, pearson and
    spearman when either side is. Definitions as in scikit-learn and scipy.

    >>> round(score([0.2, 0.4, 0.9], [0.3, 0.4, 0.7])["mse"], 4)
    0.0167
    """
    terms = _score_terms(*_columns(truth=truth, prediction=prediction))
    return _scores_from_sums(terms.sum().to_frame().T).iloc[0].to_dict()


def score_with_intervals(truth, prediction, groups=None, resamples=1000, seed=42, level=0.95) -> pd.DataFrame:
    """Score predictions with percentile bootstrap intervals (Efron and Tibshirani, 1993, chapter 13).

    groups: one name a song, usually the artist. Whole groups are drawn (the cluster bootstrap; Field and
    Welsh, 2007), because the songs of one artist are not independent. Without it, songs are drawn.
    Ranks for spearman are taken once, on all songs, and not again in each resample.

    Returns a DataFrame: index the metrics of `score`, columns value, low, high.
    """
    terms = _score_terms(*_columns(truth=truth, prediction=prediction))
    draws = _scores_from_sums(_resampled_sums(terms, groups, resamples, seed))
    rows = {metric: _interval(value, draws[metric], level) for metric, value in score(truth, prediction).items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=Interval._fields).rename_axis("metric")


def paired_difference(truth, prediction, reference, groups=None, resamples=1000, seed=42, level=0.95) -> Interval:
    """MSE of `prediction` minus MSE of `reference`, both scored on the same songs in every resample.

    Below zero means that `prediction` is better; an interval without zero means that the test songs
    suffice to say so. Pairing removes the noise both share: songs that are hard for every model.
    Returns an Interval; `groups` as in `score_with_intervals`.
    """
    truth, prediction, reference = _columns(truth=truth, prediction=prediction, reference=reference)
    difference = (prediction - truth) ** 2 - (reference - truth) ** 2
    terms = pd.DataFrame({"songs": 1.0, "difference": difference})
    sums = _resampled_sums(terms, groups, resamples, seed)
    return _interval(difference.mean(), sums["difference"] / sums["songs"], level)


def noise_ceiling(valences, artists=None, resamples=1000, seed=42, level=0.95) -> Interval:
    """Estimate the best R2 that any model can reach when it reads only the words.

    valences: for every text, the list of valences of the recordings that carry these very words (most have one).
    artists: the same lists with each recording's artist; an artist's recordings of one text are averaged first
    and count as one, so that only different artists tell how much valence varies under equal words.

    The ceiling is 1 - (variance within a text) / (variance of all recordings): the first is the pooled unbiased
    estimate over texts with two or more recordings (one-way analysis of variance), the second the sample
    variance of every recording, single ones included. The interval is a bootstrap over texts.

    An estimate, for it assumes that texts recorded once would vary as much as those recorded more often. It holds
    for the valence of one recording: a target averaged over k merged recordings carries 1/k of the noise, so
    its ceiling lies somewhat higher. The least MSE is (1 - ceiling) x variance of the truth.

    Returns an Interval; raises LyricsError when no text has two recordings to compare.
    """
    texts = _text_terms(valences, artists)
    if not texts["spare"].any():
        raise LyricsError("noise_ceiling needs at least one text with two recordings to compare.")
    value = _ceiling_from_sums(texts.sum().to_frame().T).iloc[0]
    return _interval(value, _ceiling_from_sums(_resampled_sums(texts, None, resamples, seed)), level)


def extrapolate(sizes, truth, predictions, at, groups=None, resamples=200, seed=42, level=0.95) -> pd.DataFrame:
    """Carry a learning curve on to more training songs, by the power law MSE(n) = limit + factor * n ** -exponent.

    sizes: numbers of training songs, four or more. predictions: one list of predictions a size, of the same test
    songs. at: numbers of training songs to answer for. The interval refits the law on resampled `groups`; it knows
    nothing of the doubt whether a power law holds that far. Source of the law: Hestness et al. 2017, "Deep Learning
    Scaling is Predictable, Empirically".

    Returns a DataFrame: index `at`, columns value, low, high: R2.
    """
    (sizes,) = _columns(sizes=sizes)
    if len(sizes) < 4 or len(predictions) != len(sizes):
        raise LyricsError("extrapolate needs four or more sizes, and predictions for each of them.")
    terms = [_score_terms(*_columns(truth=truth, prediction=prediction)) for prediction in predictions]
    sums = [term.sum().to_frame().T for term in terms]
    draws = [_resampled_sums(term, groups, resamples, seed) for term in terms]  # the same songs for every size
    value, fits = _carried_on(sizes, sums, at)[0], _carried_on(sizes, draws, at)
    low, high = np.quantile(fits, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return pd.DataFrame({"value": value, "low": low, "high": high}, index=pd.Index(at, name="songs"))


def _carried_on(sizes, sums, at):
    """R2 at other sizes, one row a resample."""
    mse = np.column_stack([one["squared_error"] / one["songs"] for one in sums])
    variance = _variance(sums[0].div(sums[0]["songs"], axis=0), "value", "x").to_numpy()
    scale = sizes.min()

    def law(n, limit, factor, exponent):
        return limit + factor * (n / scale) ** -exponent

    rows = []
    for errors, spread in zip(mse, variance, strict=True):
        start, bounds = (errors.min() * 0.8, np.ptp(errors) + 1e-3, 0.3), ([0, 0, 0.01], [errors.min(), 1, 2])
        fitted, _ = curve_fit(law, sizes, errors, start, bounds=bounds, maxfev=20_000)
        rows.append(1 - law(np.asarray(at, dtype=float), *fitted) / spread)
    return np.array(rows)


def mood_class(valence, edges=(0.25, 0.5, 0.75)) -> np.ndarray:
    """Cut valences into moods 0 .. len(edges), as an int array; a value on an edge belongs to the upper mood."""
    (valence,) = _columns(valence=valence)
    return np.digitize(valence, edges)


def class_scores(truth_classes, predicted_classes) -> dict[str, float]:
    """Accuracy and macro-averaged F1, both in [0, 1]; classes that neither side holds are left out of the mean."""
    truth, predicted = _columns(truth_classes=truth_classes, predicted_classes=predicted_classes)
    if (truth % 1).any() or (predicted % 1).any():
        raise LyricsError("classes must be whole numbers, such as mood_class gives.")
    macro_f1 = f1_score(truth, predicted, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, predicted)), "macro_f1": float(macro_f1)}


def error_by_bin(truth, prediction, values, bins) -> pd.DataFrame:
    """Tell where a model errs: MSE and bias (mean of prediction - truth) by valence, length or number of chunks.

    values: what to sort the songs by, one number a song. bins: increasing edges that cover all values; a bin
    holds its lower edge and not its upper one, except the last, which holds both. np.inf is a fine last edge.
    Returns a DataFrame: index bin (its label), columns songs, mse, bias (nan for a bin without songs).
    """
    truth, prediction, values = _columns(truth=truth, prediction=prediction, values=values)
    bins = np.asarray(bins, dtype=float)
    if len(bins) < 2 or not (np.diff(bins) > 0).all():
        raise LyricsError("bins must be two or more increasing edges.")
    if values.min() < bins[0] or values.max() > bins[-1]:
        raise LyricsError(f"values run from {values.min():g} to {values.max():g}, outside the bins.")
    labels = _bin_labels(bins, values)
    bin_of_song = pd.Categorical.from_codes(np.minimum(np.digitize(values, bins) - 1, len(labels) - 1), labels)
    errors = pd.DataFrame({"bin": bin_of_song, "error": prediction - truth, "square": (prediction - truth) ** 2})
    by_bin = errors.groupby("bin", observed=False)
    return by_bin.agg(songs=("error", "size"), mse=("square", "mean"), bias=("error", "mean"))


def calibration(truth, prediction, bins=10) -> pd.DataFrame:
    """Compare what was predicted with what came true, in `bins` groups of equally many songs, by prediction.

    Returns a DataFrame: one row a group, lowest predictions first, columns mean_prediction,
    mean_truth, songs. A calibrated model has equal means in every row.
    """
    truth, prediction = _columns(truth=truth, prediction=prediction)
    if not 1 <= bins <= len(truth):
        raise LyricsError(f"bins is {bins}, but must lie between 1 and the number of songs, {len(truth)}.")
    parts = np.array_split(np.argsort(prediction, kind="stable"), bins)
    rows = [(prediction[part].mean(), truth[part].mean(), len(part)) for part in parts]
    return pd.DataFrame(rows, columns=["mean_prediction", "mean_truth", "songs"])


def _columns(**columns):
    """Check named columns and return them as float arrays of one length."""
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = np.asarray(values, dtype=float)
        except (TypeError, ValueError):
            raise LyricsError(f"{name} must hold numbers only.") from None
        if arrays[name].ndim != 1 or arrays[name].size == 0:
            raise LyricsError(f"{name} must be a non-empty list of numbers, but has shape {arrays[name].shape}.")
        if not np.isfinite(arrays[name]).all():
            raise LyricsError(f"{name} holds a missing or infinite value.")
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise LyricsError(f"the lengths differ: {lengths}.")
    return list(arrays.values())


def _bin_labels(bins, values):
    """Label bins for people: '0.25–0.5', and for whole numbers '2–4', '5' or '10+'."""
    whole = (bins == np.round(bins)).all() and (values == np.round(values)).all()
    tops = [*(bins[1:-1] - 1), bins[-1]] if whole else bins[1:]
    labels = [f"{low:g}" if low == top else f"{low:g}–{top:g}" for low, top in zip(bins[:-1], tops, strict=True)]
    return [*labels[:-1], f"{bins[-2]:g}+"] if np.isinf(bins[-1]) else labels


def _score_terms(truth, prediction):
    """One row a song, with the terms whose sums give every metric. Both sides are centred, to keep their digits."""
    error, songs = prediction - truth, len(truth)
    terms = {"songs": np.ones(songs), "squared_error": error**2, "absolute_error": np.abs(error)}
    ranks = rankdata(truth) / songs, rankdata(prediction) / songs
    for kind, (x, y) in {"value": (truth, prediction), "rank": ranks}.items():
        x, y = x - x.mean(), y - y.mean()
        terms |= {f"{kind}_x": x, f"{kind}_y": y, f"{kind}_xx": x * x, f"{kind}_yy": y * y, f"{kind}_xy": x * y}
    return pd.DataFrame(terms)


def _scores_from_sums(sums):
    """Turn summed terms, one row a resample, into metrics, one column each."""
    mean = sums.div(sums["songs"], axis=0)
    return pd.DataFrame(
        {
            "mse": mean["squared_error"],
            "rmse": np.sqrt(mean["squared_error"]),
            "mae": mean["absolute_error"],
            "r2": 1 - mean["squared_error"] / _variance(mean, "value", "x"),
            "pearson": _correlation(mean, "value"),
            "spearman": _correlation(mean, "rank"),
        }
    )


def _variance(mean, kind, side):
    variance = mean[f"{kind}_{side}{side}"] - mean[f"{kind}_{side}"] ** 2
    return variance.where(variance > SMALLEST_VARIANCE)


def _correlation(mean, kind):
    covariance = mean[f"{kind}_xy"] - mean[f"{kind}_x"] * mean[f"{kind}_y"]
    return (covariance / np.sqrt(_variance(mean, kind, "x") * _variance(mean, kind, "y"))).clip(-1, 1)


def _text_terms(valences, artists):
    """One row a text, with the terms whose sums give the variance within a text and over all recordings."""
    if not len(valences) or any(np.ndim(values) != 1 or len(values) == 0 for values in valences):
        raise LyricsError("valences must be a non-empty list of non-empty lists.")
    counts = [len(values) for values in valences]
    (flat,) = _columns(valences=np.concatenate(valences))
    table = pd.DataFrame({"text": np.repeat(np.arange(len(counts)), counts), "valence": flat - flat.mean()})
    if artists is not None:
        if [len(names) for names in artists] != counts:
            raise LyricsError("artists must name one artist for every valence, in lists of the same lengths.")
        table["artist"] = _names("artists", [name for names in artists for name in names])
        table = table.groupby(["text", "artist"], as_index=False)["valence"].mean()
    by_text = table.assign(square=table["valence"] ** 2).groupby("text")
    terms = by_text[["valence", "square"]].sum().assign(recordings=by_text.size(), spare=by_text.size() - 1)
    return terms.assign(within=by_text["valence"].var().fillna(0) * terms["spare"])


def _ceiling_from_sums(sums):
    within_text = sums["within"] / sums["spare"].where(sums["spare"] > 0)
    total = (sums["square"] - sums["valence"] ** 2 / sums["recordings"]) / (sums["recordings"] - 1)
    return 1 - within_text / total.where(total > SMALLEST_VARIANCE)


def _names(argument, names):
    names = pd.Series(list(names))
    if names.isna().any():
        raise LyricsError(f"{argument} holds a missing name.")
    return names


def _resampled_sums(terms, groups, resamples, seed):
    """Draw whole groups (single rows without groups), as many as there are, with replacement; sum each draw's terms."""
    if groups is not None:
        groups = _names("groups", groups)
        if len(groups) != len(terms):
            raise LyricsError(f"groups has {len(groups)} names for {len(terms)} songs.")
        terms = terms.groupby(groups, sort=False).sum()
    count, values, random = len(terms), terms.to_numpy(dtype=float), np.random.default_rng(seed)
    if count < 2 or resamples < 1:
        raise LyricsError(f"a bootstrap needs two songs or groups and one resample, but got {count} and {resamples}.")
    weights = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(resamples))
    return pd.DataFrame([weight @ values for weight in weights], columns=terms.columns)


def _interval(value, draws, level):
    """The percentile interval of the draws; those in which the statistic is undefined (nan) are left out."""
    if not 0 < level < 1:
        raise LyricsError(f"level must lie between 0 and 1, but is {level}.")
    return Interval(float(value), *(float(draws.quantile(share)) for share in ((1 - level) / 2, (1 + level) / 2)))
