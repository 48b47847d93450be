"""Songs per second and peak memory of embedding and prediction: ours, sentence-transformers, a transformers pipeline.

Same MiniLM weights, same texts of real length, each cut to one chunk of 512 tokens so that the work is equal, all in
float32. A mean reads all tokens of the top layer; for [CLS], which the baseline reads, ours computes no other. The
share of the limit is that of `training_step`: work on real tokens, over what a large product reaches. Options:
--rounds, --songs. Needs `pip install sentence-transformers`.
"""

import json
import tempfile

import numpy as np
import torch
from sklearn.preprocessing import normalize

import lyric_utils as lu
from benchmarks import common
from benchmarks.speed.embedders import BASELINE, CLS, MEAN, PIPELINE, PIPELINE_32, SENTENCE_TRANSFORMERS, WAYS, make_way
from benchmarks.speed.ways import forward_flops

PRODUCT, MOST_TOKENS = "float32 product", 500  # of a text: with room to spare, one chunk of 512


def main() -> None:
    options = common.read_options("prediction", rounds=7, songs=150)
    encoder = lu.load_encoder()
    tokens = common.song_tokens(options.songs).clip(max=MOST_TOKENS)
    texts = common.synthetic_songs(tokens, encoder.tokenizer)["lyrics"].tolist()
    lengths = lu.chunk_lyrics(texts, encoder.tokenizer).lengths
    assert len(lengths) == len(texts), "a text has more than one chunk"
    results = common.Results("prediction", songs=len(texts), tokens=int(lengths.sum()))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        common.measure_memory(results, "benchmarks.speed.embedders", WAYS, file.name)
    ways = {name: make_way(name, texts) for name in WAYS}
    given = {name: way() for name, way in ways.items()}  # warms them up, too
    for name in (SENTENCE_TRANSFORMERS, PIPELINE):  # the one in batches pads, and its mean reads the padding
        np.testing.assert_allclose(normalize(given[name]), normalize(given[MEAN]), atol=1e-4, err_msg=name)
    ways[PRODUCT] = common.matrix_product(torch.float32)
    ways[PRODUCT]()
    common.interleave(results, ways, options.rounds)
    limit, rows = common.product_rate(results.median(PRODUCT)), []
    for name in WAYS:
        seconds = results.median(name)
        row = {"way": name, "songs_per_second": round(len(texts) / seconds, 2)}
        row["to_sentence_transformers"] = results.ratio(name, SENTENCE_TRANSFORMERS)
        row |= {
            "to_pipeline": results.ratio(name, PIPELINE),
            "to_pipeline_in_batches": results.ratio(name, PIPELINE_32),
        }
        row["share_of_float32_limit"] = round(work(name, lengths, encoder) / seconds / limit, 3)
        rows.append(row | {"peak_mib": round(results["peak_mib"][name])})
    results.finish(rows)


def work(name: str, lengths: np.ndarray, encoder) -> int:
    """Floating-point operations that a way needs at least, in all layers, on real tokens."""
    config, reads_cls = encoder.network.config, name in (CLS, BASELINE)
    tops = [*[False] * (len(encoder.layers) - 1), reads_cls]
    return sum(forward_flops(lengths, config.hidden_size, config.intermediate_size, top) for top in tops)


if __name__ == "__main__":
    main()
