"""The noise ceiling is that of a simulation in which it is known."""

import numpy as np
import pytest

from benchmarks.quality.ceiling import noise_ceiling


def simulate_texts(texts=6000, spread=0.2, noise=0.1, seed=0):
    """Every fifth text has two recordings, every tenth three; the true ceiling is spread² / (spread² + noise²)."""
    random = np.random.default_rng(seed)
    counts = np.where(np.arange(texts) % 5 == 0, 2, 1) + (np.arange(texts) % 10 == 0)
    means = random.normal(0.5, spread, texts)
    return [random.normal(mean, noise, count).tolist() for mean, count in zip(means, counts, strict=True)]


def by_other_artists(valences):
    """The valences, each recording by an artist of its own."""
    return valences, [[f"artist {number}" for number in range(len(values))] for values in valences]


def test_noise_ceiling_recovers_the_simulated_value():
    ceiling = noise_ceiling(*by_other_artists(simulate_texts()))
    assert ceiling.value == pytest.approx(0.8, abs=0.02)
    assert ceiling.low < 0.8 < ceiling.high


def test_noise_ceiling_by_hand():
    valences = [[0.2, 0.4], [0.9], [0.1], [0.7, 0.7, 0.4]]
    within = (0.02 + 0.06) / (1 + 2)
    expected = 1 - within / np.var(np.concatenate(valences), ddof=1)
    assert noise_ceiling(*by_other_artists(valences)).value == pytest.approx(expected)


def test_noise_ceiling_counts_an_artist_once_per_text():
    valences = [[0.2, 0.4, 0.9], [0.9, 0.8], [0.1]]
    artists = [["a", "a", "b"], ["c", "c"], ["a"]]
    merged = [[0.3, 0.9], [0.85], [0.1]]
    expected, ceiling = noise_ceiling(*by_other_artists(merged)), noise_ceiling(valences, artists)
    assert ceiling == pytest.approx(expected)
