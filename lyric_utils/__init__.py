"""lyric_utils: predict a song's valence from its lyrics. The notebooks tell the story; this package does the steps."""

from lyric_utils.chunking import Chunks, average_by_song, chunk_lyrics
from lyric_utils.comparison import compare, load_comparison, load_curves, load_encoder_comparison
from lyric_utils.encoders import Encoder, load_encoder
from lyric_utils.evaluation import paired_difference, score, score_with_intervals
from lyric_utils.frozen import FrozenPass, run_frozen
from lyric_utils.models import (
    BaselineMLP,
    LoraRegressor,
    RegressionHead,
    blend,
    build_model,
    frozen_ridge,
    kernel_ridge,
    load_model,
    load_results,
    save_model,
    score_songs,
    tabulate_predictions,
    text_ridge,
    tfidf_ridge,
)
from lyric_utils.profiles import Profile, Recipe, load_profile
from lyric_utils.songs import (
    CleaningReport,
    LyricsError,
    Split,
    clean_songs,
    load_songs,
    read_songs,
    save_songs,
    split_songs,
)
from lyric_utils.sources import draw_songs, load_source
from lyric_utils.training import Examples, make_examples, train

__all__ = [
    "BaselineMLP",
    "Chunks",
    "CleaningReport",
    "Encoder",
    "Examples",
    "FrozenPass",
    "LoraRegressor",
    "LyricsError",
    "Profile",
    "Recipe",
    "RegressionHead",
    "Split",
    "average_by_song",
    "blend",
    "build_model",
    "chunk_lyrics",
    "clean_songs",
    "compare",
    "draw_songs",
    "frozen_ridge",
    "kernel_ridge",
    "load_comparison",
    "load_curves",
    "load_encoder",
    "load_encoder_comparison",
    "load_model",
    "load_profile",
    "load_results",
    "load_songs",
    "load_source",
    "make_examples",
    "paired_difference",
    "read_songs",
    "run_frozen",
    "save_model",
    "save_songs",
    "score",
    "score_songs",
    "score_with_intervals",
    "split_songs",
    "tabulate_predictions",
    "text_ridge",
    "tfidf_ridge",
    "train",
]
