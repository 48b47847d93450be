"""Wall time on the subset profile until the validation MSE that the paper recipe reaches in its 20 epochs.

Fast: the tuned recipe from nothing, run here: the pass of the frozen layers over training and validation songs, soft
targets, the start at kernel ridge regression (scored once), and its epoch with validation. Plain: the seconds of a
plain step, measured here on real batches, times the steps up to the best of its 20 epochs (an extrapolation, which
leaves validation out). Its quality is that of trained_models/lora_paper, trained our way: tests show that the losses
are the same.

Needs LYRICS_DATA, or the public table is downloaded.
"""

import argparse
import copy
import json
import os
import tempfile
import time
from unittest.mock import patch

import numpy as np

import lyric_utils as lu
from benchmarks.common import Results, interleave
from benchmarks.quality import CHECKPOINTS, load_sides
from benchmarks.ways import PlainRegressor, plain_step
from lyric_utils.profiles import LORA_PAPER, LORA_TUNED

PLAIN = "plain step, paper recipe"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="plain training steps, each on other songs")
    arguments = parser.parse_args()
    history = CHECKPOINTS / "lora_paper" / "history.json"
    if not history.is_file():
        raise SystemExit(f"{history}: not there. Run python -m benchmarks.quality artist/lora_paper-42 first.")
    course = [line["validation_mse"] for line in json.loads(history.read_text())]
    sides = load_sides("artist")
    results = Results("time_to_quality", songs=len(sides["train"].table))
    measure_plain_steps(results, sides["train"], arguments.rounds)
    if "tuned" not in results:
        results["tuned"] = train_tuned(sides)
        results.save()
    results["rows"] = [summarise(results, course)]
    results.save()
    print(json.dumps(results["rows"][0], indent=1))


def train_tuned(sides: dict) -> dict[str, float]:
    """Seconds of every part of the tuned recipe with an empty cache, and the validation MSE at its start and end."""
    seconds = {}

    def timed(name: str, part):
        started = time.perf_counter()
        result = part()
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"{seconds[name]:9.1f} s  {name}", flush=True)
        return result

    split = lu.Split(sides["train"].table, sides["validation"].table, sides["validation"].table)
    model = lu.build_model(sides["train"].encoder, LORA_TUNED)
    with tempfile.TemporaryDirectory(prefix="lyrics_cache_") as folder, patch.dict(os.environ, LYRICS_CACHE=folder):
        passes = timed("frozen pass", lambda: [sides[side].frozen(4) for side in ("train", "validation")])
        frozen = dict(zip(split._fields, [*passes, passes[1]], strict=True))
        examples = timed("soft targets", lambda: lu.make_examples(model, split, frozen))
        train, validation = examples["train"], examples["validation"]
        untrained = lu.build_model(sides["train"].encoder, LORA_TUNED)
        timed("kernel start", lambda: untrained.start_at_kernel(train.vectors, split.train["valence"].to_numpy()))
        scores = timed("scoring the start", lambda: lu.score_songs(untrained, validation.rows))
        history = timed("training and validation", lambda: lu.train(model, train, validation))
    mse = {"start_mse": lu.score(validation.valence, scores)["mse"], "end_mse": history[-1]["validation_mse"]}
    return {"seconds": seconds} | {name: round(value, 5) for name, value in mse.items()}


def measure_plain_steps(results: Results, side, rounds: int) -> None:
    """Plain steps of the paper recipe, each on 32 other songs."""
    chunks, valence, rng = side.chunks, side.valence, np.random.default_rng(0)
    model = PlainRegressor(copy.deepcopy(side.encoder.network), LORA_PAPER).train()

    def make_step(count: int):
        songs = rng.choice(len(valence), count, replace=False)
        items = np.flatnonzero(np.isin(chunks.song_index, songs))
        return plain_step(model, [chunks.input_ids[item] for item in items], valence[chunks.song_index[items]])

    make_step(4)()  # the first call of a kernel is slow
    for number in range(rounds):
        interleave(results, {PLAIN: make_step(LORA_PAPER.batch_songs)}, number + 1)


def summarise(results: Results, course: list[float]) -> dict:
    """Both ways side by side, until the least validation MSE of the paper recipe's epochs."""
    target, epochs = min(course), int(np.argmin(course)) + 1
    steps = int(np.ceil(results["settings"]["songs"] / LORA_PAPER.batch_songs))
    plain, seconds = results.median(PLAIN) * steps * epochs, results["tuned"]["seconds"]
    start = sum(seconds[name] for name in ("frozen pass", "kernel start", "scoring the start"))
    end = sum(seconds[name] for name in ("frozen pass", "soft targets", "training and validation"))
    return {
        "target_validation_mse": round(target, 5),
        "paper_epochs_needed": epochs,
        "plain_seconds_a_step": round(results.median(PLAIN), 3),
        "plain_seconds_extrapolated": round(plain),
        "tuned_mse_at_start": results["tuned"]["start_mse"],
        "tuned_seconds_to_start": round(start, 1),
        "ratio_at_start": round(plain / start, 1) if results["tuned"]["start_mse"] <= target else None,
        "tuned_mse_at_end": results["tuned"]["end_mse"],
        "tuned_seconds_to_end": round(end, 1),
        "ratio_at_end": round(plain / end, 1) if results["tuned"]["end_mse"] <= target else None,
    }


if __name__ == "__main__":
    main()
