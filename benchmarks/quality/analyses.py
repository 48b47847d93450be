"""What the results say beside their scores: python -m benchmarks.quality.analyses (after measure)

Writes results/analyses.json: the noise ceiling of the subset; and on the test artists of billboard, where the shipped
LoRA model fails, and the mean over chunks against the first, last and largest chunk.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd

import lyric_utils as lu
from benchmarks.common import write_json
from benchmarks.quality.ceiling import noise_ceiling
from benchmarks.quality.measure import CHECKPOINTS
from benchmarks.quality.methods import RESULTS, Problem, problems, read_predictions
from lyric_utils.models import score_songs

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


def main() -> None:
    [problem] = problems("test", "both")
    songs = problem.songs
    problem = problem.held_of_own_table
    prediction = read_predictions("test").loc[problem.held_index, "lora@both-42"].to_numpy()
    texts = songs[songs["table"] == "subset"]
    results = {
        "noise_ceiling": noise_ceiling(texts["valences"].tolist(), texts["artists"].tolist())._asdict(),
        "by_words": by_words(songs.iloc[problem.held], prediction),
        "by_chunk": by_chunk(problem, lu.load_model(CHECKPOINTS / "lora", problem.encoder)),
    }
    write_json(RESULTS / "analyses.json", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
