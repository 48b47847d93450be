"""The data figures. Each function takes data, draws on `ax` (a new figure if there is none) and returns the Axes.

The colours, of Okabe and Ito (2008), then of Tol (2021), can be told apart with colour-vision deficiency.
"""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT_GREY = "#767676", "#E4E4E4"
METHOD_COLOURS = {"constant mean": GREY, "baseline MLP": BLUE, "LoRA": VERMILION, "LoRA, paper recipe": SKY}
METHOD_COLOURS |= {"word TF-IDF + ridge": GREEN, "frozen encoder + ridge": PURPLE, "blend: LoRA + text": ORANGE}
METHOD_COLOURS |= {"character TF-IDF, structure + ridge": "#663333", "full fine-tuning": "#882255"}
METHOD_COLOURS |= {"frozen encoder, four layers + Nyström ridge": "#222255", "MPNet, LoRA": "#8833CC"}
METHOD_COLOURS |= {"MPNet, four layers + Nyström ridge": "#117733", "MPNet, blend: LoRA + text": "#999933"}
OTHER_COLOURS = (BLACK, "#44AA99", "#AA4499")
METRICS = {"mse": "MSE", "rmse": "RMSE", "mae": "MAE", "r2": "R²", "pearson": "Pearson r", "spearman": "Spearman ρ"}


def use_style() -> None:
    """Set the project's look for all figures that follow (Matplotlib rcParams). Call it once, at the top."""
    plt.rc("axes", grid=True, axisbelow=True, titlesize=13, titlelocation="left", labelsize=12)
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("legend", frameon=False)
    plt.rc("font", size=11)
    plt.rc("grid", color=LIGHT_GREY)
    plt.rc("figure", **{"dpi": 110, "constrained_layout.use": True})


def valence_histogram(valences, ax=None) -> plt.Axes:
    """Number of songs by valence, in bins of 0.05. valences: numbers in [0, 1]."""
    ax = _axes(ax)
    ax.hist(valences, bins=np.linspace(0, 1, 21), color=BLUE, edgecolor="white")
    return _finish(ax, "valence (0 = sad, 1 = happy)", "songs", xlim=(0, 1))


def length_histogram(words, ax=None) -> plt.Axes:
    """Number of songs by length, with the median; the axis is logarithmic if one song exceeds five medians."""
    ax, words, median, bins = _axes(ax), np.maximum(words, 1), np.median(words), 40
    if words.max() > 5 * median:
        bins = np.geomspace(words.min(), words.max(), 41)
        _plain_log_scale(ax, "x")
    ax.hist(words, bins=bins, color=BLUE, edgecolor="white")
    ax.axvline(median, color=VERMILION, linewidth=2, label=f"median: {median:.0f} words")
    ax.legend()
    return _finish(ax, "words per song", "songs")


def artist_histogram(songs_per_artist, ax=None) -> plt.Axes:
    """How many artists have 1, 2, 3, ... songs, on logarithmic axes. songs_per_artist: one count per artist."""
    ax = _axes(ax)
    songs, artists = np.unique(songs_per_artist, return_counts=True)
    ax.plot(songs, artists, "o", color=BLUE, alpha=0.8)
    _plain_log_scale(ax, "xy")
    return _finish(ax, "songs per artist", "artists")


def cleaning_bars(counts, ax=None) -> plt.Axes:
    """What happened to the rows of the source. counts: mapping outcome -> rows, drawn from top to bottom."""
    ax = _axes(ax, height=1 + 0.45 * len(counts))
    ax.bar_label(ax.barh([*counts], [*counts.values()], color=BLUE), fmt="{:,.0f}", padding=4)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.invert_yaxis()
    return _finish(ax, "rows", "outcome", no_grid="both", xmargin=0.12)


def chunk_windows(windows, n_tokens, ax=None) -> plt.Axes:
    """A song of n_tokens as a bar and, below it, its chunks. windows: list of (start, end) positions, end exclusive."""
    ax = _axes(ax, height=1.6 + 0.45 * len(windows))
    starts, ends = np.transpose(windows)
    rows = range(1, len(windows) + 1)
    ax.barh(0, n_tokens, color=GREY, height=0.6)
    ax.bar_label(ax.barh(rows, ends - starts, left=starts, color=SKY, height=0.6), label_type="center")
    for row, end, next_start in zip(rows, ends, starts[1:], strict=False):
        ax.barh([row, row + 1], max(end - next_start, 0), left=next_start, color=ORANGE, height=0.6)
    ax.set_yticks([0, *rows], ["whole song", *(f"chunk {row}" for row in rows)])
    ax.invert_yaxis()
    boxes = [Patch(color=SKY, label="read once"), Patch(color=ORANGE, label="read by two chunks (overlap)")]
    return _finish(ax, "token position", "what is read", "y", {"ncols": 3, "handles": boxes}, xlim=(0, n_tokens))


def chunk_histogram(chunks_per_song, ax=None) -> plt.Axes:
    """Number of songs by number of chunks, on a logarithmic y axis. chunks_per_song: one integer per song."""
    ax = _axes(ax)
    chunks, songs = np.unique(chunks_per_song, return_counts=True)
    ax.bar_label(ax.bar(chunks, songs, color=BLUE), fmt="{:,.0f}", padding=2)
    _plain_log_scale(ax, "y", steps=(1,))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(ax, "chunks per song", "songs", no_grid="x", ylim=(0.7, songs.max() * 3))


def loss_curves(history, constant_mse=None, ax=None) -> plt.Axes:
    """Training loss and validation MSE by epoch, the best epoch in a ring. history: list of dicts as `fit` gives it."""
    ax, history = _axes(ax), pd.DataFrame(history).set_index("epoch")
    mse, best = history["validation_mse"], history["validation_mse"].idxmin()
    ax.plot(history["train_loss"], "o-", color=SKY, label="training loss")
    ax.plot(mse, "o-", color=BLUE, label="validation MSE")
    ring = {"s": 220, "facecolors": "none", "edgecolors": VERMILION, "linewidths": 2, "zorder": 3}
    ax.scatter(best, mse[best], label=f"best epoch: {best} (MSE {mse[best]:.4f})", **ring)
    if constant_mse is not None:
        ax.axhline(constant_mse, color=GREY, linestyle="--", label="constant mean")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(ax, "epoch", "mean squared error", legend={"ncols": 2})


def truth_against_prediction(truth, prediction, name, r2=None, ax=None) -> plt.Axes:
    """One dot per song; a perfect model stays on the diagonal. name: the method; r2: its R2, for the title."""
    ax = _axes(ax, width=5.5, height=5.5)
    ax.plot([0, 1], [0, 1], "--", color=GREY)
    ax.scatter(truth, prediction, s=16, alpha=0.4, color=_method_colours([name])[name], edgecolors="none")
    ax.set(title=name if r2 is None else f"{name} (R² = {r2:.3f})", aspect="equal")
    return _finish(ax, "true valence", "predicted valence", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def metric_bars(table, metric="mse", reference=None, ax=None) -> plt.Axes:
    """One dot and interval per method, the best on top; a metric (a key of `score`) that is nan is called undefined.

    table: DataFrame, index method, columns value, low, high. reference: mapping label -> value, for vertical lines.
    """
    ax, lower_is_better = _axes(ax, height=1.6 + 0.5 * len(table)), metric in ("mse", "rmse", "mae")
    table, colours = table.sort_values("value", ascending=lower_is_better), _method_colours(table.index)
    look = {"linewidth": 3, "solid_capstyle": "round", "markevery": [1], "markersize": 9}  # a dot on the middle only
    for row, (method, value, low, high) in enumerate(table[["value", "low", "high"]].itertuples()):
        if np.isnan(value):
            ax.text(0.5, row, "undefined", ha="center", va="center", transform=ax.get_yaxis_transform())
            continue
        ax.plot([low, value, high], [row] * 3, "o-", color=colours[method], **look)
        ax.text(value, row - 0.2, f"{value:.4f}", ha="center", va="bottom", bbox={"fc": "w", "ec": "none", "pad": 1})
    for line, (label, value) in zip(cycle(["--", ":", "-."]), (reference or {}).items(), strict=False):
        ax.axvline(value, color=BLACK, linestyle=line, linewidth=1.5, label=f"{label}: {value:.4f}")
    ax.set_yticks(range(len(table)), table.index)
    ax.locator_params(axis="x", nbins=5)
    name = f"{METRICS[metric]} ({'lower' if lower_is_better else 'higher'} is better)"
    return _finish(ax, name, "method", "y", legend={"ncols": 3} if reference else None, ylim=(len(table) - 0.5, -0.7))


def error_by_bin_lines(tables, values_label="true valence", ax=None) -> plt.Axes:
    """MSE by bin, one line per method. tables: mapping method -> DataFrame of `evaluation.error_by_bin`."""
    ax, colours = _axes(ax), _method_colours(tables)
    for method, table in tables.items():
        ax.plot(range(len(table)), table["mse"], "o-", color=colours[method], label=method)
    ax.set_xticks(range(len(table)), [f"{label}\n{songs:,} songs" for label, songs in table["songs"].items()])
    return _finish(ax, values_label, "MSE (lower is better)", legend={"ncols": 3}, ylim=(0, None))


def calibration_lines(tables, ax=None) -> plt.Axes:
    """Mean truth by mean prediction, one line per method. tables: mapping method -> DataFrame of `calibration`."""
    ax, colours = _axes(ax, width=5.5, height=5.5), _method_colours(tables)
    ax.plot([0, 1], [0, 1], "--", color=GREY, label="perfect calibration")
    for method, table in tables.items():
        ax.plot(table["mean_prediction"], table["mean_truth"], "o-", color=colours[method], label=method)
    ax.legend(loc="upper left")
    return _finish(ax, "mean predicted valence", "mean true valence", xlim=(0, 1), ylim=(0, 1), aspect="equal")


def heat_map(table, x, y, ax=None) -> plt.Axes:
    """A table of numbers in [0, 1], the larger the darker. table: DataFrame; x, y: what its columns and index are."""
    ax = _axes(ax, width=1.5 + 1.4 * table.shape[1], height=1.5 + 0.7 * table.shape[0])
    ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")  # the numbers are black: none may stand on dark blue
    for (row, column), value in np.ndenumerate(table):
        ax.text(column, row, f"{value:.2f}", ha="center", va="center")
    ax.set_xticks(range(table.shape[1]), table.columns)
    ax.set_yticks(range(table.shape[0]), table.index)
    return _finish(ax, x, y, no_grid="both")


def mean_by_share(values, valence, label, ax=None, shares=10) -> plt.Axes:
    """Mean valence, with a 95% interval, of equally large shares of the songs, from low to high `values`."""
    ax = _axes(ax)
    songs = pd.DataFrame({"value": values, "valence": valence})
    parts = songs.groupby(pd.qcut(songs["value"].rank(method="first"), shares), observed=True)
    mean, half = parts.mean(), 1.96 * parts["valence"].sem()
    ax.fill_between(mean["value"], mean["valence"] - half, mean["valence"] + half, color=SKY, alpha=0.4, linewidth=0)
    ax.plot(mean["value"], mean["valence"], "o-", color=BLUE, markersize=4)
    return _finish(ax, label, "mean valence")


def added_by_group(table, label, ax=None) -> plt.Axes:
    """What something adds in groups of songs. table: DataFrame, index kind, columns group, songs, value, low, high."""
    ax, rows = _axes(ax, height=1.2 + 0.36 * len(table)), np.arange(len(table))
    colours = dict(zip(dict.fromkeys(table.index), cycle([BLUE, VERMILION, GREEN]), strict=False))
    for row, (kind, group) in zip(rows, table.iterrows(), strict=True):
        ax.plot([group["low"], group["high"]], [row] * 2, color=colours[kind], linewidth=3, solid_capstyle="round")
        ax.plot(group["value"], row, "o", color=colours[kind], markersize=9)
    ax.axvline(0, color=BLACK, linewidth=1)
    ax.set_yticks(
        rows, [f"{group} ({songs:,} songs)" for group, songs in zip(table["group"], table["songs"], strict=True)]
    )
    ax.invert_yaxis()
    return _finish(ax, label, "songs", "y")


def words_against_sound(words, sound, valence, ax=None) -> plt.Axes:
    """One dot per song: what its words say against what its sound says, in the colour of its true valence."""
    ax = _axes(ax, width=6.5, height=5.5)
    dots = ax.scatter(words, sound, c=valence, s=14, cmap="cividis", vmin=0, vmax=1, edgecolors="none")
    ax.figure.colorbar(dots, label="true valence")
    ax.plot([0, 1], [0, 1], "--", color=GREY)
    return _finish(ax, "predicted from words", "predicted from sound", xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _axes(ax, width=8, height=4):
    return plt.subplots(figsize=(width, height))[1] if ax is None else ax


def _finish(ax, x, y, no_grid=None, legend=None, **options):
    """Label the axes. no_grid: "x", "y" or "both"; legend: options of one above them, where it hides no data."""
    ax.set(xlabel=x, ylabel=y, **options)
    if no_grid:
        ax.grid(False, axis=no_grid)
    if legend:
        ax.legend(**legend, columnspacing=1.4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return ax


def _plain_log_scale(ax, axes, steps=(1, 2, 5)):
    """Logarithmic axes ("x", "y" or "xy") with plain numbers (100, not 10²), at 1, 2, 5, 10, ... or other steps."""
    for name in axes:
        ax.set(**{f"{name}scale": "log"})
        axis = getattr(ax, f"{name}axis")
        axis.set(major_locator=LogLocator(subs=steps), minor_locator=NullLocator(), major_formatter="{x:,.0f}")


def _method_colours(methods):
    """Each method's colour: that of the longest label its name begins with ('LoRA, real songs'), or another one."""
    others, colours = cycle(OTHER_COLOURS), {}
    for method in methods:
        label = max((name for name in METHOD_COLOURS if method.lower().startswith(name.lower())), key=len, default=None)
        colours[method] = METHOD_COLOURS[label] if label else next(others)
    return colours
