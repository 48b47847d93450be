"""How cost grows with the songs: preparation, frozen pass, one training epoch, prediction at 1, 4 and 16 times as many.

Songs of real length from lines of the sample, MiniLM, the tuned recipe. A straight line is fitted to the medians by
least squares on relative errors; its largest deviation is the largest of these errors. Options: --rounds, --songs.
"""

from dataclasses import replace

import numpy as np

import lyric_utils as lu
from benchmarks import common
from benchmarks.speed.ways import LORA_MEAN, random_states
from lyric_utils.training import Examples

FACTORS = (1, 4, 16)
PHASES = ("preparation", "frozen pass", "training epoch", "prediction")


def make_ways(songs: int, encoder) -> dict:
    """The four phases on so many songs, each ready to run by itself."""
    table = common.synthetic_songs(common.song_tokens(songs), encoder.tokenizer)
    chunks = lu.chunk_lyrics(table["lyrics"], encoder.tokenizer)
    model = lu.build_model(encoder, replace(LORA_MEAN, epochs=1))
    examples = Examples(random_states(chunks, encoder.hidden_size), table["valence"].to_numpy())
    one_song = Examples(model.inputs_from_chunks(lu.chunk_lyrics(["la la la"], encoder.tokenizer)), np.array([0.5]))

    def prepare() -> None:
        cleaned, _ = lu.clean_songs(table)
        lu.chunk_lyrics(cleaned["lyrics"], encoder.tokenizer)

    def pass_frozen() -> None:
        with common.empty_cache():
            lu.extract_features(encoder, chunks)

    train, predict = lambda: lu.fit(model, examples, one_song), lambda: model.predict(table["lyrics"])
    return dict(zip(PHASES, (prepare, pass_frozen, train, predict), strict=True))


def main() -> None:
    options = common.read_options("growth", rounds=3, songs=100)
    results = common.Results("growth", songs=options.songs)
    encoder, ways = lu.load_encoder(), {}
    for way in make_ways(8, encoder).values():
        way()  # the first call of a kernel is slow
    for factor in FACTORS:
        sized = make_ways(options.songs * factor, encoder)
        ways |= {f"{phase} x{factor}": way for phase, way in sized.items()}
    common.interleave(results, ways, options.rounds)
    results.finish([fit_line(results, phase) for phase in PHASES])


def fit_line(results: common.Results, phase: str) -> dict:
    songs = np.array(FACTORS) * results["settings"]["songs"]
    seconds = np.array([results.median(f"{phase} x{factor}") for factor in FACTORS])
    slope, start = np.polyfit(songs, seconds, 1, w=1 / seconds)
    deviation = np.abs((start + slope * songs) / seconds - 1).max()
    row = {"phase": phase} | {f"{count:,} songs, s": round(s, 3) for count, s in zip(songs, seconds, strict=True)}
    row |= {"milliseconds_per_song": round(1e3 * slope, 3), "seconds_at_no_songs": round(start, 3)}
    return row | {"largest_deviation": round(float(deviation), 4)}


if __name__ == "__main__":
    main()
