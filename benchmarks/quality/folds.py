"""Every method on five folds by artist: LYRICS_DATA=songs.csv python -m benchmarks.quality.folds [COLUMN ...]

The songs are the training and validation songs of the subset profile; the test songs play no part. Each song is
predicted by a model that has seen no song of its artist, which makes four times the songs and artists of the test set.
Recipes and the blend's weights are chosen here. The baseline picks its best epoch on the held fold itself, which
flatters it. Predictions go to results/folds.csv, fold by fold (no lyrics); what is there already is not run again.
"""

import sys

import numpy as np

from benchmarks.quality.ablations import TRAININGS
from benchmarks.quality.measure import SEEDS, SLOW
from benchmarks.quality.methods import METHODS, column_of, load_folds, read_predictions, saved_in, write_predictions
from lyric_utils.evaluation import score

EARLIER = "lora, earlier recipe"  # the one that most ablations change
COLUMNS = {
    **{column_of(name): (method, 42) for name, method in METHODS.items() if name not in SLOW},
    **{column_of("baseline", seed): (METHODS["baseline"], seed) for seed in SEEDS},
    EARLIER: (TRAININGS["no change"], 42),
    **{f"{EARLIER}, {name}": (TRAININGS[name], 42) for name in ("hard labels", "better teachers")},
}


def main() -> None:
    folds = load_folds()
    songs = folds[0].songs.iloc[np.sort(np.concatenate([problem.held for problem in folds]))]
    for column in sys.argv[1:] or COLUMNS:
        method, seed = COLUMNS[column]
        for fold, problem in enumerate(folds):
            table, held = read_predictions("folds", songs), problem.held
            if column in table and table.loc[held, column].notna().all():
                continue
            table.loc[held, "fold"] = fold
            prediction = method.predict(problem, saved_in(table.loc[held], seed), seed)
            table.loc[held, column] = prediction.round(5)
            write_predictions("folds", table)
            print(f"{column}, fold {fold}: MSE {score(table.loc[held, 'valence'], prediction)['mse']:.5f}", flush=True)


if __name__ == "__main__":
    main()
