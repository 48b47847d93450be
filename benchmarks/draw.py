"""Draw assets/speed.png and print the tables of the README from benchmarks/results/*.json, those that are there."""

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import lyric_utils as lu
from benchmarks.common import RESULTS
from lyric_utils import plots
from lyric_utils.comparison import MEASURED, METHODS, READINGS

FIGURE = Path(__file__).resolve().parent.parent / "assets" / "speed.png"


def main() -> None:
    """Print every table, and draw the ratios of the training step."""
    print(f"**Results**\n\n{quality()}\n")
    print(f"**Five folds**\n\n{folds()}\n")
    print(f"**Levers**\n\n{levers()}\n")
    print(f"**A larger encoder**\n\n{larger_encoder()}\n")
    paths = {name: RESULTS / f"{name}.json" for name in TABLES}
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}
    found = {name: content for name, content in found.items() if "rows" in content}
    for name, table in TABLES.items():
        if name in found:
            content = found[name]
            print(f"**{TITLES[name]}** ({describe(content['machine'])})\n\n{table(content)}\n")
        else:
            print(f"<!-- no benchmarks/results/{name}.json yet: python -m benchmarks.{name} -->\n")
    if "training_step" in found:
        draw_ratios(found["training_step"]["rows"])


def quality() -> str:
    """Every method on the test songs, what it took, and its difference to LoRA."""
    comparison, costs = lu.load_comparison(), json.loads((MEASURED / "runs.json").read_text())
    table, stems = lu.compare(comparison, reference="LoRA"), {label: stem for stem, label in METHODS.items()}
    rows = []
    for method, row in table.sort_values(("mse", "value"), ascending=False).iterrows():
        seeds = len(comparison.predictions[method])
        runs = [costs[name] for name in costs if re.fullmatch(rf"artist/{stems[method]}(-\d\d)?", name)]
        trained, seconds = runs[0].get("trained_weights"), sum(run["seconds"] for run in runs) / len(runs)
        spread = f"{row['mse', 'smallest']:.4f}–{row['mse', 'largest']:.4f}" if seeds > 1 else ""
        rows.append([method, *bracketed(row), spread, f"{trained:,}" if trained else "", f"{seconds:,.0f}"])
    head = ["method", "test MSE", "R²", "Pearson", "LoRA minus it, MSE", "MSE over seeds", "trained weights", "seconds"]
    return table_of(head, rows)


def folds() -> str:
    """Every method on five folds by artist of the songs that are not for testing."""
    table = lu.compare(lu.load_comparison("folds"), reference="LoRA").sort_values(("mse", "value"), ascending=False)
    rows = [[method, *bracketed(row)] for method, row in table.iterrows()]
    return table_of(["method", "MSE", "R²", "Pearson", "LoRA minus it, MSE"], rows)


def levers() -> str:
    """One change each: what is read, on all folds, and of LoRA's recipe, on one; best last."""
    results = json.loads((MEASURED / "levers.json").read_text())
    linear = {name: result["mean"] for name, result in results.items() if "mean" in result}
    lora = {name: result["mse_by_epoch"][-1] for name, result in results.items() if "averaged" in result}
    heads = ["what is read", "MSE, mean of five folds"], ["LoRA from ridge regression, one change", "MSE of one fold"]
    tables = [
        table_of(head, [[name, f"{mse:.4f}"] for name, mse in sorted(errors.items(), key=lambda item: -item[1])])
        for head, errors in zip(heads, (linear, lora), strict=True)
    ]
    return "\n\n".join(tables)


def larger_encoder() -> str:
    """The same readings of two frozen encoders, on the five folds and on the test songs."""
    rows = []
    for split, songs in {"folds": "five folds", "artist": "test artists"}.items():
        truth, artists, predictions = lu.load_encoder_comparison(split)
        blend = lu.load_comparison(split).predictions[METHODS["blend"]][0]
        for reading in READINGS.values():
            [ours], [theirs] = predictions[reading, "MiniLM"], predictions[reading, "all-mpnet-base-v2, 8 layers"]
            scores = lu.score(truth, theirs)
            mse = [f"{score['mse']:.4f}" for score in (lu.score(truth, ours), scores)]
            rows.append([f"{reading}, {songs}", *mse, f"{scores['r2']:.3f}"])
            for other in (ours, blend):
                value, low, high = lu.paired_difference(truth, theirs, other, artists)
                rows[-1].append(f"{value:.4f} [{low:.4f}, {high:.4f}]")
    encoders = ["MiniLM, MSE", "all-mpnet-base-v2, MSE", "R²", "minus MiniLM", "minus the shipped blend"]
    return table_of(["frozen, read by", *encoders], rows)


def bracketed(row) -> list[str]:
    """The metrics of a method, each with its interval behind it."""
    cells = []
    for metric, digits in {"mse": 4, "r2": 2, "pearson": 2, "difference": 4}.items():
        value, low, high = (f"{row[metric, part]:.{digits}f}" for part in ("value", "low", "high"))
        cells.append("" if value == "nan" else f"{value} [{low}, {high}]")
    return cells


def describe(machine: dict) -> str:
    if machine["gpu"]:
        return machine["gpu"]
    return f"{machine['processor']}, {machine['threads']} threads, PyTorch {machine['versions']['torch']}"


def table_of(head: list[str], rows: list[list]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def training_step(content: dict) -> str:
    rows = [
        [
            row["way"],
            f"{row['chunks_per_second']:.2f}",
            times(row["ratio"]),
            f"{row['share_of_float32_limit']:.0%}",
            f"{row['share_of_bfloat16_limit']:.0%}",
            f"{row['peak_mib'] / 1024:.1f}",
            f"{(row['epoch_seconds_extrapolated'] + row['frozen_pass_seconds_extrapolated']) / 3600:.1f}",
        ]
        for row in content["rows"]
    ]
    limits = ["share of float32 limit", "of bf16 limit"]
    first_epoch = "first epoch of 24,000 songs, frozen pass included, h (extrapolated)"
    return table_of(["way", "chunks/s", "times plain", *limits, "peak GiB", first_epoch], rows)


def time_to_quality(content: dict) -> str:
    [row] = content["rows"]
    target = row["target_validation_mse"]
    plain = f"paper recipe, {row['paper_epochs_needed']} epochs of plain steps (extrapolated)"
    rows = [[plain, target, f"{row['plain_seconds_extrapolated']:,}", 1]]
    ways = {"start": "kernel ridge regression, where the tuned recipe starts", "end": "tuned recipe, its only epoch"}
    for moment, way in ways.items():
        seconds, ratio = row[f"tuned_seconds_to_{moment}"], row[f"ratio_at_{moment}"]
        rows.append([way, row[f"tuned_mse_at_{moment}"], f"{seconds:,.0f}", times(ratio) if ratio else "not reached"])
    return table_of(["way", "validation MSE", "seconds, from nothing", f"times plain to {target}"], rows)


def same_quality(content: dict) -> str:
    rows = [
        [row["way"], *seeds, round(sum(seeds) / len(seeds), 5)]
        for row in content["rows"]
        if (seeds := [value for name, value in row.items() if name != "way"])
    ]
    seeds = [f"seed {name}" for name in content["rows"][0] if name != "way"]
    return table_of([f"validation MSE after {content['settings']['songs']} songs", *seeds, "mean"], rows)


def prediction(content: dict) -> str:
    others = {
        "to_sentence_transformers": "times sentence-transformers",
        "to_pipeline": "times pipeline",
        "to_pipeline_in_batches": "times pipeline in batches of 32",
    }
    rows = [
        [
            row["way"],
            f"{row['songs_per_second']:.1f}",
            *[f"{row[other]['ratio']:.2f}" for other in others],
            f"{row['share_of_float32_limit']:.0%}",
            f"{row['peak_mib']:,}",
        ]
        for row in content["rows"]
    ]
    return table_of(["way", "songs/s", *others.values(), "share of limit", "peak MiB"], rows)


def growth(content: dict) -> str:
    sizes = list(content["rows"][0]["seconds"])
    head = ["phase", *[f"{int(size):,} songs, s" for size in sizes], "ms a song", "largest deviation from a line"]
    rows = [
        [
            row["phase"],
            *[f"{row['seconds'][size]:.2f}" for size in sizes],
            f"{row['milliseconds_a_song']:.1f}",
            f"{row['largest_deviation']:.1%}",
        ]
        for row in content["rows"]
    ]
    return table_of(head, rows)


def gpu(content: dict) -> str:
    rows = [
        [
            row["way"] + (" (extrapolated)" if row["extrapolated"] else ""),
            f"{row['chunks_per_second']:,.0f}",
            f"{row['epoch_seconds']:.1f}",
            times(row["ratio"]),
            f"{row['frozen_pass_seconds']:.1f}" if row["frozen_pass_seconds"] else "",
            f"{row['gpu_peak_mib'] / 1024:.1f}",
        ]
        for row in content["rows"]
    ]
    return table_of(["way", "chunks/s", "epoch, s", "times plain", "frozen pass, once, s", "peak GPU GiB"], rows)


def profile_step(content: dict) -> str:
    rows = [
        [row["operation"].replace("aten::", ""), row["calls"], row["milliseconds"], f"{row['share']:.1%}"]
        for row in content["rows"]
    ]
    return table_of(["operation", "calls", "self time, ms", "share"], rows)


TABLES = {
    function.__name__: function
    for function in (training_step, time_to_quality, same_quality, prediction, growth, gpu, profile_step)
}
TITLES = {
    "training_step": "Training step, BERT of 12 x 768, last four layers adapted",
    "time_to_quality": "Time to quality, subset profile",
    "same_quality": "Whether speed costs quality, subset profile",
    "prediction": "Embedding and prediction, MiniLM, one chunk a song",
    "growth": "Growth",
    "gpu": "Paper profile's epoch on a GPU, 24,000 songs",
    "profile_step": "Where the time of one of our steps goes",
}


def draw_ratios(rows: list[dict]) -> None:
    """Times plain of every way of the training step, as bars from 1 on a logarithmic axis; a line spans the rounds."""
    plots.use_style()
    rows = [row for row in rows if not row["way"].endswith(": plain")][::-1]
    ratios = [row["ratio"] for row in rows]
    figure, ax = plt.subplots(figsize=(9, 4.2))
    colours = [plots.VERMILION if ": ours" in row["way"] else plots.BLUE for row in rows]
    low, high = ([row[end] for row in rows] for end in ("ratio_low", "ratio_high"))
    ax.barh([row["way"] for row in rows], [ratio - 1 for ratio in ratios], left=1, color=colours)
    ax.hlines(range(len(rows)), low, high, color=plots.BLACK, linewidth=1.5)
    for number, ratio in enumerate(ratios):
        ax.text(high[number] * 1.03, number, f"{times(ratio)}×", va="center")
    ax.axvline(1, color=plots.GREY, linewidth=1.5)
    ax.set_xscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if 0.7 * min(1, *low) <= tick <= 1.4 * max(high)]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(min(0.9, 0.9 * min(low)), 1.25 * max(high))
    ax.set_xlabel("training steps in the time of one plain step (median; line: all rounds)")
    ax.grid(axis="y", visible=False)
    figure.savefig(FIGURE, metadata={"Software": None})
    print(f"<!-- wrote assets/{FIGURE.name} -->")


if __name__ == "__main__":
    main()
