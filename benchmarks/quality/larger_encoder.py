"""What a larger encoder would give: LYRICS_DATA=songs.csv python -m benchmarks.quality.larger_encoder [FOLDER]

all-mpnet-base-v2, eight times MiniLM's work, is read as MiniLM is: frozen, every distinct token once, by the same ridge
regressions, alone and blended with the text. Of its twelve layers the last eight are pooled, the share that four of six
are; beside it the last four, and all. Measured on the five folds and on the test songs; predictions go to
results/larger_encoder.csv (no lyrics). The model comes from the Hugging Face hub, or from a FOLDER with its files.
"""

import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from joblib import Memory
from transformers import AutoModel, AutoTokenizer

from benchmarks.quality.comparison import READERS
from benchmarks.quality.methods import METHODS, load_folds, load_problem, read_predictions, write_predictions
from lyric_utils._packed import Packing, best_precision
from lyric_utils._progress import progress
from lyric_utils.chunking import average_by_song, chunk_lyrics
from lyric_utils.encoders import distinct_token_weights, pool_tokens, quiet_transformers
from lyric_utils.sources import cache_folder

MODEL, REVISION = "sentence-transformers/all-mpnet-base-v2", "e8c3b32edf5434bc2275fc9bab85f82640a19130"
SONGS_AT_ONCE, DEPTHS = 50, (4, 8, 12)


@cache
def load_network(source: str):
    """Its tokenizer, and the network in evaluation mode."""
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, revision=REVISION)
        return tokenizer, AutoModel.from_pretrained(source, revision=REVISION, add_pooling_layer=False).eval()


@torch.inference_mode()
def embed(lyrics: list[str], source: str) -> np.ndarray:
    """The mean over the distinct tokens of a song after every layer: shape (n_songs, n_layers, hidden)."""
    tokenizer, network = load_network(source)
    chunks, vectors = chunk_lyrics(lyrics, tokenizer), []
    for ids in chunks.input_ids:
        with torch.autocast("cpu", torch.bfloat16, enabled=best_precision() == "bfloat16"):
            outputs = network(torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True).hidden_states[1:]
        weights = torch.from_numpy(distinct_token_weights(ids))
        pooled = [pool_tokens(output[0], Packing([len(ids)]), "distinct", weights) for output in outputs]
        vectors.append(torch.cat(pooled).numpy())
    by_song = average_by_song(np.stack(vectors).reshape(len(vectors), -1), chunks.song_index)
    return by_song.reshape(len(lyrics), len(outputs), -1)


def main() -> None:
    """Embed all songs, and predict each fold from the others, the test songs from the training songs."""
    problems, tables = {"folds": load_folds(), "artist": [load_problem("artist")]}, []
    songs, source = problems["artist"][0].songs, sys.argv[1] if len(sys.argv) > 1 else MODEL
    kept = Memory(cache_folder() / "larger_encoder", verbose=0).cache(embed)  # part by part
    starts = progress(range(0, len(songs), SONGS_AT_ONCE), desc=MODEL, unit=f"x{SONGS_AT_ONCE} songs")
    outputs = [kept(songs["lyrics"].iloc[start : start + SONGS_AT_ONCE].tolist(), source) for start in starts]
    outputs = np.concatenate(outputs)
    for split_by, parts in problems.items():
        held = np.sort(np.concatenate([problem.held for problem in parts]))
        saved = read_predictions(split_by, songs.iloc[held]).set_index(held)  # MiniLM's, and those of the text
        table = songs.loc[held, ["row", "artist", "valence"]].assign(split=split_by)
        for depth in DEPTHS:
            vectors = outputs[:, -depth:].mean(axis=1)
            features = SimpleNamespace(pooled=lambda *_, vectors=vectors: vectors)  # in place of MiniLM's
            for problem in parts:
                problem = replace(problem, features=lambda _, features=features: features)
                predictions = saved.loc[problem.held].to_dict("series")
                for name in READERS:
                    predictions[name] = METHODS[name].predict(problem, predictions.get)
                    table.loc[problem.held, f"{name}-{depth}"] = np.round(predictions[name], 5)
        tables.append(table)
    write_predictions("larger_encoder", pd.concat(tables))


if __name__ == "__main__":
    main()
