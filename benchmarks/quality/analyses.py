"""What the results say beside their scores: LYRICS_DATA=songs.csv python -m benchmarks.quality.analyses (after measure)

Writes results/analyses.json: the noise ceiling, where the shipped LoRA model fails, the mean over chunks against the
first, last and largest chunk, mood classes from the regression and from a classifier head, the extrapolated curve.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.optimize import curve_fit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lyric_utils as lu
from benchmarks.common import write_json
from benchmarks.quality.ceiling import noise_ceiling
from benchmarks.quality.measure import CHECKPOINTS, CURVE
from benchmarks.quality.methods import METHODS, RESULTS, Problem, load_problem, read_predictions, saved_in
from lyric_utils.evaluation import resample_sums
from lyric_utils.models import score_songs

MOODS = {"4 moods": (0.25, 0.5, 0.75), "6 moods": (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)}
LARGER = (24_000, 150_000)  # training songs of the paper profile, and about those of the whole Kaggle table
EXTRAPOLATED = ("word_tfidf_ridge", "embedding_ridge", "lora", "blend")
WORD_GROUPS = {
    "love": "love heart baby kiss darling",
    "party": "dance party club tonight dj",
    "faith": "lord god jesus heaven pray",
    "street": "money gang street hood cash",
    "death": "dead die death grave blood",
    "country": "truck whiskey town boots dirt",
    "winter": "christmas santa snow jingle winter",
}


def by_words(test: pd.DataFrame, prediction: np.ndarray) -> dict[str, dict]:
    """Error and bias on the songs that contain a word of the group."""
    words = test["lyrics"].str.lower().str.findall(r"[a-z']+").map(set)
    truth, rows = test["valence"].to_numpy(), {}
    for group, names in WORD_GROUPS.items():
        inside = words.map(set(names.split()).intersection).astype(bool).to_numpy()
        error = (prediction - truth)[inside]
        moments = {"mse": np.mean(error**2), "bias": error.mean(), "mean_truth": truth[inside].mean()}
        rows[group] = {"songs": int(inside.sum())} | {name: float(value) for name, value in moments.items()}
    return rows


def by_chunk(problem: Problem, model) -> dict[str, dict]:
    """Songs of two and more chunks: MSE of the mean over the chunks, and of one chunk alone minus that."""
    inputs = model.inputs_from(problem.features(model.recipe.adapted_layers).subset(problem.held))
    each = replace(inputs, song_index=np.arange(len(inputs.lengths)))  # every chunk a song of its own
    scores = pd.Series(score_songs(model, each)).groupby(inputs.song_index)
    long = np.bincount(inputs.song_index) > 1
    songs, rows = problem.songs.iloc[problem.held][long], {"songs": int(long.sum())}
    for name in ("mean", "first", "last", "max"):
        values, mean = (scores.agg(aggregate).to_numpy()[long] for aggregate in (name, "mean"))
        difference = lu.paired_difference(songs["valence"], values, mean, songs["artist"])
        rows[name] = {"mse": lu.score(songs["valence"], values)["mse"], "minus_mean": difference}
    return rows


def moods(problem: Problem, predictions: dict[str, np.ndarray]) -> dict[str, dict]:
    """Accuracy, macro F1 and confusion of mood classes: cut from regressions, and from a classifier head.

    The head is multinomial logistic regression on the frozen encoder's vectors, its penalty chosen on folds by artist.
    """
    vectors, train, test = problem.features(4).pooled("distinct", 4), problem.train, problem.held
    folds = list(GroupKFold(5).split(train, groups=problem.songs["artist"].iloc[train]))
    results = {}
    for name, edges in MOODS.items():
        truth = np.digitize(problem.valence, edges)
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
        head = GridSearchCV(head, {"logisticregression__C": np.logspace(-4, -1, 4)}, cv=folds)
        head.fit(vectors[train], truth[train])
        largest = np.full(len(test), np.bincount(truth[train]).argmax())
        classes = {"largest class": largest, "classifier head": head.predict(vectors[test])}
        classes |= {method: np.digitize(values, edges) for method, values in predictions.items()}
        results[name] = {
            method: {
                "accuracy": float(np.mean(truth[test] == predicted)),
                "macro_f1": float(f1_score(truth[test], predicted, average="macro", zero_division=0)),
                "confusion": confusion_matrix(truth[test], predicted, labels=range(len(edges) + 1)).tolist(),
            }
            for method, predicted in classes.items()
        }
    return results


def extrapolate(sizes, truth, predictions, at, artists, resamples: int = 200, seed: int = 42) -> pd.DataFrame:
    """Extend a learning curve to more training songs by the power law MSE(n) = limit + factor * n ** -exponent.

    `predictions` has one array per size, of the same test songs. Gives R2 in a DataFrame: index `at` (training songs),
    columns value, low, high. The 95% interval refits the law on resampled artists; it ignores the doubt whether
    a power law holds that far. Source: Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically".
    """
    if len(sizes) < 4 or len(predictions) != len(sizes):
        raise lu.LyricsError("extrapolate needs four or more sizes, and predictions for each of them.")
    sizes, truth = np.asarray(sizes, dtype=float), np.asarray(truth)
    centred = truth - truth.mean()
    errors = [(np.asarray(prediction) - truth) ** 2 for prediction in predictions]
    terms = pd.DataFrame(np.column_stack([np.ones(len(truth)), centred, centred**2, *errors]))
    draws = resample_sums(terms, artists, resamples, seed)

    def law(n, limit, factor, exponent):
        return limit + factor * (n / sizes.min()) ** -exponent

    curves = []
    for sums in [terms.sum().to_numpy(), *draws.to_numpy()]:
        _, mean, square, *mse = sums / sums[0]
        start, bounds = (min(mse) * 0.8, np.ptp(mse) + 1e-3, 0.3), ([0, 0, 0.01], [min(mse), 1, 2])
        fitted, _ = curve_fit(law, sizes, mse, start, bounds=bounds, maxfev=20_000)
        curves.append(1 - law(np.asarray(at, dtype=float), *fitted) / (square - mean**2))
    low, high = np.quantile(curves[1:], [0.025, 0.975], axis=0)
    return pd.DataFrame({"value": curves[0], "low": low, "high": high}, index=pd.Index(at, name="songs"))


def main() -> None:
    problem = load_problem()
    test, songs = problem.songs.iloc[problem.held], problem.songs
    table = read_predictions("artist", test)
    shown = {METHODS[name].label: saved_in(table)(name) for name in ("lora", "blend")}
    sizes = {size: size for size in CURVE} | {None: len(problem.train)}
    curves = {}
    for name in EXTRAPOLATED:
        predictions = [saved_in(table, songs=size)(name) for size in sizes]
        curve = extrapolate([*sizes.values()], test["valence"], predictions, LARGER, test["artist"])
        curves[name] = curve.to_dict("index")
    results = {
        "noise_ceiling": noise_ceiling(songs["valences"].tolist(), songs["artists"].tolist())._asdict(),
        "by_words": by_words(test, shown["LoRA"]),
        "by_chunk": by_chunk(problem, lu.load_model(CHECKPOINTS / "lora", problem.encoder)),
        "moods": moods(problem, shown),
        "extrapolated": curves,
    }
    write_json(RESULTS / "analyses.json", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
