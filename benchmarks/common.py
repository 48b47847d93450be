"""What the benchmarks share: songs of real length, interleaved timing, peak memory, the machine, results as JSON."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import lyric_utils as lu
from lyric_utils.chunking import Chunks
from lyric_utils.models import versions
from lyric_utils.songs import written_whole
from lyric_utils.training import has_fast_bfloat16

RESULTS = Path(__file__).parent / "results"
PRODUCTS = 10  # of a measured matrix product: one alone would be over before the cores are warm
PAPER_SONGS = 24_000  # training songs of the reported experiment

# Tokens of a song, [CLS] and [SEP] aside: 128 quantiles (the middles of 128 equal shares) of the 6,424 songs of the
# public subset, by MiniLM's tokenizer, which is that of bert-base-uncased. Cut into windows of 512 that share 128, they
# give 1.070 chunks a song and 247.3 tokens a chunk; the songs themselves give 1.072 and 247.5.
SONG_TOKENS = [
    *(3, 17, 36, 55, 67, 75, 80, 87, 91, 95, 100, 104, 107, 110, 114, 116, 118, 121, 124, 127, 129, 131, 133, 135, 138),
    *(140, 142, 144, 147, 149, 151, 153, 155, 156, 159, 161, 163, 164, 166, 168, 170, 173, 174, 176, 178, 181, 183),
    *(185, 188, 189, 191, 193, 196, 198, 200, 202, 204, 207, 209, 211, 213, 215, 217, 219, 221, 223, 226, 229, 231),
    *(233, 236, 238, 240, 243, 245, 248, 250, 253, 256, 258, 262, 265, 267, 270, 272, 275, 278, 281, 284, 288, 292),
    *(294, 298, 301, 305, 309, 313, 317, 322, 325, 329, 333, 338, 343, 348, 352, 357, 362, 370, 375, 383, 390, 400),
    *(409, 417, 429, 443, 458, 473, 497, 522, 548, 585, 632, 682, 744, 831, 1050),
]


def song_tokens(songs: int) -> np.ndarray:
    """Tokens of each of some songs, in the real distribution, in a fixed random order."""
    shares = (np.arange(songs) + 0.5) / songs * len(SONG_TOKENS) - 0.5
    tokens = np.interp(shares, np.arange(len(SONG_TOKENS)), SONG_TOKENS).round().astype(int)
    return np.random.default_rng(0).permutation(tokens)


def windows(tokens: int, max_length: int = 512, stride: int = 128) -> list[int]:
    """Lengths of the chunks that `lyric_utils.chunk_lyrics` cuts a song of so many tokens into."""
    lengths, room = [min(tokens, max_length - 2) + 2], max_length - 2
    while tokens > room:
        tokens -= room - stride
        lengths.append(min(tokens, room) + 2)
    return lengths


CHUNKS_PER_SONG = float(np.mean([len(windows(tokens)) for tokens in SONG_TOKENS]))


def chunk_lengths(chunks: int) -> np.ndarray:
    """Tokens of each of some chunks: middles of equal shares of the real distribution, in a fixed random order."""
    every = np.sort([length for tokens in SONG_TOKENS for length in windows(tokens)])
    lengths = np.quantile(every, (np.arange(chunks) + 0.5) / chunks).round().astype(int)
    return np.random.default_rng(0).permutation(lengths)


def random_chunks(lengths, song_index=None, vocabulary: int = 30_522) -> Chunks:
    """Chunks of random tokens, each a song of its own where no `song_index` is given."""
    rng = np.random.default_rng(0)
    input_ids = [rng.integers(1_000, vocabulary, length).astype(np.int32) for length in lengths]
    return Chunks(input_ids, np.arange(len(input_ids)) if song_index is None else np.asarray(song_index))


def synthetic_songs(tokens, tokenizer) -> pd.DataFrame:
    """A song table with lines of the 150 shipped songs, drawn at random, each song cut at its number of tokens."""
    lines = "\n".join(lu.load_source(lu.load_profile("sample"))["lyrics"]).split("\n")
    lines = [line.split() for line in lines if line.strip()]
    cost = {word: len(tokenizer.tokenize(word)) for word in {word for line in lines for word in line}}
    rng = np.random.default_rng(0)

    def song(left: int) -> str:
        text = []
        while left > 0:
            for word in lines[rng.integers(len(lines))]:
                left -= cost[word]
                if left >= 0:
                    text.append(word)
            text.append("\n")
        return " ".join(text).strip() or "la"

    names = [f"song {number}" for number in range(len(tokens))]
    table = {"row": range(len(tokens)), "artist": names, "title": names, "lyrics": [song(count) for count in tokens]}
    return pd.DataFrame(table | {"valence": rng.uniform(size=len(tokens))})


# ---------------------------------------------------------------- measuring


def interleave(results: "Results", ways: dict[str, Callable[[], object]], rounds: int) -> None:
    """Run every way once a round, in turns, and write the seconds after each: a killed benchmark goes on where it was.

    Forwards in even rounds and backwards in odd ones, so that no way always follows the same other one. Rounds of other
    ways are forgotten: a way added later would be set against times of another day.
    """
    if results.get("ways") != list(ways):
        results |= {"ways": list(ways), "seconds": {}}
    seconds = results["seconds"]
    for round_number in range(rounds):
        for name in list(ways)[:: -1 if round_number % 2 else 1]:
            taken = seconds.setdefault(name, [])
            if len(taken) > round_number:
                continue
            started = time.perf_counter()
            ways[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
            results.save()
            print(f"round {round_number + 1}/{rounds}  {taken[-1]:9.3f} s  {name}", flush=True)


def matrix_product(dtype: torch.dtype, size: int = 4096) -> Callable[[], object]:
    """A way that multiplies two large square matrices some times: the machine's limit, see `product_rate`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: [left @ right for _ in range(PRODUCTS)]


def product_rate(seconds: float, size: int = 4096) -> float:
    """Floating-point operations a second of a `matrix_product`."""
    return PRODUCTS * 2 * size**3 / seconds


def measure_memory(results: "Results", module: str, ways, *arguments: str) -> None:
    """Peak memory of each way in a process of its own: `python -m module --memory-of way ...`, which prints it last."""
    for way in ways:
        if way in results["peak_mib"]:
            continue
        command = [sys.executable, "-m", module, "--memory-of", way, *arguments]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results["peak_mib"][way] = float(output.split()[-1])
        results.save()
        print(f"peak memory  {results['peak_mib'][way]:9.0f} MiB  {way}", flush=True)


# ---------------------------------------------------------------- results


def write_json(path: Path, content: dict | list, indent: int | None = 1) -> None:
    """Write a file of results, in one rename."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent) + "\n")


def machine() -> dict[str, object]:
    """The processor and the versions that timings depend on."""
    model = ""
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else ""
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "bfloat16": has_fast_bfloat16(),
        "versions": versions(),
    }


class Results(dict):
    """The JSON file of a benchmark: `machine`, `settings`, `ways`, `seconds` (way -> one number a round), `peak_mib`.

    A file of the same machine and the same settings is taken up again; any other is begun anew.
    """

    def __init__(self, name: str, folder: Path = RESULTS, **settings):
        self.path = folder / f"{name}.json"
        start = {"machine": machine(), "settings": settings}
        found = json.loads(self.path.read_text()) if self.path.is_file() else {}
        same = all(found.get(key) == json.loads(json.dumps(value)) for key, value in start.items())
        super().__init__(found if same else start | {"seconds": {}, "peak_mib": {}})

    def save(self) -> None:
        write_json(self.path, self)

    def median(self, way: str) -> float:
        return float(np.median(self["seconds"][way]))

    def ratio(self, way: str, plain: str) -> dict[str, float]:
        """How many times as fast as `plain`: of the medians, and the smallest and largest of the single rounds."""
        pairs = np.array(self["seconds"][plain]) / np.array(self["seconds"][way])
        return {
            "ratio": round(self.median(plain) / self.median(way), 3),
            "ratio_low": round(float(pairs.min()), 3),
            "ratio_high": round(float(pairs.max()), 3),
        }
