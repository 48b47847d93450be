"""The road from a table on disk to chunks, at the size of the full Kaggle table: `python -m benchmarks.full_table`.

Makes tables of 10,000, 40,000 and 158,353 synthetic songs in a temporary folder, reads, cleans, splits and chunks each
in a process of its own, prints seconds, CPU seconds of all threads, rows a second and peak resident memory of each
step, and writes them to benchmarks/results/full_table.json. Goals at full size on two cores: 5 minutes, 2 GiB. Sizes
may be given, in rows.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

import lyric_utils as lu
from benchmarks.common import RESULTS, write_json

SIZES = (10_000, 40_000, 158_353)
PER_LINE = 6  # words
# Words a song: every 2.5th percentile of the 6,424 songs of the public subset.
WORDS = [
    *(1, 39, 66, 79, 89, 97, 104, 110, 115, 120, 126, 131, 136, 142, 147, 152, 158, 163, 168, 174, 179, 185, 190, 196),
    *(202, 209, 216, 224, 231, 238, 246, 256, 267, 279, 292, 310, 331, 365, 422, 522, 1223),
]
FOREIGN = [
    "wir gehen heute abend durch die stadt und niemand weiß wohin der weg uns führen wird wenn der regen fällt",
    "je ne sais pas pourquoi tu es partie sans me dire un mot et la nuit est si longue sans ta voix mon amour",
    "no sé por qué te fuiste sin decirme nada y la noche es tan larga cuando no estás conmigo mi corazón",
]


def write_table(path: Path, rows: int, seed: int = 0) -> None:
    """Write a table in the Kaggle schema; 4 of 100 rows repeat an earlier one's words, 4 are foreign or unusable."""
    draw = np.random.default_rng(seed)
    text = lu.load_source(lu.load_profile("sample"))["lyrics"].str.cat(sep=" ").split()
    vocabulary, counts = zip(*Counter(text).items(), strict=True)
    vocabulary, share = np.array(vocabulary, dtype=object), np.array(counts) / len(text)
    lengths = np.interp(draw.random(rows), np.linspace(0, 1, len(WORDS)), WORDS).astype(int)
    earlier: list[str] = []
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "artist", "seq", "song", "label"])
        for row, (length, kind) in enumerate(zip(lengths, draw.random(rows), strict=True)):
            lyrics, label = _song(draw.choice(vocabulary, length, p=share)), round(draw.random(), 3)
            if kind < 0.04 and earlier:
                lyrics = earlier[draw.integers(len(earlier))].upper()
            elif kind < 0.06:
                lyrics = _song(draw.choice(FOREIGN[row % 3].split(), length + 20))
            elif kind < 0.08:
                lyrics, label = [("", label), ("... ! 12", label), (lyrics, ""), (lyrics, "nan"), (lyrics, 7)][row % 5]
            elif len(earlier) < 5_000:
                earlier.append(lyrics)
            writer.writerow([row, f"Artist {draw.integers(rows // 8)}", lyrics, f"Song {row}", label])


def _song(words: np.ndarray) -> str:
    return "\n".join(" ".join(words[start : start + PER_LINE]) for start in range(0, len(words), PER_LINE))


def measure(path: Path) -> list[dict]:
    """Walk the road once; one dict a step."""
    profile = lu.load_profile("paper")
    tokenizer = lu.load_encoder("minilm").tokenizer
    steps = [{"step": "start", "rows": 0, "seconds": 0.0, "cpu_seconds": 0.0, "peak_mib": _peak()}]

    def step(name, work):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted from here
        started, used = time.perf_counter(), time.process_time()
        result, rows = work()
        seconds, cpu = time.perf_counter() - started, time.process_time() - used
        steps.append({"step": name, "rows": rows, "seconds": seconds, "cpu_seconds": cpu, "peak_mib": _peak()})
        return result

    def chunk(split):
        windows = (tokenizer, profile.max_length, profile.stride)
        chunks = [lu.chunk_lyrics(side["lyrics"].tolist(), *windows) for side in split]
        return chunks, sum(map(len, split))

    def read():
        table = lu.read_songs(path)
        return table, len(table)

    table = step("read", read)
    songs, report = step("clean", lambda: (lu.clean_songs(table), len(table)))
    assert report.rows_in == report.rows_kept + len(report.dropped)
    print(report, file=sys.stderr)
    split = step("split", lambda: (lu.split_songs(songs, by="artist"), len(songs)))
    step("chunk", lambda: chunk(split))
    return steps


def _peak() -> int:
    """Peak resident memory of this process, MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def main() -> None:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, sys.argv[1:] or SIZES):
            path = Path(folder, f"{rows}.csv")
            write_table(path, rows)
            command = [sys.executable, "-m", "benchmarks.full_table", "--measure", path]
            steps = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            folds = {"seconds": sum, "cpu_seconds": sum, "peak_mib": max}
            total = {key: fold(step[key] for step in steps) for key, fold in folds.items()}
            steps.append({"step": "all", "rows": rows, **total})
            results.append({"rows": rows, "mib_on_disk": path.stat().st_size >> 20, "steps": steps})
            path.unlink()
    print("| rows | step | seconds | of the CPU | rows/s | peak MiB |\n|---|---|---|---|---|---|")
    for result in results:
        for step in result["steps"][1:]:
            rate, name = step["rows"] / step["seconds"], f"| {result['rows']:,} | {step['step']}"
            times = f"{step['seconds']:.1f} | {step['cpu_seconds']:.1f} | {rate:,.0f}"
            print(f"{name} | {times} | {step['peak_mib']:,} |")
    if not sys.argv[1:]:
        write_json(RESULTS / "full_table.json", results)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(json.dumps(measure(Path(sys.argv[-1]))))
    else:
        main()
