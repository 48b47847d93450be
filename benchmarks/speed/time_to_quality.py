"""Wall time on the billboard profile until the validation MSE that the paper recipe reaches in its 20 epochs.

Fast: the tuned recipe from nothing, run here: the pass of the frozen layers over training and validation songs, soft
targets, the head initialised by the Nyström ridge (scored once), and its epoch with validation. Plain: the seconds of a
plain step, measured here on real batches, times the steps up to the best of its 20 epochs (an extrapolation, which
leaves validation out). Its quality is that of `measure test lora_paper billboard 42`, trained our way: tests show that
the losses are the same. Option: --rounds (plain steps, each on other songs). The stored results are of an earlier split
of the subset profile.
"""

import copy
import time
from dataclasses import replace

import numpy as np

import lyric_utils as lu
from benchmarks import common
from benchmarks.quality.methods import RESULTS, problems
from benchmarks.speed.ways import PlainRegressor, plain_step
from lyric_utils.distillation import initialise_head
from lyric_utils.models import score_songs
from lyric_utils.profiles import LORA_PAPER, LORA_TUNED
from lyric_utils.training import make_examples

PLAIN = "plain step, paper recipe"
PARTS = {
    "Nyström ridge, where the tuned recipe starts": ("frozen pass", "head initialisation", "scoring the start"),
    "tuned recipe, its only epoch": ("frozen pass", "soft targets", "training and validation"),
}


def main() -> None:
    options = common.read_options("time_to_quality", rounds=5)
    history = common.read_json(RESULTS / "runs.json")["test/lora_paper@billboard-42"]["history"]
    course = [line["validation_mse"] for line in history]
    [problem] = problems("test", "billboard")
    data = replace(problem, held=problem.validation).data(LORA_TUNED.adapted_layers)
    results = common.Results("time_to_quality", songs=len(problem.train))
    measure_plain_steps(results, data, options.rounds)
    if "tuned" not in results:
        results["tuned"] = train_tuned(data)
    results.finish(summarise(results, course))


def train_tuned(data) -> dict[str, object]:
    """Seconds of every part of the tuned recipe with an empty cache, and the validation MSE at its start and end."""
    seconds = {}

    def timed(name: str, part):
        started = time.perf_counter()
        result = part()
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"{seconds[name]:9.1f} s  {name}", flush=True)
        return result

    model, untrained = (lu.build_model(data.encoder, LORA_TUNED) for _ in range(2))
    with common.empty_cache():
        sides = ("train", "validation")
        features = timed("frozen pass", lambda: {s: lu.extract_features(data.encoder, data.chunks[s]) for s in sides})
        features["test"] = features["validation"]
        train_set, held, _ = timed("soft targets", lambda: make_examples(model, data.split, features)).values()
        truth = data.split.train["valence"].to_numpy()
        timed("head initialisation", lambda: initialise_head(untrained, train_set.pooled, truth))
        scores = timed("scoring the start", lambda: score_songs(untrained, held.inputs))
        history = timed("training and validation", lambda: lu.fit(model, train_set, held))
    start, end = lu.score(held.valence, scores)["mse"], history[-1]["validation_mse"]
    return {"seconds": seconds, "start_mse": round(start, 5), "end_mse": round(end, 5)}


def measure_plain_steps(results: common.Results, data, rounds: int) -> None:
    """Plain steps of the paper recipe, each on 32 other songs."""
    chunks, valence = data.chunks["train"], data.split.train["valence"].to_numpy()
    model, rng = PlainRegressor(copy.deepcopy(data.encoder.network), LORA_PAPER).train(), np.random.default_rng(0)

    def take_step(count: int = LORA_PAPER.batch_songs) -> None:
        songs = rng.choice(len(valence), count, replace=False)
        items = np.flatnonzero(np.isin(chunks.song_index, songs))
        plain_step(model, [chunks.input_ids[item] for item in items], valence[chunks.song_index[items]])()

    take_step(4)  # the first call of a kernel is slow
    common.interleave(results, {PLAIN: take_step}, rounds)


def summarise(results: common.Results, course: list[float]) -> list[dict]:
    """Both ways side by side, until the least validation MSE of the paper recipe's epochs."""
    target, epochs, tuned = min(course), int(np.argmin(course)) + 1, results["tuned"]
    steps = int(np.ceil(results["settings"]["songs"] / LORA_PAPER.batch_songs)) * epochs
    plain = results.median(PLAIN) * steps
    way = f"paper recipe, {epochs} epochs of plain steps (extrapolated)"
    rows = [{"way": way, "validation_mse": round(target, 5), "seconds_from_nothing": round(plain), "ratio": 1.0}]
    for (way, parts), mse in zip(PARTS.items(), (tuned["start_mse"], tuned["end_mse"]), strict=True):
        seconds = sum(tuned["seconds"][part] for part in parts)
        ratio = round(plain / seconds, 1) if mse <= target else None  # None: not reached
        rows.append({"way": way, "validation_mse": mse, "seconds_from_nothing": round(seconds, 1), "ratio": ratio})
    return rows


if __name__ == "__main__":
    main()
