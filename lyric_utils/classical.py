"""Simple baselines of scikit-learn: ridge regression on counted words, on character n-grams and on frozen vectors."""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import VarianceThreshold
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from lyric_utils.songs import words_key

# By conjugate gradients. The best penalty is 0.1 on the sample; on the public subset, 0.5 of 120 songs and 3 of 3,700.
TFIDF_RIDGE = {"alphas": np.logspace(-1, 2, 7), "cv": KFold(3, shuffle=True, random_state=42)}
TFIDF_OPTIONS = {"sublinear_tf": True, "strip_accents": "unicode"}
TYPICAL_LINES = [6.4, 0.73]  # words per line, and share of distinct lines: geometric means of the public subset


class CharTfidf(TfidfVectorizer):
    """TF-IDF of character n-grams within words; it cuts each distinct word once, not every time that it is sung."""

    def _count_vocab(self, raw_documents: Iterable[str], fixed_vocab: bool) -> tuple:
        preprocess, words = self.build_preprocessor(), DictVectorizer(dtype=self.dtype)
        by_song = words.fit_transform(Counter(re.findall(r"\S{1,1000}", preprocess(text))) for text in raw_documents)
        vocabulary, by_word = super()._count_vocab(words.feature_names_, fixed_vocab)
        return vocabulary, by_song @ by_word


def word_tfidf_ridge() -> Pipeline:
    """Ridge regression on the TF-IDF of words, its penalty chosen on three folds: lyrics -> valence."""
    return make_pipeline(TfidfVectorizer(min_df=2, **TFIDF_OPTIONS), RidgeCV(**TFIDF_RIDGE))


def char_tfidf_ridge(structure: bool = True, vocabulary: list[str] | None = None) -> Pipeline:
    """Ridge regression on the TF-IDF of character n-grams: runs of two to four letters within words.

    With `structure`, `structural_features` stand beside the n-grams, bounded at two standard deviations so that unusual
    line breaks cannot decide a song's score. `vocabulary` gives the n-grams, where they are known before.
    """
    features = CharTfidf(analyzer="char_wb", ngram_range=(2, 4), min_df=5, vocabulary=vocabulary, **TFIDF_OPTIONS)
    if structure:
        bound = FunctionTransformer(np.clip, kw_args={"a_min": -2, "a_max": 2})
        scaled = make_pipeline(FunctionTransformer(structural_features), StandardScaler(), bound)
        features = make_union(features, scaled)
    return make_pipeline(features, RidgeCV(**TFIDF_RIDGE))


def structural_features(lyrics: Iterable[str]) -> np.ndarray:
    """How long each song is and how much of it repeats, shape (n_songs, 4).

    Neither TF-IDF, whose vectors all have length 1, nor a mean over tokens contains this. The columns are logarithms of
    the number of words, of distinct words, of words per line, and of the share of distinct lines, case and punctuation
    aside. A song in one line gets the typical values of the last two.
    """
    counts = []
    for song in lyrics:
        lines = [key for line in song.splitlines() if (key := words_key(line))]
        words = " ".join(lines).split()
        by_line = [len(words) / len(lines), len(set(lines)) / len(lines)] if len(lines) > 1 else TYPICAL_LINES
        counts.append([max(len(words), 1), max(len(set(words)), 1), *by_line])
    return np.log(np.reshape(counts, (-1, 4)))


def embedding_ridge() -> Pipeline:
    """Ridge regression on the frozen encoder's song vectors, its penalty chosen by leave-one-out."""
    # MiniLM's last layer has three dimensions that are zero but for rounding; scaling would give them enormous weights.
    return make_pipeline(VarianceThreshold(1e-12), StandardScaler(), RidgeCV(alphas=np.logspace(1, 5, 13)))


def nystroem_ridge(n_songs: int, hidden_size: int) -> Pipeline:
    """Ridge regression with a Gaussian kernel on the frozen encoder's song vectors: `embedding_ridge` made nonlinear.

    Width and penalty are the best of twelve pairs on folds of the public subset. The kernel compares with at most 1,500
    songs drawn at random, so that time and memory grow with the songs, not their square (Williams & Seeger 2001).
    """
    kernel = Nystroem(gamma=1 / (4 * hidden_size), n_components=min(n_songs, 1_500), random_state=42)
    return make_pipeline(VarianceThreshold(1e-12), StandardScaler(), kernel, Ridge(alpha=1.0))
