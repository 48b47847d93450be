"""Measure every method on both tables: python -m benchmarks.quality.measure [PROTOCOL [METHOD [TABLE [SEED]]]]

One run fits one method on the training songs of a profile (billboard, subset, or both) and predicts the held songs of
both tables; for the protocols see `methods.problems`. Its predictions become a column of results/PROTOCOL.csv (one line
per song, no lyrics), its cost an entry of results/runs.json. What is there already is not run again, several processes
share the work, and a training that was killed goes on from its last epoch. Only this program writes to trained_models/.
`LYRICS_DATA` names a folder with the files of both tables; without it they are downloaded.
"""

import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

import lyric_utils as lu
from benchmarks.common import machine, read_json, write_json
from benchmarks.quality.methods import (
    METHODS,
    RESULTS,
    TABLES,
    Problem,
    column_of,
    problems,
    read_predictions,
    write_predictions,
)
from lyric_utils.blend import fit_blend
from lyric_utils.pipeline import Trained, find_residuals, resume_file_of, save_trained
from lyric_utils.profiles import BLEND
from lyric_utils.sources import cache_folder

CHECKPOINTS = Path(__file__).resolve().parents[2] / "trained_models"
SHIPPED = {  # column of results/test.csv -> folder
    "baseline@billboard-42": "baseline",
    "lora@both-42": "lora",
    "blend@both-42": "blend",
    "lora@subset-42": "lora_banded",
}
SEEDS = (42, 43, 44)
CHEAP = [name for name, method in METHODS.items() if not method.has_seeds and method.encoder == "minilm"]


@dataclass(frozen=True)
class Run:
    """A method, what it is trained on, how it is tested, and its seed."""

    protocol: str
    method: str
    trained_on: str
    seed: int = 42

    @property
    def column(self) -> str:
        return column_of(self.method, self.trained_on, self.seed)

    @property
    def name(self) -> str:
        return f"{self.protocol}/{self.column}"


def runs() -> list[Run]:
    """All of them, in the order in which they are wanted: methods with seeds first with seed 42."""
    trained_on = [*TABLES, "both"]
    first = [Run("test", *run) for run in product(METHODS, trained_on)]
    first += [Run("folds", *run) for run in product([*CHEAP, "baseline", "lora", "blend"], trained_on)]
    first += [Run("time", *run) for run in product([*CHEAP, "lora", "blend"], ["billboard", "both"])]
    first += [Run("song", *run) for run in product([*CHEAP, "baseline", "lora", "lora_paper", "blend"], ["billboard"])]
    return first + [
        Run(run.protocol, run.method, run.trained_on, seed)
        for seed in SEEDS[1:]
        for run in first
        if METHODS[run.method].has_seeds and run.protocol in ("test", "folds")
    ]


def measure(run: Run) -> None:
    """Fit, score, and write both down; the time to extract features is not the method's."""
    method, cost, seconds = METHODS[run.method], {}, 0.0
    for number, problem in enumerate(problems(run.protocol, run.trained_on, method.encoder)):
        known = read_predictions(run.protocol).loc[problem.held_index]
        if run.column in known and known[run.column].notna().all():
            continue
        resume_file = resume_file_of(cache_folder() / f"{run.name}-{number}".replace("/", "-"))
        problem.features(method.recipe.adapted_layers if method.recipe else 4)
        started, trained = time.perf_counter(), None
        if method.recipe:
            trained = method.train(problem, run.seed, resume_file)
            parameters = trained.model.trainable_parameters().values()
            cost = {"trained_parameters": sum(values.numel() for values in parameters), "history": trained.history}
            predicted = problem.on_own_scale(trained.prediction)
        else:
            columns = {name: column_of(name, run.trained_on, run.seed) for name in METHODS}
            saved = known.rename(columns=dict(map(reversed, columns.items())))
            predicted = np.asarray(method.predict(problem, saved.get))
        seconds += time.perf_counter() - started
        if run.protocol == "test" and run.column in SHIPPED:
            ship(problem, run, trained, predicted)
        write_predictions(run.protocol, run.column, problem, predicted)
        resume_file.unlink(missing_ok=True)
    with FileLock(cache_folder() / "runs.lock"):
        line = {"seconds": round(seconds, 1), **cost, "machine": machine()}
        write_json(RESULTS / "runs.json", read_json(RESULTS / "runs.json") | {run.name: line})
    print(f"{run.name}: {seconds:.1f} s", flush=True)


def ship(problem: Problem, run: Run, trained: Trained | None, predicted: np.ndarray) -> None:
    """Save a model among the shipped checkpoints, with its predictions of the test songs of its own table."""
    own = problem.held_of_own_table
    data, predicted = own.data(4), predicted[np.isin(problem.held, own.held)]
    if METHODS[run.method].encoded:
        lora = CHECKPOINTS / "lora"
        blend = fit_blend(lu.load_model(lora, data.encoder), data.split.train, BLEND)
        blend.residuals = find_residuals(blend, data)
        trained = Trained(blend, lu.load_results(lora).history, predicted)
    save_trained(trained._replace(prediction=predicted), data, CHECKPOINTS / SHIPPED[run.column])


def main() -> None:
    """Run what was asked for, has not run yet, and no other process runs."""
    wanted = dict(zip(("protocol", "method", "trained_on", "seed"), sys.argv[1:], strict=False))
    for run in runs():
        if any(str(getattr(run, name)) != value for name, value in wanted.items()):
            continue
        lock = FileLock(cache_folder() / f"{run.name}.lock".replace("/", "-"), timeout=0)
        try:
            with lock:
                if run.name not in read_json(RESULTS / "runs.json"):
                    measure(run)
        except Timeout:
            continue


if __name__ == "__main__":
    main()
