"""Songs per second and peak memory of embedding and prediction: ours, sentence-transformers and other engines.

Same MiniLM weights, same texts of real length, each cut to one chunk of 512 tokens so that the work is equal. A mean
reads all tokens of the top layer; for [CLS], which the baseline reads, ours computes no other. `distance` is the
largest one between a text's vector, of length 1, and that of sentence-transformers in float32. The share of the limit
is that of `training_step`: work on real tokens, over what a large product reaches. Options: --rounds, --songs.
Needs `pip install sentence-transformers openvino onnxruntime onnx onnxscript`.
"""

import json
import tempfile

import numpy as np
from sklearn.preprocessing import normalize

import lyric_utils as lu
from benchmarks import common
from benchmarks.speed.embedders import BASELINE, CLS, OURS, PLAIN, THEIRS, VECTORS, make_way
from benchmarks.speed.ways import forward_flops
from lyric_utils._packed import PRECISIONS, best_precision

PRODUCT, MOST_TOKENS = "product", 500  # of a text: with room to spare, one chunk of 512


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
        common.measure_memory(results, "benchmarks.speed.embedders", [*THEIRS, *OURS], file.name)
    ways = {name: make_way(name, texts) for name in (*THEIRS, *OURS)}
    given = {name: way() for name, way in ways.items()}  # warms them up, too
    vectors = {name: normalize(given[name].astype(float)) for name in VECTORS}
    ways[PRODUCT] = common.matrix_product(PRECISIONS[best_precision()])
    ways[PRODUCT]()
    common.interleave(results, ways, options.rounds)
    limit, rows = common.product_rate(results.median(PRODUCT)), []
    for name in (*THEIRS, *OURS):
        seconds = results.median(name)
        row = {"way": name, "songs_per_second": round(len(texts) / seconds, 2)} | results.ratio(name, PLAIN)
        row["share_of_limit"] = round(work(name, lengths, encoder) / seconds / limit, 3)
        distance = np.linalg.norm(vectors[name] - vectors[PLAIN], axis=1).max() if name in VECTORS else None
        row["distance"] = None if distance is None else round(float(distance), 4)
        rows.append(row | {"peak_mib": round(results["peak_mib"][name])})
    results.finish(rows)


def work(name: str, lengths: np.ndarray, encoder) -> int:
    """Floating-point operations that a way needs at least, in all layers, on real tokens."""
    config, reads_cls = encoder.network.config, name in (CLS, BASELINE)
    tops = [*[False] * (len(encoder.layers) - 1), reads_cls]
    return sum(forward_flops(lengths, config.hidden_size, config.intermediate_size, top) for top in tops)


if __name__ == "__main__":
    main()
