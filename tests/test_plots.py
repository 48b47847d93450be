"""Every figure shows the data it was given, says what its axes mean, and leaves no state behind."""

from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from assets import draw_figures
from benchmarks.quality.methods import METHODS
from lyric_utils import plots

HISTORY = [
    {"epoch": epoch, "train_loss": 0.09 - 0.01 * epoch, "validation_mse": mse}
    for epoch, mse in enumerate([0.08, 0.06, 0.07], start=1)
]
TABLE = pd.DataFrame(
    {"value": [0.06, 0.05, 0.07], "low": [0.05, 0.04, 0.06], "high": [0.07, 0.06, 0.08]},
    index=["baseline MLP", "LoRA", "constant mean"],
)
BINS = pd.DataFrame({"songs": [30, 1200], "mse": [0.08, 0.02], "bias": [0.1, 0.0]}, index=["0–0.5", "0.5–1"])
CALIBRATION = pd.DataFrame({"mean_prediction": [0.3, 0.6], "mean_truth": [0.2, 0.7], "songs": [50, 50]})
CELLS = pd.DataFrame({"billboard": [0.2, 0.1], "subset": [0.1, 0.3]}, index=["billboard", "subset"])
ADDED = TABLE.assign(group=["1960s", "1970s", "minor"], songs=1200).set_axis(["decade", "decade", "mode"])
WINDOWS = [(0, 512), (412, 924), (824, 1000)]

FIGURES = {
    draw.func.__name__: draw
    for draw in (
        partial(plots.valence_histogram, [0.1, 0.5, 0.9]),
        partial(plots.length_histogram, [100, 200, 300, 5000]),
        partial(plots.artist_histogram, [1, 1, 1, 2, 40]),
        partial(plots.cleaning_bars, {"kept": 1234, "no lyrics": 5}),
        partial(plots.chunk_windows, WINDOWS, 1000),
        partial(plots.chunk_histogram, [1, 1, 1, 2, 3]),
        partial(plots.loss_curves, HISTORY, constant_mse=0.065),
        partial(plots.truth_against_prediction, [0.1, 0.9], [0.3, 0.7], "LoRA"),
        partial(plots.metric_bars, TABLE, reference={"least possible": 0.01}),
        partial(plots.error_by_bin_lines, {"LoRA": BINS}),
        partial(plots.calibration_lines, {"LoRA": CALIBRATION}),
        partial(plots.heat_map, CELLS, "tested on", "trained on"),
        partial(plots.mean_by_share, range(40), np.linspace(0, 1, 40), "tempo (beats per minute)"),
        partial(plots.added_by_group, ADDED, "R² that words add"),
        partial(plots.words_against_sound, [0.2, 0.6], [0.7, 0.4], [0.5, 0.5]),
    )
}
DIAGRAMS = {
    "model": partial(draw_figures.draw_diagram, draw_figures.MODEL),
    "baseline": partial(draw_figures.draw_diagram, draw_figures.BASELINE),
}


@pytest.fixture(autouse=True)
def figures_closed():
    plt.close("all")  # what other tests left
    with mpl.rc_context():
        yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figure_draws_on_the_axes_it_is_given_or_on_new_ones_and_leaves_no_state(draw):
    settings = dict(mpl.rcParams)
    figure, given = plt.subplots()
    assert draw(ax=given) is given
    assert plt.get_fignums() == [figure.number]
    ax = draw()
    assert len(plt.get_fignums()) == 2
    ax.figure.canvas.draw()
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert dict(mpl.rcParams) == settings


@pytest.mark.parametrize("draw", [*FIGURES.values(), *DIAGRAMS.values()], ids=[*FIGURES, *DIAGRAMS])
def test_nothing_is_clipped_and_no_letter_is_small(draw):
    plots.use_style()
    figure = draw().figure
    figure.canvas.draw()
    for text in figure.findobj(lambda artist: isinstance(artist, mpl.text.Text) and artist.get_visible()):
        assert text.get_fontsize() >= 10
    assert figure.get_tightbbox().x0 >= -0.01
    assert figure.get_tightbbox().x1 <= figure.get_figwidth() + 0.01


def test_every_function_that_draws_is_tested():
    public = {name for name, value in vars(plots).items() if getattr(value, "__module__", "") == plots.__name__}
    assert {name for name in public if not name.startswith("_")} == {*FIGURES, "use_style"}


def test_valence_histogram_counts_every_song():
    assert sum(bar.get_height() for bar in plots.valence_histogram([0, 0.5, 0.51, 1]).patches) == 4


def test_length_histogram_is_logarithmic_only_when_it_must_be():
    assert plots.length_histogram([100, 200, 300]).get_xscale() == "linear"
    ax = plots.length_histogram([0, 100, 200, 300, 5000])
    assert ax.get_xscale() == "log"
    assert legend(ax) == ["median: 200 words"]
    assert sum(bar.get_height() for bar in ax.patches) == 5


def test_cleaning_bars_print_the_numbers():
    assert texts(FIGURES["cleaning_bars"]()) == ["1,234", "5"]


def test_chunk_windows_are_drawn_where_they_lie():
    ax = FIGURES["chunk_windows"]()
    spans = {(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches}
    assert spans == {(0, 1000), *WINDOWS, (412, 512), (824, 924)}
    assert texts(ax) == ["512", "512", "176"]


def test_chunk_windows_of_a_short_song_have_no_overlap():
    assert len(plots.chunk_windows([(0, 90)], 90).patches) == 2


def test_loss_curves_mark_the_best_epoch():
    ax = FIGURES["loss_curves"]()
    assert "best epoch: 2 (MSE 0.0600)" in legend(ax)
    assert ax.collections[0].get_offsets().tolist() == [[2, 0.06]]


@pytest.mark.parametrize(("r2", "title"), [(None, "LoRA"), (0.25, "LoRA (R² = 0.250)")])
def test_r2_is_shown_only_when_given(r2, title):
    plots.use_style()
    assert plots.truth_against_prediction([0.1], [0.2], "LoRA", r2).get_title(loc="left") == title


@pytest.mark.parametrize(("metric", "best"), [("mse", "LoRA"), ("r2", "constant mean")])
def test_metric_bars_put_the_best_on_top(metric, best):
    ax = plots.metric_bars(TABLE, metric)
    assert ax.get_yticklabels()[0].get_text() == best
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_metric_bars_call_a_missing_value_undefined():
    ax = plots.metric_bars(pd.concat([TABLE * np.nan, TABLE]).iloc[2:], "pearson")
    assert texts(ax) == ["0.0700", "0.0600", "0.0500", "undefined"]
    assert ax.get_yticklabels()[-1].get_text() == "constant mean"


def test_metric_bars_name_the_reference():
    assert legend(FIGURES["metric_bars"]()) == ["least possible: 0.0100"]


def test_bins_carry_their_number_of_songs():
    labels = [label.get_text() for label in FIGURES["error_by_bin_lines"]().get_xticklabels()]
    assert labels == ["0–0.5\n30 songs", "0.5–1\n1,200 songs"]


def test_a_heat_map_prints_its_numbers():
    assert texts(FIGURES["heat_map"]()) == ["0.20", "0.10", "0.10", "0.30"]


def test_mean_by_share_draws_a_dot_per_tenth_of_the_songs():
    line = FIGURES["mean_by_share"]().lines[0]
    assert line.get_xdata() == pytest.approx(np.arange(10) * 4 + 1.5)
    assert line.get_ydata() == pytest.approx((np.arange(10) * 4 + 1.5) / 39)


def test_a_kind_of_group_has_one_colour_and_a_group_says_how_many_songs():
    ax = FIGURES["added_by_group"]()
    assert ax.get_yticklabels()[0].get_text() == "1960s (1,200 songs)"
    first, second, other = (line.get_color() for line in ax.lines[1:6:2])
    assert first == second != other


def test_words_and_sound_have_the_colour_of_the_truth():
    dots = FIGURES["words_against_sound"]().collections[0]
    assert dots.get_offsets().tolist() == [[0.2, 0.7], [0.6, 0.4]]
    assert dots.get_array().tolist() == [0.5, 0.5]


def test_every_method_has_a_colour_of_its_own():
    assert {method.label for method in METHODS.values()} == set(plots.METHOD_COLOURS)
    assert len({*plots.METHOD_COLOURS.values(), *plots.OTHER_COLOURS}) == len(METHODS) + len(plots.OTHER_COLOURS)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("LoRA, real songs", "LoRA"),
        ("lora on the 150 songs", "LoRA"),
        ("LoRA, paper recipe, real songs", "LoRA, paper recipe"),
        ("character TF-IDF, structure + ridge, folds", "character TF-IDF, structure + ridge"),
    ],
)
def test_a_method_keeps_its_colour_in_every_figure(name, method):
    _, other, line = plots.calibration_lines({"other": CALIBRATION, name: CALIBRATION}).lines
    assert line.get_color() == plots.METHOD_COLOURS[method]
    assert other.get_color() == plots.OTHER_COLOURS[0]
    dots = plots.truth_against_prediction([0.1], [0.2], name).collections[0]
    assert mpl.colors.same_color(dots.get_facecolor()[0][:3], plots.METHOD_COLOURS[method])


@pytest.mark.parametrize("draw", DIAGRAMS.values(), ids=DIAGRAMS)
def test_diagram_text_stays_in_its_box(draw):
    plots.use_style()
    ax = draw()
    ax.figure.canvas.draw()
    boxes = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, mpl.patches.FancyBboxPatch)]
    for text in ax.texts:
        extent = text.get_window_extent()
        assert any(
            box.x0 < extent.x0 and extent.x1 < box.x1 and box.y0 < extent.y0 and extent.y1 < box.y1 for box in boxes
        ), text
