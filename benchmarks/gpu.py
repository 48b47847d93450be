"""The paper profile's epoch on a GPU, plain and ours: 24,000 songs of real length, 12 x 768, four layers adapted.

Random tokens and weights: time does not depend on them. Our path is measured whole: the pass of the frozen layers into
an empty cache, then an epoch of `lyric_utils.train`. The plain way is measured on steps of 32 chunks, in float32 (with
PyTorch's default precision of matrix products) and in bf16, and its epoch extrapolated.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

import lyric_utils as lu
from benchmarks.common import (
    PAPER_SONGS,
    Results,
    chunk_lengths,
    interleave,
    matrix_product,
    product_rate,
    random_chunks,
    song_tokens,
    windows,
)
from benchmarks.ways import Levers, PlainRegressor, adapted_flops, plain_step, random_bert, random_states
from lyric_utils.profiles import LORA_PAPER

PLAIN = {"plain, float32": Levers(), "plain, bf16": Levers(bf16=True)}
PRODUCT, FROZEN, EPOCH = "bfloat16 product", "ours, frozen pass", "ours, epoch"
STEPS = 10  # plain steps a measurement


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--songs", type=int, default=PAPER_SONGS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU on this machine: nothing to measure. The other benchmarks run on the CPU.")
    results = Results("gpu", songs=arguments.songs)
    lengths = [windows(tokens) for tokens in song_tokens(arguments.songs)]
    song_index = np.repeat(np.arange(len(lengths)), [len(song) for song in lengths])
    chunks = random_chunks(np.concatenate(lengths), song_index)
    encoder = random_bert()
    ways = plain_ways() | our_ways(encoder, chunks) | {PRODUCT: matrix_product(torch.bfloat16, 8192)}
    for name in (*PLAIN, PRODUCT):
        ways[name]()  # the first call of a kernel is slow
    warm_up = random_chunks(chunk_lengths(256))
    for way in our_ways(encoder, warm_up).values():
        way()
    interleave(results, ways, arguments.rounds)
    for name in [*PLAIN, EPOCH]:
        torch.cuda.reset_peak_memory_stats()
        ways[name]()
        results["peak_mib"][name] = torch.cuda.max_memory_allocated() / 2**20
    results["rows"] = summarise(results, chunks)
    results.save()
    for row in results["rows"]:
        print(row)


def plain_ways() -> dict:
    chunks = random_chunks(chunk_lengths(32))
    model = PlainRegressor(random_bert().network, LORA_PAPER).train()
    step = plain_step(model, chunks.input_ids, np.full(32, 0.5))
    return {name: lambda levers=levers: [step(levers) for _ in range(STEPS)] for name, levers in PLAIN.items()}


def our_ways(encoder: lu.Encoder, chunks: lu.Chunks) -> dict:
    songs = int(chunks.song_index[-1]) + 1
    model = lu.build_model(encoder, replace(LORA_PAPER, epochs=1))
    examples = lu.Examples(random_states(chunks, encoder.hidden_size), np.random.default_rng(0).uniform(size=songs))
    one_song = lu.Examples(model.rows_of(random_chunks([9])), np.array([0.5]))

    def pass_frozen() -> None:
        with tempfile.TemporaryDirectory(prefix="lyrics_cache_") as folder, patch.dict(os.environ, LYRICS_CACHE=folder):
            lu.run_frozen(encoder, chunks)

    return {FROZEN: pass_frozen, EPOCH: lambda: lu.train(model, examples, one_song)}


def summarise(results: Results, chunks: lu.Chunks) -> list[dict]:
    count, rows = len(chunks.input_ids), []
    limit = product_rate(results.median(PRODUCT), 8192)
    for name in [*PLAIN, EPOCH]:
        seconds = results.median(name) * (count / 32 / STEPS if name in PLAIN else 1)
        rate = adapted_flops(chunks.lengths, 768, 3_072, LORA_PAPER) / seconds
        rows.append(
            {
                "way": name,
                "chunks_per_second": round(count / seconds, 1),
                "epoch_seconds": round(seconds, 1),
                "extrapolated": name in PLAIN,
                "frozen_pass_seconds": round(results.median(FROZEN), 1) if name == EPOCH else 0.0,
                "gpu_peak_mib": round(results["peak_mib"][name]),
                "share_of_bfloat16_limit": round(rate / limit, 3),
                "bfloat16_tflops": round(limit / 1e12),
            }
        )
    plain = rows[0]["epoch_seconds"]
    return [row | {"ratio": round(plain / row["epoch_seconds"], 2)} for row in rows]


if __name__ == "__main__":
    main()
