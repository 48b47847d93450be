"""Chunks a second of one training step, 12 x 768 with four adapted layers: plain, each lever alone, ours.

Every way takes the same optimizer step, on the mean loss of the same 32 chunks, whose lengths are the middles of 32
equal shares of the real distribution. `paper` is the reported recipe (rank 4, [CLS]), `tuned` the shipped one.
"""

import argparse
from collections.abc import Callable
from functools import cache

import numpy as np
import psutil
import torch

import lyric_utils as lu
from benchmarks.common import (
    CHUNKS_PER_SONG,
    PAPER_SONGS,
    Results,
    chunk_lengths,
    interleave,
    matrix_product,
    measure_memory,
    product_rate,
    random_chunks,
)
from benchmarks.memory import peak_memory
from benchmarks.ways import (
    LORA_MEAN,
    Levers,
    PlainRegressor,
    adapted_flops,
    our_step,
    plain_step,
    random_bert,
    random_states,
)
from lyric_utils.frozen import encode_chunks
from lyric_utils.models import build_model
from lyric_utils.profiles import LORA_PAPER, Recipe
from lyric_utils.training import Examples

LEVERS = {
    "paper: plain": Levers(),
    "paper: batches of similar length only": Levers(similar_length=True),
    "paper: cached frozen layers only": Levers(cached=True),
    "paper: attention dropout off only": Levers(no_attention_dropout=True),
    "paper: bf16 only": Levers(bf16=True),
    "paper: top layer for [CLS] only": Levers(first_token_only=True),
    "tuned: plain": Levers(),
}
OURS = {"paper: ours in float32": False, "paper: ours": None, "tuned: ours": None}  # bf16: no, or where it pays
FROZEN, FLOAT32, BFLOAT16 = "frozen pass, once", "float32 product", "bfloat16 product"
MOST_MEMORY = 12  # GiB, about what 32 plain chunks need at once


def chunks_at_once() -> int:
    """Chunks that the plain way runs in one pass: 32, or fewer where the machine has too little memory."""
    memory = psutil.virtual_memory().total / 2**30
    return next(count for count in (32, 16, 8, 4) if count == 4 or memory > 1.5 * MOST_MEMORY * count / 32)


def make_way(name: str, chunks, at_once: int) -> Callable[[], object]:
    """The function that takes one step in that way, which all levers of a recipe take on one model."""
    recipe = LORA_PAPER if name.startswith("paper") else LORA_MEAN
    valence = np.random.default_rng(0).uniform(size=len(chunks.input_ids))
    if name == FROZEN:
        encoder = shared_bert()
        states = np.empty((int(chunks.lengths.sum()), encoder.hidden_size), dtype=np.float16)
        return lambda: encode_chunks(encoder, chunks, recipe.adapted_layers, states)
    if name in OURS:
        encoder = shared_bert()
        model = build_model(encoder, recipe).train()
        step = our_step(model, Examples(random_states(chunks, encoder.hidden_size), valence))
        return lambda: step(OURS[name])
    levers, states, model = LEVERS[name], None, shared_plain_model(recipe)
    if levers.cached:
        rows = random_states(chunks, model.head.layers[0].in_features)
        states = [rows.read([item]) for item in range(len(valence))]
    step = plain_step(model, chunks.input_ids, valence, states, at_once)
    return lambda: step(levers)


@cache
def shared_bert() -> lu.Encoder:
    return random_bert()


@cache
def shared_plain_model(recipe: Recipe) -> PlainRegressor:
    return PlainRegressor(random_bert().network, recipe).train()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=32, help="of one step")
    parser.add_argument("--at-once", type=int, help="chunks of one plain pass (default: 32, or what memory allows)")
    parser.add_argument("--memory-of", help="take one step in this way and print this process's peak memory, MiB")
    arguments = parser.parse_args()
    chunks = random_chunks(chunk_lengths(arguments.chunks))
    at_once = arguments.at_once or chunks_at_once()
    if arguments.memory_of:
        make_way(arguments.memory_of, chunks, at_once)()
        return print(peak_memory())

    results = Results("training_step", chunks=arguments.chunks, chunks_of_plain_pass=at_once)
    sizes = ["--chunks", str(arguments.chunks), "--at-once", str(at_once)]
    measure_memory(results, "benchmarks.training_step", [*LEVERS, *OURS], *sizes)
    ways = {name: make_way(name, chunks, at_once) for name in [*LEVERS, *OURS, FROZEN]}
    for name in ways:  # the first call of a kernel is slow; four chunks show it all kernels
        make_way(name, random_chunks(chunk_lengths(4)), at_once)()
    products = {FLOAT32: matrix_product(torch.float32), BFLOAT16: matrix_product(torch.bfloat16)}
    for product in products.values():
        product()
    ways |= products
    interleave(results, ways, arguments.rounds)
    results["rows"] = summarise(results, chunks.lengths)
    results.save()
    for row in results["rows"]:
        print(row)


def summarise(results: Results, lengths) -> list[dict]:
    """One row a way. An epoch's seconds are extrapolated: chunks of 24,000 songs over the measured chunks a second."""
    count, rows = len(lengths), []
    float32, bfloat16 = (product_rate(results.median(name)) for name in (FLOAT32, BFLOAT16))
    epoch_chunks = PAPER_SONGS * CHUNKS_PER_SONG
    for name in [*LEVERS, *OURS]:
        recipe = LORA_PAPER if name.startswith("paper") else LORA_MEAN
        rate = adapted_flops(lengths, 768, 3_072, recipe) / results.median(name)
        cached = name in OURS or LEVERS[name].cached
        once = epoch_chunks * results.median(FROZEN) / count if cached else 0.0
        rows.append(
            {
                "way": name,
                "chunks_per_second": round(count / results.median(name), 3),
                **results.ratio(name, f"{name.split(':')[0]}: plain"),
                "peak_mib": round(results["peak_mib"][name]),
                "share_of_float32_limit": round(rate / float32, 3),
                "share_of_bfloat16_limit": round(rate / bfloat16, 3),
                "epoch_seconds_extrapolated": round(epoch_chunks * results.median(name) / count),
                "frozen_pass_seconds_extrapolated": round(once),
                "float32_gflops": round(float32 / 1e9),
                "bfloat16_gflops": round(bfloat16 / 1e9),
            }
        )
    return rows


if __name__ == "__main__":
    main()
