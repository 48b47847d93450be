"""The paper profile's epoch on a GPU, plain and ours: 24,000 songs of real length, 12 x 768, four layers adapted.

Random tokens and weights: time does not depend on them. Our path is measured whole: the pass of the frozen layers into
an empty cache, then an epoch of `lu.fit`. The plain way is measured on steps of 32 chunks, in float32 (with PyTorch's
default precision of matrix products) and in bf16, and its epoch extrapolated. Options: --rounds, --songs.
"""

from dataclasses import replace

import numpy as np
import torch

import lyric_utils as lu
from benchmarks import common
from benchmarks.speed.ways import Changes, PlainRegressor, adapted_flops, plain_step, random_bert, random_states
from lyric_utils.profiles import LORA_PAPER
from lyric_utils.training import Examples

PLAIN = {"plain, float32": Changes(), "plain, bf16": Changes(bf16=True)}
PRODUCT, FROZEN, EPOCH = "bfloat16 product", "ours, frozen pass", "ours, epoch"
STEPS = 10  # plain steps per measurement


def main() -> None:
    options = common.read_options("gpu", rounds=3, songs=common.PAPER_SONGS)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU on this machine: nothing to measure. The other benchmarks run on the CPU.")
    results = common.Results("gpu", songs=options.songs)
    lengths = [common.windows(tokens) for tokens in common.song_tokens(options.songs)]
    song_index = np.repeat(np.arange(len(lengths)), [len(song) for song in lengths])
    chunks, encoder = common.random_chunks(np.concatenate(lengths), song_index), random_bert()
    model = PlainRegressor(random_bert().network, LORA_PAPER).train()
    step = plain_step(model, common.random_chunks(common.chunk_lengths(32)).input_ids, np.full(32, 0.5))
    ways = {name: lambda changes=changes: [step(changes) for _ in range(STEPS)] for name, changes in PLAIN.items()}
    ways |= our_ways(encoder, chunks) | {PRODUCT: common.matrix_product(torch.bfloat16, 8192)}
    for name in (*PLAIN, PRODUCT):
        ways[name]()  # the first call of a kernel is slow
    for way in our_ways(encoder, common.random_chunks(common.chunk_lengths(256))).values():
        way()
    common.interleave(results, ways, options.rounds)
    for name in [*PLAIN, EPOCH]:
        torch.cuda.reset_peak_memory_stats()
        ways[name]()
        results["peak_mib"][name] = torch.cuda.max_memory_allocated() / 2**20
    results.finish(summarise(results, chunks))


def our_ways(encoder, chunks) -> dict:
    songs = int(chunks.song_index[-1]) + 1
    model = lu.build_model(encoder, replace(LORA_PAPER, epochs=1))
    examples = Examples(random_states(chunks, encoder.hidden_size), np.random.default_rng(0).uniform(size=songs))
    one_song = Examples(model.inputs_from_chunks(common.random_chunks([9])), np.array([0.5]))

    def pass_frozen() -> None:
        with common.empty_cache():
            lu.extract_features(encoder, chunks)

    return {FROZEN: pass_frozen, EPOCH: lambda: lu.fit(model, examples, one_song)}


def summarise(results: common.Results, chunks) -> list[dict]:
    count, rows = len(chunks.input_ids), []
    limit = common.product_rate(results.median(PRODUCT), 8192)
    seconds = {name: results.median(name) * count / 32 / STEPS for name in PLAIN} | {EPOCH: results.median(EPOCH)}
    for name, epoch in seconds.items():
        row = {"way": name, "chunks_per_second": round(count / epoch, 1), "epoch_seconds": round(epoch, 1)}
        row |= {"extrapolated": name in PLAIN, "ratio": round(seconds["plain, float32"] / epoch, 2)}
        row["frozen_pass_seconds"] = round(results.median(FROZEN), 1) if name == EPOCH else 0.0
        row["gpu_peak_mib"] = round(results["peak_mib"][name])
        rate = adapted_flops(chunks.lengths, 768, 3_072, LORA_PAPER) / epoch
        rows.append(row | {"share_of_bfloat16_limit": round(rate / limit, 3), "bfloat16_tflops": round(limit / 1e12)})
    return rows


if __name__ == "__main__":
    main()
