"""Print every table of RESULTS.md from the stored results, and draw assets/speed.png: python -m benchmarks.tables"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import lyric_utils as lu
from benchmarks.common import SPEED, read_json
from benchmarks.quality.comparison import compare, load_comparison, time_table, transfer_table
from benchmarks.quality.measure import CHECKPOINTS
from benchmarks.quality.methods import METHODS, RESULTS
from lyric_utils import plots
from lyric_utils.evaluation import conformal_width, format_interval

FIGURE = Path(__file__).resolve().parent.parent / "assets" / "speed.png"


def main() -> None:
    for title, table in QUALITY.items():
        print(f"**{title}**\n\n{table()}\n")
    for name, title in TITLES.items():
        content = read_json(SPEED / f"{name}.json")
        if not content:
            print(f"<!-- no {name}.json yet: python -m benchmarks.speed.{name} -->\n")
            continue
        machine = content["machine"]
        cpu = f"{machine['processor']}, {machine['threads']} threads, PyTorch {machine['versions']['torch']}"
        print(f"**{title}** ({machine['gpu'] or cpu})\n\n{speed(content['rows'])}\n")
        if name == "training_step":
            draw_ratios(content["rows"])


def table_of(head: list[str], rows: list[list]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def scores(protocol: str, tested_on: str, trained_on: str, *more: str) -> str:
    """Every method on the same songs and its difference to LoRA; with the columns of `more`, what it took."""
    comparison, names = load_comparison(protocol, tested_on, trained_on), {m.label: name for name, m in METHODS.items()}
    costs, rows = read_json(RESULTS / "runs.json"), []
    table = compare(comparison, reference="LoRA").sort_values(("mse", "value"), ascending=False)
    for label, row in table.iterrows():
        cells = [label]
        for metric, digits in {"mse": 4, "r2": 2, "pearson": 2, "difference": 4}.items():
            cells.append(format_interval(*row[metric][["value", "low", "high"]], digits))
        if more:
            run = re.compile(rf"{protocol}/{names[label]}@{trained_on}(-\d+)?")
            took = [cost for name, cost in costs.items() if run.fullmatch(name)]
            took = pd.DataFrame(took, columns=["trained_parameters", "seconds"]).mean()
            low, high = row["mse", "smallest"], row["mse", "largest"]
            cells.append(f"{low:.4f}–{high:.4f}" if len(comparison.predictions[label]) > 1 else "")
            cells.extend(blank(value, 0) for value in took)
        rows.append(cells)
    return table_of(["method", "MSE", "R²", "Pearson", "LoRA minus it, MSE", *more], rows)


def transfer() -> str:
    """R2 and Pearson's r of the same methods, learned from one table, the other, or both."""
    found = transfer_table([METHODS[name].label for name in TRANSFERRED])
    rows = []
    for (label, trained_on), row in found.iterrows():
        cells = [f"{row['r2'][where]:.2f}, {row['pearson'][where]:.2f}" for where in found["r2"].columns]
        rows.append([label, trained_on, *(cell.replace("nan, nan", "") for cell in cells)])
    names = {"test": "test artists", "folds": "folds"}
    heads = [f"{table}, {names[protocol]}: R², r" for table, protocol in found["r2"].columns]
    return table_of(["method", "trained on", *heads], rows)


def time_split(trained_on: str) -> str:
    """Later songs: the order of the predictions (r), their level (the means) and their scale (the slope)."""
    found = time_table(trained_on)
    heads = ["method", "R²", "r", "mean prediction", "mean truth", "slope"]
    return table_of(heads, [[label, *(blank(value, 3) for value in row)] for label, *row in found.itertuples()])


def intervals() -> str:
    """How wide the conformal intervals of the shipped models are, and how many test songs lie in them."""
    rows = []
    for folder in sorted(CHECKPOINTS.iterdir()):
        config, _, table, metrics = lu.load_results(folder)
        truth, prediction = table["valence"], table["prediction"]
        slope = metrics["pearson"] * truth.std() / prediction.std()
        row = [folder.name, f"{config['profile']}, {len(table):,} songs", f"{slope:.2f}"]
        for level in (0.8, 0.9, 0.95) if config.get("residuals") else ():
            width = conformal_width(config["residuals"], level)
            row.append(f"{((truth - prediction).abs() <= width).mean():.3f} (±{width:.2f})")
        rows.append(row + [""] * (6 - len(row)))
    return table_of(["checkpoint", "profile, test", "slope", "80%", "90%", "95%"], rows)


def random_split() -> str:
    """Artists on both sides, as in the reported experiment, whose errors are of other songs."""
    tables, rows = [compare(load_comparison(protocol)) for protocol in ("test", "folds", "song")], []
    for label, mse in tables[-1]["mse", "value"].items():
        r2 = [blank(table["r2", "value"].get(label, np.nan), 2) for table in tables]
        rows.append([label, *r2, f"{mse:.4f}", REPORTED.get(label, "")])
    heads = ["R², test artists", "R², five folds", "R², random split", "MSE, random split", "MSE reported, other songs"]
    return table_of(["method", *heads], rows)


def ablations(key: str, *head: str) -> str:
    """One change each, best last; `key` is what the results of its kind have."""
    found = {name: line for name, line in read_json(RESULTS / "ablations.json").items() if key in line}
    errors = {name: line.get("mean") or line["mse_by_epoch"][-1] for name, line in found.items()}
    return table_of(head, [[name, f"{errors[name]:.4f}"] for name in sorted(errors, key=errors.get, reverse=True)])


def blank(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:,.{digits}f}"


COSTS = ("MSE over seeds", "trained parameters", "seconds")
TRANSFERRED = ("word_tfidf_ridge", "char_structure_ridge", "nystroem_ridge", "baseline", "lora", "blend")
REPORTED = {
    "baseline MLP": 0.0517,
    "LoRA, paper recipe": 0.0486,
}  # by the student project, of 30,000 songs of the Kaggle table
QUALITY = {
    "Billboard, test artists, trained on billboard": lambda: scores("test", "billboard", "billboard", *COSTS),
    "Billboard, test artists, trained on both": lambda: scores("test", "billboard", "both", *COSTS),
    "Subset, test artists, trained on subset": lambda: scores("test", "subset", "subset", *COSTS),
    "Billboard, five folds, trained on billboard": lambda: scores("folds", "billboard", "billboard"),
    "Billboard, five folds, trained on both": lambda: scores("folds", "billboard", "both"),
    "Subset, five folds, trained on subset": lambda: scores("folds", "subset", "subset"),
    "From table to table": transfer,
    "Billboard up to 1999, tested on later songs": lambda: time_split("billboard"),
    "Both, billboard up to 1999, tested on its later songs": lambda: time_split("both"),
    "Calibration and intervals": intervals,
    "Random split of billboard": random_split,
    "What is read": lambda: ablations("mse_of_folds", "what is read", "MSE, mean of five folds"),
    "How LoRA is trained": lambda: ablations("averaged", "earlier LoRA recipe, one change", "MSE of one fold"),
}


COLUMNS = {  # key of a row -> title and format of its column; keys not here are shown if they have no underscore
    "validation_mse": ("validation MSE", "{}"),
    "seconds_from_nothing": ("seconds, from nothing", "{:,.0f}"),
    "chunks_per_second": ("chunks/s", "{:,.2f}"),
    "songs_per_second": ("songs/s", "{:.1f}"),
    "ratio": ("times plain", "{:.3g}"),
    "share_of_limit": ("share of limit", "{:.0%}"),
    "share_of_float32_limit": ("share of float32 limit", "{:.0%}"),
    "share_of_bfloat16_limit": ("share of bf16 limit", "{:.0%}"),
    "peak_mib": ("peak MiB", "{:,}"),
    "gpu_peak_mib": ("peak GPU MiB", "{:,}"),
    "epoch_seconds_extrapolated": ("epoch of 24,000 songs, s (extrapolated)", "{:,}"),
    "frozen_pass_seconds_extrapolated": ("frozen pass, once, s (extrapolated)", "{:,}"),
    "milliseconds_per_song": ("ms per song", "{:.1f}"),
    "largest_deviation": ("largest deviation from a line", "{:.1%}"),
    "milliseconds": ("self time, ms", "{}"),
    "share": ("share", "{:.1%}"),
}
TITLES = {
    "training_step": "Training step, BERT of 12 x 768, last four layers adapted",
    "time_to_quality": "Time to quality",
    "same_quality": "Whether speed costs quality, subset profile: validation MSE after 800 songs",
    "prediction": "Embedding and prediction, MiniLM, one chunk per song",
    "growth": "Growth",
    "gpu": "Paper profile on a GPU, 24,000 songs",
    "profile_step": "Where the time of one of our steps goes",
}


def speed(rows: list[dict]) -> str:
    keys = [key for key in rows[0] if key in COLUMNS or "_" not in key]
    columns = {key: COLUMNS.get(key, (key, "{}")) for key in keys}
    cells = [[columns[key][1].format(row[key]) if row.get(key) is not None else "" for key in keys] for row in rows]
    return table_of([title for title, _ in columns.values()], cells)


def draw_ratios(rows: list[dict]) -> None:
    """Speed of every way of the training step, as bars from 1 on a logarithmic axis; a line spans the rounds."""
    plots.use_style()
    rows = [row for row in rows if not row["way"].endswith(": plain")][::-1]
    figure, ax = plt.subplots(figsize=(9, 4.2))
    for number, row in enumerate(rows):
        colour = plots.VERMILION if ": ours" in row["way"] else plots.BLUE
        ax.barh(number, row["ratio"] - 1, left=1, color=colour)
        ax.hlines(number, row["ratio_low"], row["ratio_high"], color=plots.BLACK, linewidth=1.5)
        ax.text(row["ratio_high"] * 1.03, number, f"{row['ratio']:.2g}×", va="center")
    ax.axvline(1, color=plots.GREY, linewidth=1.5)
    ax.set_yticks(range(len(rows)), [row["way"] for row in rows])
    ax.set_xscale("log")
    ax.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.set_xticks([], minor=True)
    ax.set_xlim(0.9, 1.25 * max(row["ratio_high"] for row in rows))
    ax.set_xlabel("training steps in the time of one plain step (median; line: all rounds)")
    ax.grid(axis="y", visible=False)
    figure.savefig(FIGURE, metadata={"Software": None})
    print(f"<!-- wrote assets/{FIGURE.name} -->\n")


if __name__ == "__main__":
    main()
