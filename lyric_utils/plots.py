"""Every figure of the project. Each function takes data, draws on `ax` (a new figure without it) and returns the Axes.

Nothing is computed here that a reader would quote: numbers come from `lyric_utils.evaluation`.
Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart.
"""

from itertools import cycle, pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
# Of Tol (2021), for more methods than Okabe and Ito have colours.
OLIVE, WINE, INDIGO, TEAL = "#999933", "#882255", "#332288", "#44AA99"
DARK_OLIVE, DARK_BLUE, DARK_TEAL = "#666633", "#222255", "#225555"
GREY, LIGHT_GREY = "#767676", "#E4E4E4"

METHOD_COLOURS = {"constant mean": GREY, "TF-IDF + ridge": GREEN, "frozen + ridge": PURPLE}
METHOD_COLOURS |= {"frozen, four layers + ridge": INDIGO, "TF-IDF of letters + ridge": OLIVE, "full fine-tuning": WINE}
METHOD_COLOURS |= {"TF-IDF of letters, form + ridge": DARK_OLIVE, "frozen, four layers + TF-IDF, form": TEAL}
METHOD_COLOURS |= {"frozen, four layers + kernel ridge": DARK_BLUE}
METHOD_COLOURS |= {"frozen, four layers, kernel + TF-IDF, form": DARK_TEAL}
METHOD_COLOURS |= {"LoRA + TF-IDF, form": ORANGE, "LoRA, paper recipe": SKY, "baseline": BLUE, "LoRA": VERMILION}
TEXT_PLATE = {"facecolor": "white", "edgecolor": "none", "pad": 1}
OTHER_COLOURS = (BLACK, OLIVE, WINE)
ERRORS = {"mse": "MSE", "rmse": "RMSE", "mae": "MAE"}
AGREEMENTS = {"r2": "R²", "pearson": "Pearson r", "spearman": "Spearman ρ"}


def use_style() -> None:
    """Set the project's look for all later figures (Matplotlib rcParams). Call it once, on top of a notebook."""
    plt.rcParams.update(
        {
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 13,
            "axes.titlelocation": "left",
            "axes.labelsize": 12,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "font.size": 11,
            "grid.color": LIGHT_GREY,
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "lyric_utils",
        }
    )


def valence_histogram(valences, ax=None) -> Axes:
    """Songs by valence, in bins of 0.05. valences: numbers in [0, 1]."""
    ax = _axes(ax)
    ax.hist(valences, bins=np.linspace(0, 1, 21), color=BLUE, edgecolor="white")
    return _label(ax, "valence (0 = sad, 1 = happy)", "songs", xlim=(0, 1))


def length_histogram(words, ax=None) -> Axes:
    """Songs by number of words, median marked; the axis is logarithmic when the longest song dwarfs the median."""
    ax, words, median, bins = _axes(ax), np.maximum(words, 1), np.median(words), 40
    if words.max() > 5 * median:
        bins = np.geomspace(words.min(), words.max(), 41)
        ax.set_xscale("log")
        _plain_log_ticks(ax.xaxis)
    ax.hist(words, bins=bins, color=BLUE, edgecolor="white")
    ax.axvline(median, color=VERMILION, linewidth=2, label=f"median: {median:.0f} words")
    ax.legend()
    return _label(ax, "words in a song", "songs")


def artist_histogram(songs_per_artist, ax=None) -> Axes:
    """How many artists have 1, 2, 3, ... songs; both axes logarithmic. songs_per_artist: one count an artist."""
    ax = _axes(ax)
    songs, artists = np.unique(songs_per_artist, return_counts=True)
    ax.plot(songs, artists, "o", color=BLUE, alpha=0.8)
    ax.set(xscale="log", yscale="log")
    _plain_log_ticks(ax.xaxis)
    _plain_log_ticks(ax.yaxis)
    return _label(ax, "songs of an artist", "artists with so many songs")


def cleaning_bars(counts, ax=None) -> Axes:
    """What happened to the rows of the source. counts: mapping reason -> rows, drawn from top to bottom."""
    ax = _axes(ax, height=1 + 0.45 * len(counts))
    bars = ax.barh(list(counts), list(counts.values()), color=BLUE)
    ax.bar_label(bars, labels=[f"{rows:,}" for rows in counts.values()], padding=4)
    ax.margins(x=0.12)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.invert_yaxis()
    ax.grid(False)
    return _label(ax, "rows", "outcome")


def chunk_windows(windows, n_tokens, ax=None) -> Axes:
    """One song as a bar of tokens and, below it, its windows, with what neighbours share shaded.

    windows: list of (start, end) token positions, end exclusive. n_tokens: tokens in the whole song.
    """
    ax = _axes(ax, height=1.6 + 0.45 * len(windows))
    names = ["whole song", *(f"chunk {number}" for number in range(1, len(windows) + 1))]
    ax.barh(0, n_tokens, color=GREY, height=0.6)
    for row, (start, end) in enumerate(windows, start=1):
        ax.barh(row, end - start, left=start, color=SKY, height=0.6)
        ax.text((start + end) / 2, row, f"{end - start}", ha="center", va="center")
    for row, ((_, end), (next_start, _)) in enumerate(pairwise(windows), start=1):
        ax.barh([row, row + 1], max(end - next_start, 0), left=next_start, color=ORANGE, height=0.6)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    handles = [Patch(color=SKY, label="read once"), Patch(color=ORANGE, label="read by two chunks (overlap)")]
    _legend_above(ax, handles=handles)
    return _label(ax, "token position", "what is read", xlim=(0, n_tokens))


def chunk_histogram(chunks_per_song, ax=None) -> Axes:
    """Songs by number of chunks, on a logarithmic y axis. chunks_per_song: one integer a song."""
    ax = _axes(ax)
    chunks, songs = np.unique(chunks_per_song, return_counts=True)
    bars = ax.bar(chunks, songs, color=BLUE)
    ax.bar_label(bars, labels=[f"{count:,}" for count in songs], padding=2)
    ax.set_yscale("log", nonpositive="clip")
    ax.set_ylim(0.7, songs.max() * 3)
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="x", visible=False)
    return _label(ax, "chunks in a song", "songs")


def loss_curves(history, constant_mse=None, ax=None) -> Axes:
    """Training loss and validation MSE by epoch, the best epoch ringed.

    history: list of dicts with epoch, train_loss, validation_mse. constant_mse: MSE of always answering the mean.
    """
    ax = _axes(ax)
    epochs = [row["epoch"] for row in history]
    best = min(history, key=lambda row: row["validation_mse"])
    ax.plot(epochs, [row["train_loss"] for row in history], "o-", color=SKY, label="training loss")
    ax.plot(epochs, [row["validation_mse"] for row in history], "o-", color=BLUE, label="validation MSE")
    label = f"best epoch: {best['epoch']} (MSE {best['validation_mse']:.4f})"
    ring = {"s": 220, "facecolors": "none", "edgecolors": VERMILION, "linewidths": 2, "zorder": 3}
    ax.scatter(best["epoch"], best["validation_mse"], label=label, **ring)
    if constant_mse is not None:
        ax.axhline(constant_mse, color=GREY, linestyle="--", label="constant mean")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(ax, ncols=2)
    return _label(ax, "epoch", "mean squared error")


def truth_against_prediction(truth, prediction, name, r2=None, ax=None) -> Axes:
    """One dot a song; a perfect model stays on the diagonal. name: the method; r2: its R2, for the title."""
    ax = _axes(ax, width=5.5, height=5.5)
    ax.plot([0, 1], [0, 1], "--", color=GREY)
    ax.scatter(truth, prediction, s=16, alpha=0.4, color=_method_colours([name])[name], edgecolors="none")
    ax.set_title(name if r2 is None else f"{name}: R² = {r2:.3f}")
    ax.set_aspect("equal")
    return _label(ax, "true valence", "predicted valence", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def metric_bars(table, metric="mse", reference=None, ax=None) -> Axes:
    """One dot and interval a method, the best on top.

    table: DataFrame, index method, columns value, low, high. metric: a key of `evaluation.score`.
    reference: mapping label -> value of vertical lines, say the noise ceiling.
    """
    ax = _axes(ax, height=1.6 + 0.5 * len(table))
    table = table.sort_values("value", ascending=metric in ERRORS)
    colours = _method_colours(table.index)
    for row, (method, value, low, high) in enumerate(table[["value", "low", "high"]].itertuples()):
        ax.plot([low, high], [row, row], linewidth=3, solid_capstyle="round", color=colours[method])
        ax.plot(value, row, "o", markersize=9, color=colours[method])
        ax.text(value, row - 0.2, f"{value:.4f}", ha="center", va="bottom", bbox=TEXT_PLATE)
    for line, (label, value) in zip(cycle(["--", ":", "-."]), (reference or {}).items(), strict=False):
        ax.axvline(value, color=BLACK, linestyle=line, linewidth=1.5, label=f"{label}: {value:.4f}")
    if reference:
        _legend_above(ax)
    ax.set_yticks(range(len(table)), table.index)
    ax.grid(axis="y", visible=False)
    name = f"{ERRORS[metric]} (lower is better)" if metric in ERRORS else f"{AGREEMENTS[metric]} (higher is better)"
    return _label(ax, name, "method", ylim=(len(table) - 0.5, -0.7))


def error_by_bin_lines(tables, values_label="true valence", ax=None) -> Axes:
    """MSE by bin, one line a method. tables: mapping method -> DataFrame of `evaluation.error_by_bin`."""
    ax, colours = _axes(ax), _method_colours(tables)
    for method, table in tables.items():
        ax.plot(range(len(table)), table["mse"], "o-", color=colours[method], label=method)
    ax.set_xticks(range(len(table)), [f"{label}\n{songs:,} songs" for label, songs in table["songs"].items()])
    _legend_above(ax)
    return _label(ax, values_label, "MSE (lower is better)", ylim=(0, None))


def calibration_lines(tables, ax=None) -> Axes:
    """Mean truth over mean prediction, one line a method. tables: mapping method -> DataFrame of `calibration`."""
    ax, colours = _axes(ax, width=5.5, height=5.5), _method_colours(tables)
    ax.plot([0, 1], [0, 1], "--", color=GREY, label="perfect calibration")
    for method, table in tables.items():
        ax.plot(table["mean_prediction"], table["mean_truth"], "o-", color=colours[method], label=method)
    ax.legend(loc="upper left")
    ax.set_aspect("equal")
    return _label(ax, "mean predicted valence", "mean true valence", xlim=(0, 1), ylim=(0, 1))


def confusion(matrix, labels, ax=None) -> Axes:
    """Where the songs of each true mood went, in percent. matrix: counts, rows truth, columns prediction."""
    ax, matrix = _axes(ax, width=5.5, height=5), np.asarray(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(share):
        ax.text(column, row, f"{value:.0%}", ha="center", va="center", color="white" if value > 0.5 else "black")
    ax.set_xticks(range(len(labels)), labels)
    ax.set_yticks(range(len(labels)), labels)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return _label(ax, "predicted mood", "true mood (each row adds up to 100%)")


def learning_curve(tables, extrapolated=None, ceiling=None, ax=None) -> Axes:
    """R2 by number of training songs, one line a method.

    tables: mapping method -> DataFrame, index training songs, columns value, low, high. extrapolated: the same for
    sizes that were not measured, drawn hollow. ceiling: the noise ceiling, an `Interval`.
    """
    ax, colours = _axes(ax, height=5), _method_colours(tables)
    ax.set_xscale("log")
    _plain_log_ticks(ax.xaxis, steps=(1, 3))
    if ceiling is not None:
        ax.axhspan(ceiling.low, ceiling.high, color=GREY, alpha=0.25, linewidth=0, label="noise ceiling, 95% interval")
        ax.axhline(ceiling.value, color=GREY, linewidth=1.5)
    for method, table in tables.items():
        ax.plot(table.index, table["value"], "o-", color=colours[method], label=method)
    for method, table in (extrapolated or {}).items():
        size, value = tables[method].index[-1], tables[method]["value"].iloc[-1]
        ax.plot([size, *table.index], [value, *table["value"]], ":", color=colours[method])
        ax.vlines(table.index, table["low"], table["high"], color=colours[method], linewidth=1.5)
        ax.plot(table.index, table["value"], "o", markerfacecolor="white", color=colours[method])
    if extrapolated:
        ax.plot([], [], "o:", markerfacecolor="white", color=BLACK, label="extrapolated")
    _legend_above(ax, ncols=2)
    return _label(ax, "training songs", "R² on unseen artists (higher is better)")


BOX_STYLES = {
    "data": {"facecolor": "#F0F0F0", "edgecolor": GREY},
    "frozen": {"facecolor": "#D3E6F3", "edgecolor": BLUE},
    "trained": {"facecolor": "#FCE5BC", "edgecolor": ORANGE},
}
BOX_HEIGHT, ROW_HEIGHT = 13, 17.8
READING = [
    ("Lyrics", "the words of\none song", "data"),
    ("Tokenizer", "words to\ntoken numbers", "data"),
    ("Chunks", "≤ 512 tokens,\noverlap 128", "data"),
]


def model_diagram(layers=12, adapted=4, hidden=768, ax=None) -> Axes:
    """The LoRA model, from lyrics to valence. layers: of the encoder; adapted: those with LoRA; hidden: vector size."""
    frozen = layers - adapted
    return _diagram(
        ax,
        [
            [
                *READING,
                (f"Layers 1–{frozen}", "❄ frozen, run\nonce and cached", "frozen"),
                (f"Layers {frozen + 1}–{layers}", "LoRA on\nquery and value", "adapted"),
            ],
            [
                ("Pooling", f"one vector of\n{hidden} a chunk", "data"),
                ("Head", f"Linear {hidden} → 128\nReLU\nLinear 128 → 1", "trained"),
                ("Chunk scores", "one number\na chunk", "data"),
                ("Mean", "over the chunks\nof a song", "data"),
                ("Valence", "0 = sad,\n1 = happy", "data"),
            ],
        ],
    )


def baseline_diagram(layers=12, hidden=768, ax=None) -> Axes:
    """The baseline, from lyrics to valence: frozen encoder, mean over chunks, small network."""
    return _diagram(
        ax,
        [
            [*READING, (f"Layers 1–{layers}", "❄ frozen, run\nonce and cached", "frozen")],
            [
                ("[CLS]", f"one vector of\n{hidden} a chunk", "data"),
                ("Mean", "over the chunks\nof a song", "data"),
                ("MLP", f"{hidden} → 256\n→ 128 → 1", "trained"),
                ("Valence", "0 = sad,\n1 = happy", "data"),
            ],
        ],
    )


def _diagram(ax, rows):
    """Draw rows of (title, text, kind) boxes, read from left to right, and the legend, on a 100 x 38 canvas."""
    ax = _axes(ax, width=10, height=3.8)
    ax.set(xlim=(0, 100), ylim=(0, 38), aspect="equal")
    ax.axis("off")
    width = 80 / len(rows[0])
    lefts = np.linspace(1, 99 - width, len(rows[0]))
    bottoms = [38 - 0.5 - BOX_HEIGHT - row * ROW_HEIGHT for row in range(len(rows))]
    for bottom, steps in zip(bottoms, rows, strict=True):
        for left, step in zip(lefts, steps, strict=True):
            _box(ax, left, bottom, width, *step)
        for left, next_left in pairwise(lefts):
            _arrow(ax, [(left + width, bottom + BOX_HEIGHT / 2), (next_left, bottom + BOX_HEIGHT / 2)])
    for bottom, next_bottom in pairwise(bottoms):
        start, end = lefts[-1] + width / 2, lefts[0] + width / 2
        middle = (bottom + next_bottom + BOX_HEIGHT) / 2
        _arrow(ax, [(start, bottom), (start, middle), (end, middle), (end, next_bottom + BOX_HEIGHT)])
    names = {"data": "data and fixed steps", "frozen": "frozen weights", "trained": "trained weights"}
    handles = [Patch(**BOX_STYLES[kind], label=name) for kind, name in names.items()]
    ax.legend(handles=handles, loc="lower center", ncols=3, borderaxespad=0, fontsize=11)
    return ax


def _box(ax, left, bottom, width, title, text, kind):
    """A box with a bold title; an adapted box is frozen, with its text on a trained plate."""
    _rounded(ax, left, bottom, width, BOX_HEIGHT, "frozen" if kind == "adapted" else kind)
    if kind == "adapted":
        _rounded(ax, left + 1, bottom + 1, width - 2, BOX_HEIGHT * 0.56, "trained")
    middle = left + width / 2
    ax.text(middle, bottom + BOX_HEIGHT * 0.81, title, ha="center", va="center", fontsize=12.5, fontweight="bold")
    ax.text(middle, bottom + BOX_HEIGHT * 0.36, text, ha="center", va="center", fontsize=10.5, linespacing=1.25)


def _rounded(ax, left, bottom, width, height, kind):
    shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=1", linewidth=1.5)
    shape.set(**BOX_STYLES[kind])
    ax.add_patch(shape)


def _arrow(ax, points):
    style = {"arrowstyle": "-|>", "mutation_scale": 14, "linewidth": 1.5, "color": "#404040"}
    ax.add_patch(FancyArrowPatch(path=Path(points), **style))


def _axes(ax, width=8, height=4):
    return plt.subplots(figsize=(width, height))[1] if ax is None else ax


def _label(ax, x, y, **limits):
    ax.set(xlabel=x, ylabel=y, **limits)
    return ax


def _plain_log_ticks(axis, steps=(1, 2, 5)):
    """Plain numbers (100, not 10²) at 1, 2, 5, 10, ... (or other steps) on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,.0f}")


def _legend_above(ax, ncols=3, **options):
    """A legend over the axes, where it hides no data."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=ncols, columnspacing=1.4, **options)


def _method_colours(methods):
    """A colour for each method: of the first METHOD_COLOURS its name begins with ('LoRA, real songs'), or another."""
    others = cycle(OTHER_COLOURS)
    known = {name.lower(): colour for name, colour in METHOD_COLOURS.items()}
    own = {method: [known[name] for name in known if method.lower().startswith(name)] for method in methods}
    return {method: colours[0] if colours else next(others) for method, colours in own.items()}
