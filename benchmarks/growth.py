"""How cost grows with the songs: preparation, frozen pass, one training epoch, prediction at 1, 4 and 16 times as many.

Songs of real length from lines of the sample, MiniLM, the tuned recipe. A straight line is fitted to the medians by
least squares on relative errors; its largest deviation is the largest of these errors.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from unittest.mock import patch

import numpy as np

import lyric_utils as lu
from benchmarks.common import Results, interleave, song_tokens, synthetic_songs
from benchmarks.ways import LORA_MEAN, random_states

FACTORS = (1, 4, 16)
PHASES = ("preparation", "frozen pass", "training epoch", "prediction")


def make_ways(songs: int, encoder: lu.Encoder) -> dict:
    """The four phases on so many songs, each ready to run by itself."""
    table = synthetic_songs(song_tokens(songs), encoder.tokenizer)
    lyrics = table["lyrics"].tolist()
    chunks = lu.chunk_lyrics(lyrics, encoder.tokenizer)
    model = lu.build_model(encoder, replace(LORA_MEAN, epochs=1))
    examples = lu.Examples(random_states(chunks, encoder.hidden_size), table["valence"].to_numpy())
    one_song = lu.Examples(model.rows_of(lu.chunk_lyrics(["la la la"], encoder.tokenizer)), np.array([0.5]))

    def prepare() -> None:
        cleaned, _ = lu.clean_songs(table)
        lu.chunk_lyrics(cleaned["lyrics"].tolist(), encoder.tokenizer)

    def pass_frozen() -> None:
        with tempfile.TemporaryDirectory(prefix="lyrics_cache_") as folder, patch.dict(os.environ, LYRICS_CACHE=folder):
            lu.run_frozen(encoder, chunks)

    def train() -> None:
        lu.train(model, examples, one_song)

    def predict() -> None:
        model.predict(lyrics)

    return dict(zip(PHASES, (prepare, pass_frozen, train, predict), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--songs", type=int, default=100, help="at 1 times")
    arguments = parser.parse_args()
    results = Results("growth", songs=arguments.songs)
    encoder = lu.load_encoder()
    for way in make_ways(8, encoder).values():
        way()  # the first call of a kernel is slow
    ways = {}
    for factor in FACTORS:
        sized = make_ways(arguments.songs * factor, encoder)
        ways |= {f"{phase} x{factor}": way for phase, way in sized.items()}
    interleave(results, ways, arguments.rounds)
    results["rows"] = [fit_line(results, phase) for phase in PHASES]
    results.save()
    for row in results["rows"]:
        print(row)


def fit_line(results: Results, phase: str) -> dict:
    songs = np.array(FACTORS) * results["settings"]["songs"]
    seconds = np.array([results.median(f"{phase} x{factor}") for factor in FACTORS])
    slope, start = np.polyfit(songs, seconds, 1, w=1 / seconds)
    deviation = np.abs((start + slope * songs) / seconds - 1).max()
    return {
        "phase": phase,
        "seconds": dict(zip(songs.tolist(), seconds.round(3).tolist(), strict=True)),
        "milliseconds_a_song": round(1e3 * slope, 3),
        "seconds_at_no_songs": round(start, 3),
        "largest_deviation": round(float(deviation), 4),
    }


if __name__ == "__main__":
    main()
