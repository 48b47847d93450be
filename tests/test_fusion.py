"""Words and sound together: what counts, what is missing, what is wrong."""

import warnings

import numpy as np
import pandas as pd
import pytest

import lyric_utils as lu
from lyric_utils.audio import AUDIO_FEATURES
from lyric_utils.fusion import FusionRegressor, sound_features, sound_model


def draw_songs(count: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Songs whose valence is half danceability and half what the words say, and that prediction of the words."""
    rng = np.random.default_rng(seed)
    songs = pd.DataFrame({name: rng.uniform(0.1, 0.9, count) for name in AUDIO_FEATURES})
    whole = {"key": rng.integers(-1, 12, count), "mode": rng.integers(0, 2, count), "time_signature": 4}
    songs = songs.assign(**whole, loudness=-8.0, tempo=120.0, duration_ms=200_000)
    words = rng.uniform(0.1, 0.9, count)
    return songs.assign(valence=(songs["danceability"] + words) / 2, lyrics="la la"), words


SONGS, WORDS = draw_songs(200)
NEW, NEW_WORDS = draw_songs(50, seed=1)


@pytest.fixture(scope="module")
def fusion() -> FusionRegressor:
    return FusionRegressor().fit(SONGS, WORDS)


def test_words_lower_the_error_of_sound(fusion):
    both = fusion.predict(NEW, NEW_WORDS)
    sound = sound_model().fit(SONGS[[*AUDIO_FEATURES]], SONGS["valence"]).predict(NEW[[*AUDIO_FEATURES]])
    assert both.shape == (50,)
    assert both.min() >= 0
    assert both.max() <= 1
    assert lu.score(NEW["valence"], both)["mse"] < 0.5 * lu.score(NEW["valence"], sound)["mse"]


def test_further_columns_count_in_the_sound_model():
    names = [*AUDIO_FEATURES, "year"]
    model = sound_model().fit(SONGS.assign(year=WORDS)[names], SONGS["valence"])
    prediction = model.predict(NEW.assign(year=NEW_WORDS)[names])
    assert lu.score(NEW["valence"], prediction)["r2"] > 0.8


def test_a_model_of_lyrics_gives_the_words_itself(fusion):
    class Model:
        def __init__(self, words):
            self.words = words

        def predict(self, lyrics):
            assert list(lyrics) == ["la la"] * len(self.words)
            return self.words

    made = FusionRegressor(Model(WORDS)).fit(SONGS)
    made.words_model = Model(NEW_WORDS)
    assert np.array_equal(made.predict(NEW), fusion.predict(NEW, NEW_WORDS))


def test_valence_and_order_do_not_change_a_prediction(fusion):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction = fusion.predict(NEW, NEW_WORDS)
        reverse = fusion.predict(NEW.drop(columns="valence").iloc[::-1], NEW_WORDS[::-1])
    assert np.allclose(reverse[::-1], prediction)


def test_songs_without_audio_are_predicted_from_their_words(fusion):
    some = NEW.assign(energy=NEW["energy"].where(NEW.index >= 3), tempo=NEW["tempo"].where(NEW.index != 4))
    with pytest.warns(UserWarning, match="4 of 50 songs lack audio features: words alone count"):
        prediction = fusion.predict(some, NEW_WORDS)
    silent = [0, 1, 2, 4]
    assert np.allclose(prediction[silent], fusion.words_alone.predict(pd.DataFrame({"words": NEW_WORDS[silent]})))
    assert np.corrcoef(NEW_WORDS[silent], prediction[silent])[0, 1] > 0.99
    heard = NEW.index.difference(silent)
    assert np.array_equal(prediction[heard], fusion.predict(NEW, NEW_WORDS)[heard])


def test_training_songs_without_audio_do_not_stop_the_training():
    with pytest.warns(UserWarning, match="100 of 200 songs lack"):
        fusion = FusionRegressor().fit(SONGS.assign(energy=SONGS["energy"].where(SONGS.index < 100)), WORDS)
    assert np.array_equal(
        fusion.predict(NEW, NEW_WORDS), FusionRegressor().fit(SONGS[:100], WORDS[:100]).predict(NEW, NEW_WORDS)
    )


def test_audio_of_no_song_is_an_error():
    with pytest.warns(match="200 of 200"), pytest.raises(lu.LyricsError, match="no song has all audio features"):
        FusionRegressor().fit(SONGS.assign(energy=np.nan), WORDS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("energy", 61, r"energy in row 2 is '61', but must lie between 0 and 1\."),
        ("energy", "loud", "energy in row 2 is 'loud'"),
        ("tempo", 2000, "tempo in row 2 is '2000', but must lie between 0 and 400 beats per minute"),
        ("duration_ms", 215, "between 5,000 and 36,000,000 ms"),
        ("loudness", 60, "between -60 and 10 dB"),
    ],
)
def test_audio_out_of_its_range_is_named_with_its_unit(fusion, name, value, message):
    wrong = NEW.assign(**{name: NEW[name].astype(object).where(NEW.index != 2, value)})
    for call in (fusion.predict, FusionRegressor().fit):
        with pytest.raises(lu.LyricsError, match=message):
            call(wrong, NEW_WORDS)


@pytest.mark.parametrize(
    ("songs", "words", "message"),
    [
        (NEW.drop(columns="tempo"), NEW_WORDS, "column 'tempo' is missing"),
        (NEW, NEW_WORDS[:3], r"one prediction per song is needed, but the shape is \(3,\)"),
        (NEW, [*NEW_WORDS[1:], np.nan], "must not contain infs or NaNs"),
        (NEW, None, r"words are missing: give predictions of them, or make FusionRegressor\(words_model\)"),
        (NEW.drop(columns="lyrics"), None, "column 'lyrics' is missing"),
        ("a table", NEW_WORDS, "DataFrame"),
    ],
)
def test_what_is_missing_is_named(fusion, songs, words, message):
    with pytest.raises(lu.LyricsError, match=message):
        fusion.predict(songs, words)


def test_fit_needs_valence_and_predict_needs_a_fit():
    with pytest.raises(lu.LyricsError, match="column 'valence' is missing"):
        FusionRegressor().fit(NEW.drop(columns="valence"), NEW_WORDS)
    with pytest.raises(lu.LyricsError, match="call fit first"):
        FusionRegressor().predict(NEW, NEW_WORDS)
    with pytest.raises(lu.LyricsError, match="words_model"):
        FusionRegressor("a model")


def test_keys_lie_on_a_circle_with_the_unknown_in_its_middle():
    points = sound_features(NEW.iloc[:3].assign(key=[0, 11, -1]))[["key_cos", "key_sin"]].to_numpy()
    assert np.allclose(np.linalg.norm(points, axis=1), [1, 1, 0])
    assert np.linalg.norm(points[0] - points[1]) < 0.6
