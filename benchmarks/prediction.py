"""Songs a second and peak memory of embedding and prediction: ours, sentence-transformers, a transformers pipeline.

Same MiniLM weights, same texts of real length, each cut to one chunk of 512 tokens so that the work is equal, all in
float32. A mean reads all tokens that the top layer gives; of [CLS], which the baseline reads, ours computes no other.
The share of the limit is that of `training_step`: work on real tokens, over what a large product reaches.
Needs `pip install sentence-transformers`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import lyric_utils as lu
from benchmarks.common import (
    Results,
    interleave,
    matrix_product,
    measure_memory,
    product_rate,
    song_tokens,
    synthetic_songs,
)
from benchmarks.embedders import BASELINE, CLS, MEAN, PIPELINE, PIPELINE_32, SENTENCE_TRANSFORMERS, WAYS, make_way
from benchmarks.ways import forward_flops

PRODUCT = "float32 product"
MOST_TOKENS = 500  # of a text: with room to spare, one chunk of 512


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--songs", type=int, default=150)
    arguments = parser.parse_args()
    encoder = lu.load_encoder()
    tokenizer = encoder.tokenizer
    texts = synthetic_songs(song_tokens(arguments.songs).clip(max=MOST_TOKENS), tokenizer)["lyrics"].tolist()
    lengths = lu.chunk_lyrics(texts, tokenizer).lengths
    assert len(lengths) == len(texts), "a text has more than one chunk"
    results = Results("prediction", songs=len(texts), tokens=int(lengths.sum()))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts))
        measure_memory(results, "benchmarks.embedders", WAYS, "--texts", str(path))
    ways = {name: make_way(name, texts) for name in WAYS}
    given = {name: way() for name, way in ways.items()}  # warms them up, too
    for name in (SENTENCE_TRANSFORMERS, PIPELINE):  # that in batches pads, and its mean reads the padding
        np.testing.assert_allclose(unit(given[name]), unit(given[MEAN]), atol=1e-4, err_msg=name)
    ways[PRODUCT] = matrix_product(torch.float32)
    ways[PRODUCT]()
    interleave(results, ways, arguments.rounds)
    limit = product_rate(results.median(PRODUCT))
    results["rows"] = [
        {
            "way": name,
            "songs_per_second": round(len(texts) / results.median(name), 2),
            "to_sentence_transformers": results.ratio(name, SENTENCE_TRANSFORMERS),
            "to_pipeline": results.ratio(name, PIPELINE),
            "to_pipeline_in_batches": results.ratio(name, PIPELINE_32),
            "share_of_float32_limit": round(work(name, lengths, encoder) / results.median(name) / limit, 3),
            "peak_mib": round(results["peak_mib"][name]),
        }
        for name in WAYS
    ]
    results.save()
    for row in results["rows"]:
        print(row)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors at length 1, which is what sentence-transformers gives."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def work(name: str, lengths: np.ndarray, encoder: lu.Encoder) -> int:
    """Floating-point operations that a way has to do at least, in all layers, on real tokens."""
    config, reads_cls = encoder.network.config, name in (CLS, BASELINE)
    tops = [*[False] * (len(encoder.layers) - 1), reads_cls]
    return sum(forward_flops(lengths, config.hidden_size, config.intermediate_size, top) for top in tops)


if __name__ == "__main__":
    main()
