"""Measure every method on the test songs: LYRICS_DATA=songs.csv python -m benchmarks.quality.measure [NAME ...]

One run fits one method on the training songs of the subset profile and scores the test songs once. Its predictions
become a column of results/SPLIT.csv (one line per test song, no lyrics), its cost an entry of results/runs.json. What
is there already is not run again, and a training that was killed goes on from its last epoch. A name is a key of
runs.json, such as artist/lora-42. Only this program writes to trained_models/. Afterwards: benchmarks.quality.analyses.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import lyric_utils as lu
from benchmarks.common import machine, read_json, write_json
from benchmarks.quality import methods
from benchmarks.quality.methods import METHODS, Problem, load_problem
from lyric_utils.blend import fit_blend
from lyric_utils.pipeline import Trained, find_residuals, resume_file_of, save_trained
from lyric_utils.profiles import BLEND
from lyric_utils.sources import cache_folder

CHECKPOINTS = Path(__file__).resolve().parents[2] / "trained_models"
SHIPPED = ("baseline", "lora_paper", "lora", "blend")  # full fine-tuning is too large
SLOW = ("lora_paper", "full")
SEEDS = (42, 43, 44)
CURVE = (300, 600, 1_200, 2_400)
CURVE_METHODS = ("word_tfidf_ridge", "char_structure_ridge", "embedding_ridge", "embedding_ridge_4", "lora", "blend")


@dataclass(frozen=True)
class Run:
    """A method, and what it is fitted on: `songs` of the training songs (None: all), under a seed and a split."""

    method: str
    seed: int = 42
    songs: int | None = None
    split_by: str = "artist"

    @property
    def name(self) -> str:
        return f"{self.split_by}/{methods.column_of(self.method, self.seed, self.songs)}"

    @property
    def problem(self) -> Problem:
        problem = load_problem(self.split_by)
        drawn = np.random.default_rng(42).permutation(problem.train)[: self.songs]
        return replace(problem, train=np.sort(drawn))


RUNS = [
    *(Run(name, seed) for name, method in METHODS.items() for seed in (SEEDS if method.has_seeds else SEEDS[:1])),
    *(Run(name, split_by="song") for name in METHODS if name not in SLOW),
    *(Run(name, songs=songs) for songs in CURVE for name in CURVE_METHODS),
]


def measure(run: Run) -> None:
    """Fit, score, and write both down; the time to extract features is not the method's."""
    method, problem, cost = METHODS[run.method], run.problem, {}
    table = methods.read_predictions(run.split_by, problem.songs.iloc[problem.held])
    resume_file = resume_file_of(cache_folder() / run.name.replace("/", "-"))
    problem.features(method.recipe.adapted_layers if method.recipe else 4)
    started = time.perf_counter()
    if method.recipe:
        trained = method.train(problem, run.seed, resume_file)
        parameters = trained.model.trainable_parameters().values()
        cost = {"trained_weights": sum(values.numel() for values in parameters), "history": trained.history}
    else:
        trained = Trained(None, [], method.predict(problem, methods.saved_in(table, run.seed, run.songs)))
    seconds = max(time.perf_counter() - started, sum(epoch["seconds"] for epoch in trained.history))
    if run == Run(run.method) and run.method in SHIPPED:
        ship(run, trained)
    table[methods.column_of(run.method, run.seed, run.songs)] = trained.prediction.round(5)
    methods.write_predictions(run.split_by, table)
    line = {"songs": len(problem.train), "seconds": round(seconds, 1), **cost, "machine": machine()}
    file = methods.RESULTS / "runs.json"
    write_json(file, read_json(file) | {run.name: line})
    resume_file.unlink(missing_ok=True)
    print(f"{run.name}: {seconds:.1f} s", flush=True)


def ship(run: Run, trained: Trained) -> None:
    """Save a model among the shipped checkpoints; a blend is composed of the LoRA model there."""
    data, lora = run.problem.data(4), CHECKPOINTS / "lora"
    if run.method == "blend":
        blend = fit_blend(lu.load_model(lora, data.encoder), data.split.train, BLEND)
        blend.residuals = find_residuals(blend, data)
        trained = Trained(blend, lu.load_results(lora).history, trained.prediction)
    save_trained(trained, data, CHECKPOINTS / run.method)


def main() -> None:
    """Run what was asked for and has not run yet."""
    for run in RUNS:
        if run.name not in read_json(methods.RESULTS / "runs.json") and run.name in (sys.argv[1:] or [run.name]):
            measure(run)


if __name__ == "__main__":
    main()
