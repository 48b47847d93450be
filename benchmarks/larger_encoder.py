"""What a larger encoder would give: LYRICS_DATA=songs.csv python -m benchmarks.larger_encoder [FOLDER]

all-mpnet-base-v2, eight times MiniLM's work and trained by the same people for the same end, is read as MiniLM is:
frozen, every distinct token once, by the same ridge regressions, alone and beside the words. Of its twelve layers the
last eight are pooled, the share that four of six are; beside it the last four, and all. Measured on the five folds of
`benchmarks.levers` and on the test songs; predictions go to results/quality/larger_encoder.csv (no lyrics). The model
comes from the model hub, or from a FOLDER with its files. Killed, this goes on where it was.
"""

import sys
from functools import cache

import numpy as np
import pandas as pd
import torch
from joblib import Memory
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

import lyric_utils as lu
from benchmarks.levers import load_folds
from benchmarks.quality import RESULTS, load_sides
from lyric_utils.comparison import METHODS
from lyric_utils.encoders import pool, quiet_transformers, weigh_distinct
from lyric_utils.profiles import BLEND
from lyric_utils.songs import written_whole
from lyric_utils.sources import cache_folder
from lyric_utils.training import has_fast_bfloat16

MODEL, REVISION = "sentence-transformers/all-mpnet-base-v2", "e8c3b32edf5434bc2275fc9bab85f82640a19130"
FILE = RESULTS / "larger_encoder.csv"
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
    chunks, vectors = lu.chunk_lyrics(lyrics, tokenizer), []
    for ids in chunks.input_ids:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
            outputs = network(torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True).hidden_states[1:]
        weights = torch.from_numpy(weigh_distinct(ids))
        pooled = [pool(output[0].float(), [len(ids)], "distinct", weights) for output in outputs]
        vectors.append(torch.cat(pooled).numpy())
    by_song = lu.chunking.average_by_song(np.stack(vectors).reshape(len(vectors), -1), chunks.song_index)
    return by_song.reshape(len(lyrics), len(outputs), -1)


def embed_all(songs: pd.Series, source: str) -> np.ndarray:
    """The same for all songs, kept in the cache part by part."""
    kept = Memory(cache_folder() / "larger_encoder", verbose=0).cache(embed)
    starts = tqdm(range(0, len(songs), SONGS_AT_ONCE), desc=MODEL, unit=f"{SONGS_AT_ONCE} songs")
    return np.concatenate([kept(songs.iloc[start : start + SONGS_AT_ONCE].tolist(), source) for start in starts])


def predict(vectors: np.ndarray, valence: np.ndarray, train: np.ndarray, held: np.ndarray, words: np.ndarray) -> dict:
    """Three readings of the vectors of some songs: by a line, by a curve, and by the curve beside `words`."""
    line, curve = (
        model.fit(vectors[train], valence[train]).predict(vectors[held]).clip(0, 1)
        for model in (lu.frozen_ridge(), lu.kernel_ridge(*vectors[train].shape))
    )
    blend = lu.models.mix(curve, words, valence[train].mean(), BLEND)
    return {"layers_ridge": line, "kernel_ridge": curve, "kernel_blend": blend}


def main() -> None:
    """Embed all songs, and predict each fold from the others, the test songs from the training songs."""
    sides, (known, _, folds) = load_sides("artist"), load_folds()
    songs = pd.concat([known, sides["test"].table], ignore_index=True)
    outputs = embed_all(songs["lyrics"], sys.argv[1] if len(sys.argv) > 1 else MODEL)
    words = [lu.load_comparison(split).predictions[METHODS["text_ridge"]][0] for split in ("folds", "artist")]
    table = songs[["row", "artist", "valence"]].assign(split=["folds"] * len(known) + ["artist"] * len(words[1]))
    splits = [(train, held, words[0][held]) for train, held in folds]
    splits.append((np.arange(len(sides["train"].table)), np.arange(len(known), len(songs)), words[1]))
    for depth in DEPTHS:
        vectors = outputs[:, -depth:].mean(axis=1)
        for train, held, letters in splits:
            for name, prediction in predict(vectors, songs["valence"].to_numpy(), train, held, letters).items():
                table.loc[held, f"{name}-{depth}"] = prediction.round(5)
    with written_whole(FILE) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
