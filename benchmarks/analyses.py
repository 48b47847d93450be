"""What the results say beside their scores: LYRICS_DATA=songs.csv python -m benchmarks.analyses (after quality)

Writes results/quality/analyses.json: the noise ceiling, where the shipped LoRA model fails, mean over chunks against
first, last and largest chunk, mood classes from the regression and from a classifier head, the extrapolated curve.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import lyric_utils as lu
from benchmarks.common import write_json
from benchmarks.quality import CHECKPOINTS, CURVE, RESULTS, Side, load_sides
from lyric_utils import evaluation

MOODS = {"4 moods": (0.25, 0.5, 0.75), "6 moods": (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)}
LARGER = (24_000, 150_000)  # training songs of the paper profile, and about those of the whole Kaggle table
WORD_GROUPS = {
    "love": "love heart baby kiss darling",
    "party": "dance party club tonight dj",
    "faith": "lord god jesus heaven pray",
    "street": "money gang street hood cash",
    "death": "dead die death grave blood",
    "country": "truck whiskey town boots dirt",
    "winter": "christmas santa snow jingle winter",
}


def ceiling() -> evaluation.Interval:
    """The best R2 that any reader of words can reach, from all songs of the table; predictions play no part."""
    songs = pd.concat([side.table for side in load_sides("artist").values()])
    return evaluation.noise_ceiling(songs["valences"].tolist(), songs["artists"].tolist())


def by_words(test: Side, prediction: np.ndarray) -> dict[str, dict]:
    """Error and bias on the songs in which a word of the group stands."""
    words = test.table["lyrics"].str.lower().str.findall(r"[a-z']+").map(set)
    rows = {}
    for group, names in WORD_GROUPS.items():
        inside = words.map(set(names.split()).intersection).astype(bool).to_numpy()
        error = prediction[inside] - test.valence[inside]
        moments = {"mse": np.mean(error**2), "bias": error.mean(), "mean_truth": test.valence[inside].mean()}
        rows[group] = {"songs": int(inside.sum())} | {name: float(value) for name, value in moments.items()}
    return rows


def by_chunk(test: Side, model) -> dict[str, dict]:
    """Songs of two and more chunks: MSE of the mean over the chunks, and of one chunk alone minus that."""
    rows = model.rows_of_pass(test.frozen(model.recipe.adapted_layers))
    each = replace(rows, song_index=np.arange(len(rows.lengths)))  # every chunk a song of its own
    scores = pd.Series(lu.score_songs(model, each)).groupby(rows.song_index)
    long = test.chunks.per_song > 1
    truth, artists = test.valence[long], test.table["artist"][long]
    ways = {name: scores.agg(name).to_numpy()[long] for name in ("mean", "first", "last", "max")}
    return {
        name: {"mse": lu.score(truth, way)["mse"]}
        | {"minus_mean": lu.paired_difference(truth, way, ways["mean"], artists) if name != "mean" else None}
        for name, way in ways.items()
    } | {"songs": int(long.sum())}


def moods(train: Side, test: Side, predictions: dict[str, np.ndarray]) -> dict[str, dict]:
    """Accuracy, macro F1 and confusion of mood classes: cut from regressions, and from a classifier head.

    The head is multinomial logistic regression on the frozen encoder's vectors, its penalty chosen on folds by artist.
    """
    vectors = {
        name: side.frozen(4).song_vectors("distinct", 4) for name, side in {"train": train, "test": test}.items()
    }
    folds = list(GroupKFold(5).split(vectors["train"], groups=train.table["artist"]))
    results = {}
    for name, edges in MOODS.items():
        sides = {"train": train, "test": test}
        truth = {side: evaluation.mood_class(songs.valence, edges) for side, songs in sides.items()}
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
        head = GridSearchCV(head, {"logisticregression__C": np.logspace(-4, -1, 4)}, cv=folds)
        head.fit(vectors["train"], truth["train"])
        largest = np.full_like(truth["test"], np.bincount(truth["train"]).argmax())
        classes = {"largest class": largest, "classifier head": head.predict(vectors["test"])}
        classes |= {method: evaluation.mood_class(values, edges) for method, values in predictions.items()}
        results[name] = {
            method: evaluation.class_scores(truth["test"], predicted)
            | {"confusion": confusion_matrix(truth["test"], predicted, labels=range(len(edges) + 1)).tolist()}
            for method, predicted in classes.items()
        }
    return results


def carried_on(test: Side, predictions: pd.DataFrame) -> dict[str, dict]:
    """R2 that a power law through the learning curve gives for more training songs."""
    sizes = [*CURVE, len(load_sides("artist")["train"].table)]
    results = {}
    for method, seed in {"tfidf_ridge": "", "frozen_ridge": "", "lora": "-42", "blend": "-42"}.items():
        columns = [predictions[f"{method}-{size}{seed}"] for size in CURVE] + [predictions[f"{method}{seed}"]]
        table = evaluation.extrapolate(sizes, test.valence, columns, LARGER, test.table["artist"])
        results[method] = table.to_dict("index")
    return results


def main() -> None:
    sides, predictions = load_sides("artist"), pd.read_csv(RESULTS / "artist.csv")
    test, model = sides["test"], lu.load_model(CHECKPOINTS / "lora", sides["test"].encoder)
    shown = {"LoRA": predictions["lora-42"].to_numpy(), "LoRA + TF-IDF, form": predictions["blend-42"].to_numpy()}
    results = {
        "noise_ceiling": ceiling()._asdict(),
        "by_words": by_words(test, shown["LoRA"]),
        "by_chunk": by_chunk(test, model),
        "moods": moods(sides["train"], test, shown),
        "extrapolated": carried_on(test, predictions),
    }
    write_json(RESULTS / "analyses.json", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
