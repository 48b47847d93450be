"""The paper profile on a GPU, plain and ours: 24,000 songs of real length, 12 x 768, four layers adapted.

Random weights, and lyrics of the sample's lines: time depends on neither. Ours is measured whole: the frozen pass into
an empty cache, an epoch of `lu.fit` once the cached layers lie in the GPU's memory, and `predict` from lyrics. The
plain way is measured on 320 chunks, padded to 512 tokens in training and to the longest of 32 in prediction, and
extrapolated. Options: --rounds, --songs.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import lyric_utils as lu
from benchmarks import common
from benchmarks.speed.ways import Changes, PlainRegressor, adapted_flops, forward_flops, plain_step, random_bert
from lyric_utils.profiles import LORA_PAPER
from lyric_utils.training import Examples

PLAIN = {"float32": Changes(), "bfloat16": Changes(bf16=True)}
FROZEN, EPOCH, PREDICTION, PRODUCT = "frozen pass", "epoch", "prediction", "bfloat16 product"
STEPS = 10  # passes over 32 chunks in one plain measurement


def main() -> None:
    options = common.read_options("gpu", rounds=3, songs=common.PAPER_SONGS)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU on this machine: nothing to measure. The other benchmarks run on the CPU.")
    results = common.Results("gpu", songs=options.songs)
    encoder = replace(random_bert(), tokenizer=lu.load_encoder().tokenizer)  # of the same vocabulary
    lyrics = common.synthetic_songs(common.song_tokens(options.songs), encoder.tokenizer)["lyrics"].tolist()
    chunks = lu.chunk_lyrics(lyrics, encoder.tokenizer)
    ways = our_ways(encoder, lyrics, chunks) | plain_ways() | {PRODUCT: common.matrix_product(torch.bfloat16, 8192)}
    for name, way in ways.items():
        torch.cuda.reset_peak_memory_stats()
        way()  # the first call of a kernel is slow, and the first epoch copies the cached layers to the GPU
        results["peak_mib"][name] = torch.cuda.max_memory_allocated() / 2**20
    common.interleave(results, ways, options.rounds)
    results.finish(summarise(results, chunks))


def our_ways(encoder, lyrics: list[str], chunks) -> dict:
    model = lu.build_model(encoder, replace(LORA_PAPER, epochs=1))
    with common.empty_cache():
        features = lu.extract_features(encoder, chunks)
    examples = Examples(features.hidden_states, np.random.default_rng(0).uniform(size=len(lyrics)))
    one_song = Examples(model.inputs_from_chunks(common.random_chunks([9])), np.array([0.5]))

    def pass_frozen() -> None:
        with common.empty_cache():
            lu.extract_features(encoder, chunks)

    train, predict = lambda: lu.fit(model, examples, one_song), lambda: model.predict(lyrics)
    return {FROZEN: pass_frozen, EPOCH: train, PREDICTION: predict}


def plain_ways() -> dict:
    chunks, ways = common.random_chunks(common.chunk_lengths(32)).input_ids, {}
    model = PlainRegressor(random_bert().network, LORA_PAPER)
    step = plain_step(model, chunks, np.full(32, 0.5))
    inputs = nn.utils.rnn.pad_sequence([torch.from_numpy(ids).long() for ids in chunks], batch_first=True).cuda()
    for precision, changes in PLAIN.items():

        def train(changes=changes) -> None:
            model.train()
            for _ in range(STEPS):
                step(changes)

        @torch.inference_mode()
        def predict(changes=changes) -> None:
            model.eval()
            for _ in range(STEPS):
                with torch.autocast("cuda", torch.bfloat16, enabled=changes.bf16):
                    model(inputs, (inputs > 0).long(), changes).cpu()

        ways |= {f"plain epoch, {precision}": train, f"plain prediction, {precision}": predict}
    return ways


def summarise(results: common.Results, chunks) -> list[dict]:
    """A row per way: seconds for all songs, and for ours the share of the rate of large products."""
    limit, rows = common.product_rate(results.median(PRODUCT), 8192), []
    adapted = adapted_flops(chunks.lengths, 768, 3_072, LORA_PAPER)
    forward = 12 * forward_flops(chunks.lengths, 768, 3_072)
    for name in [way for way in results["ways"] if way != PRODUCT]:
        seconds, is_plain = results.median(name), name.startswith("plain")
        seconds *= len(chunks.input_ids) / (32 * STEPS) if is_plain else 1
        row = {
            "way": name,
            "seconds": round(seconds, 2),
            "songs_per_second": round(results["settings"]["songs"] / seconds),
        }
        row |= {"extrapolated": is_plain, "gpu_peak_mib": round(results["peak_mib"][name])}
        if not is_plain:
            work = adapted if name == EPOCH else forward
            row |= {"share_of_bfloat16_limit": round(work / seconds / limit, 3), "limit_tflops": round(limit / 1e12)}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
