"""Wall time on the subset profile until the validation MSE that the paper recipe reaches in its 20 epochs.

Fast: the seconds that trained_models/lora/history.json tells (validation included) up to the first epoch at least as
good, and the pass of the frozen layers over training and validation songs, measured here. Plain: the seconds of a plain
step, measured here on real batches, times the steps up to the best of its 20 epochs (an extrapolation, which leaves
validation out). Its quality is that of trained_models/lora_paper, trained our way: tests show that the losses are the
same.

Needs LYRICS_DATA, or the public table is downloaded.
"""

import argparse
import copy
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

import lyric_utils as lu
from benchmarks.common import Results, interleave
from benchmarks.ways import Levers, PlainRegressor, our_step, plain_step
from lyric_utils.profiles import LORA_PAPER, LORA_TUNED

MODELS = Path(__file__).resolve().parent.parent / "trained_models"
PLAIN, OURS = "plain step, paper recipe", "our step, tuned recipe"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_quality", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="training steps of each way, each on other songs")
    arguments = parser.parse_args()
    histories = {name: MODELS / name / "history.json" for name in ("lora", "lora_paper")}
    if missing := [path for path in histories.values() if not path.is_file()]:
        names = " and ".join(str(path) for path in missing)
        raise SystemExit(
            f"{names}: not there. Train the tuned and the paper recipe on the subset profile first (see "
            "benchmarks/README.md); their histories tell which quality was reached when."
        )
    histories = {name: json.loads(path.read_text()) for name, path in histories.items()}

    profile = lu.load_profile("subset")
    songs, _ = lu.clean_songs(lu.load_source(profile))
    split = lu.split_songs(songs, profile.seed, profile.fractions, profile.split_by)
    encoder = lu.load_encoder(profile.encoder)
    chunks = {
        side: lu.chunk_lyrics(getattr(split, side)["lyrics"].tolist(), encoder.tokenizer)
        for side in ("train", "validation")
    }
    results = Results("time_to_quality", songs=len(split.train))
    if "frozen_pass_seconds" not in results:
        results["frozen_pass_seconds"] = frozen_pass_seconds(encoder, chunks)
        results.save()
    measure_steps(results, encoder, chunks["train"], split.train["valence"].to_numpy(), arguments.rounds)
    results["rows"] = [summarise(results, histories, len(split.train))]
    results.save()
    print(json.dumps(results["rows"][0], indent=1))


def frozen_pass_seconds(encoder: lu.Encoder, chunks: dict[str, lu.Chunks]) -> float:
    """Seconds of `run_frozen` over training and validation songs into an empty cache, writing included."""
    with tempfile.TemporaryDirectory(prefix="lyrics_cache_") as folder:
        before = os.environ.get("LYRICS_CACHE")
        os.environ["LYRICS_CACHE"] = folder
        try:
            started = time.perf_counter()
            for side in chunks.values():
                lu.run_frozen(encoder, side)
            return time.perf_counter() - started
        finally:
            os.environ.pop("LYRICS_CACHE") if before is None else os.environ.update(LYRICS_CACHE=before)


def measure_steps(results: Results, encoder: lu.Encoder, chunks: lu.Chunks, valence: np.ndarray, rounds: int) -> None:
    """A plain and one of our steps in turns, each round on 32 other songs."""
    rng = np.random.default_rng(0)
    draws = [np.sort(rng.choice(len(valence), LORA_PAPER.batch_songs, replace=False)) for _ in range(rounds + 1)]
    plain = PlainRegressor(copy.deepcopy(encoder.network), LORA_PAPER).train()
    ours = lu.build_model(encoder, LORA_TUNED).train()

    def of_songs(songs: np.ndarray) -> tuple[lu.Chunks, np.ndarray]:
        items = np.flatnonzero(np.isin(chunks.song_index, songs))
        song_index = np.searchsorted(songs, chunks.song_index[items])
        return lu.Chunks([chunks.input_ids[item] for item in items], song_index), valence[songs]

    def make_steps(songs: np.ndarray) -> dict:
        batch, targets = of_songs(songs)
        live = ours.rows_of(batch)
        every = np.arange(len(batch.input_ids))
        rows = live.read(every).half().numpy()
        stored = lu.frozen.StoredRows(rows, batch.lengths, batch.song_index, live.read_weights(every).numpy())
        fast = our_step(ours, lu.Examples(stored, targets))
        slow = plain_step(plain, batch.input_ids, targets[batch.song_index])
        return {PLAIN: lambda: slow(Levers()), OURS: fast}

    for step in make_steps(draws[-1][:4]).values():
        step()  # the first call of a kernel is slow
    for number, songs in enumerate(draws[:-1]):
        interleave(results, make_steps(songs), number + 1)


def summarise(results: Results, histories: dict[str, list[dict]], songs: int) -> dict:
    steps = int(np.ceil(songs / LORA_PAPER.batch_songs))
    paper, tuned = (histories[name] for name in ("lora_paper", "lora"))
    course = [line["validation_mse"] for line in paper[: LORA_PAPER.epochs]]
    target, epochs = min(course), int(np.argmin(course)) + 1
    if len(course) < LORA_PAPER.epochs:
        print(f"note: the history of the paper recipe has {len(course)} epochs, not {LORA_PAPER.epochs}")
    reached = next((number for number, line in enumerate(tuned, 1) if line["validation_mse"] <= target), None)
    plain = results.median(PLAIN) * steps * epochs
    row = {
        "target_validation_mse": round(target, 5),
        "paper_epochs_in_history": len(course),
        "paper_epochs_needed": epochs,
        "plain_seconds_extrapolated": round(plain),
        "plain_seconds_a_step": round(results.median(PLAIN), 3),
        "steps_an_epoch": steps,
        "tuned_epochs_needed": reached,
        "frozen_pass_seconds": round(results["frozen_pass_seconds"], 1),
    }
    if reached is None:
        best = min(line["validation_mse"] for line in tuned)
        print(f"the tuned recipe never gets there: {best:.5f} at best, {target:.5f} wanted")
        return row
    trained = sum(line["seconds"] for line in tuned[:reached])
    fast = trained + results["frozen_pass_seconds"]
    from_steps = results.median(OURS) * steps * reached + results["frozen_pass_seconds"]
    return row | {
        "training_seconds_of_history": round(trained, 1),
        "fast_seconds": round(fast, 1),
        "fast_seconds_from_measured_steps": round(from_steps, 1),  # without validation; on this machine, now
        "ratio": round(plain / fast, 1),
        "ratio_from_measured_steps": round(plain / from_steps, 1),
    }


if __name__ == "__main__":
    main()
