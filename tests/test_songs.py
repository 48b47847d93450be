"""The song table: reading, cleaning, splitting, pickles."""

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lyric_utils as lu
from lyric_utils.songs import normalise_lyrics, words_key

RIVER = "We walked along the river and the morning was warm,\nand nobody asked where we had been."
ROOF = "Nothing but rain on the roof tonight, my friend,\nand I can hear you thinking of the sea."
KITCHEN = "She is singing in the kitchen with the radio on,\nand the kettle keeps the time for her."
GERMAN = "Wir gehen heute Abend durch die Stadt und niemand weiß, wohin der Weg uns führen wird."


def table(lyrics, valence=0.5, **columns):
    """A song table of these lyrics."""
    count = len(lyrics)
    valence = valence if isinstance(valence, list) else [valence] * count
    songs = pd.DataFrame({"row": range(count), "artist": "Ann Example", "title": "River"}, dtype=object)
    return songs.assign(lyrics=pd.Series(lyrics, dtype=object), valence=pd.Series(valence, dtype=object), **columns)


def verses(count):
    """Songs of different words, two by each artist."""
    words = ["river", "morning", "kitchen", "window", "garden", "letter", "summer", "station", "winter", "harbour"]
    lyrics = [f"I sat beside the {words[n % 10]} and the {words[n // 10]} was all I knew" for n in range(count)]
    artists = [f"Artist {n // 2}" for n in range(count)]
    return table(lyrics, [n / count for n in range(count)], artist=artists)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("kind", [".csv", ".CSV", ".xlsx"])
def test_read_kaggle_table(kind, tmp_path):
    path = tmp_path / f"songs{kind}"
    lyrics = [RIVER.replace("\n", "\r\n"), "null", ""]
    kaggle = pd.DataFrame(
        {"artist": ["Ann", "Björk", "1975"], "seq": lyrics, "song": ["A", "B", "C"], "label": [0.1, 0.25, 1]},
        index=[7, 3, 11],
    )
    if kind == ".xlsx":
        kaggle.to_excel(path)
    else:
        kaggle.to_csv(path, encoding="utf-8-sig")
    songs = lu.read_songs(path)
    assert songs.columns.tolist() == ["row", "artist", "title", "lyrics", "valence"]
    assert songs["row"].tolist() == [7, 3, 11]
    assert songs["valence"].astype(float).tolist() == [0.1, 0.25, 1]
    assert songs["lyrics"].map(normalise_lyrics).tolist()[:2] == [RIVER, "null"]
    assert songs["lyrics"].isna().tolist() == [False, False, True]


def test_read_own_names_and_extra_columns(tmp_path):
    path = tmp_path / "songs.csv"
    own = {"title": ["A"], "lyrics": [RIVER], "valence": [0.5], "artist": ["Ann"], "genre": ["folk"]}
    pd.DataFrame(own).to_csv(path)
    songs = lu.read_songs(path)
    assert songs.columns.tolist() == ["row", "artist", "title", "lyrics", "valence", "genre"]
    assert songs.loc[0, "row"] == 0


def test_read_keeps_row_numbers_of_an_own_column(tmp_path):
    path = tmp_path / "songs.csv"
    own = {"row": [5, 2], "title": "A", "lyrics": RIVER, "valence": 0.5, "artist": "Ann"}
    pd.DataFrame(own).to_csv(path, index=False)
    assert lu.read_songs(path)["row"].tolist() == [5, 2]


def test_excel_spells_carriage_returns(tmp_path):
    path = tmp_path / "songs.xlsx"
    table([RIVER.replace("\n", "_x000D_\n")]).to_excel(path, index=False)
    assert normalise_lyrics(lu.read_songs(path).loc[0, "lyrics"]) == RIVER


# ---------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    ("lyrics", "valence", "reason"),
    [
        (None, 0.5, "lyrics missing"),
        (float("nan"), 0.5, "lyrics missing"),
        ("", 0.5, "lyrics empty"),
        (" \r\n\t\x00\x07 ", 0.5, "lyrics empty"),
        ("12 ... 😀", 0.5, "lyrics not text"),
        (17, 0.5, "lyrics not text"),
        ([ROOF], 0.5, "lyrics not text"),
        (ROOF, None, "valence missing"),
        (ROOF, "happy", "valence not a number"),
        (ROOF, True, "valence not a number"),
        (ROOF, 1j, "valence not a number"),
        (ROOF, "nan", "valence not a number"),
        (ROOF, [0.5], "valence not a number"),
        (ROOF, -0.001, "valence outside 0 to 1"),
        (ROOF, "1.001", "valence outside 0 to 1"),
        (ROOF, float("inf"), "valence outside 0 to 1"),
        (GERMAN, 0.5, "lyrics not English"),
        (RIVER.upper().replace(",", " -"), 0.5, "same words as an earlier song (merged)"),
    ],
)
def test_each_reason_is_counted(lyrics, valence, reason):
    songs = table([RIVER, lyrics, KITCHEN], [0.5, valence, "0.25"])
    kept, report = lu.clean_songs(songs)
    assert kept["lyrics"].tolist() == [RIVER, KITCHEN]
    assert kept["valence"].tolist() == [0.5, 0.25]
    expected = {"row": 1, "artist": "Ann Example", "title": "River", "reason": reason}
    assert report.dropped.to_dict("records") == [expected]
    assert report.counts.to_dict() == {reason: 1}
    assert str(report).startswith("3 rows in, 2 songs kept, 1 rows accounted for")


def test_same_words_are_merged():
    copies = [RIVER, ROOF, RIVER.upper(), RIVER.replace(",", " !").replace("\n", "\r\n\r\n\r\n")]
    kept, report = lu.clean_songs(table(copies, [0.1, 0.9, 0.2, 0.6], artist=["Ann", "Ben", "Cat", None]))
    assert kept["valence"].tolist() == pytest.approx([0.3, 0.9])
    assert kept["valences"].tolist() == [[0.1, 0.2, 0.6], [0.9]]
    assert kept["artists"].tolist() == [["Ann", "Cat", ""], ["Ben"]]
    assert kept.loc[0, ["row", "artist", "lyrics"]].tolist() == [0, "Ann", RIVER]
    assert (report.rows_in, report.rows_kept, len(report.dropped)) == (4, 2, 2)


def test_same_words_in_another_unicode_form():
    assert words_key("Cafe\u0301 ﬁre, don’t!") == words_key("CAFÉ fire dont")


def test_merged_copies_all_else_from_the_first():
    kept, _ = lu.clean_songs(table([RIVER, RIVER], [0.1, 0.2], genre=[None, "folk"]))
    assert kept["genre"].isna().tolist() == [True]


def test_normalise_lyrics():
    assert normalise_lyrics("  a \r\n\r\n\r\n\r\n b\t\rc\x00d\ud800 \n") == "a\n\nb\nc d?"
    assert normalise_lyrics(5) == 5


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.binary(max_size=5),
    st.text(max_size=30),
    st.text(st.characters(categories=["Cc", "Cf", "Cs", "Co", "Mn"]), max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
    st.dates(),
    st.decimals(allow_nan=False),
    st.just(pd.NA),
    st.just(pd.NaT),
    st.just(10**400),
)
lyrics = st.one_of(anything, st.sampled_from([RIVER, RIVER.upper(), ROOF, KITCHEN, GERMAN, RIVER + "\ud800"]))
valence = st.one_of(anything, st.floats(0, 1), st.floats(0, 1).map(str))
row = st.fixed_dictionaries(
    {"artist": anything, "title": anything, "lyrics": lyrics, "valence": valence},
    optional={"row": anything, "valences": anything, "artists": anything, "genre": anything},
)


@settings(max_examples=60)
@given(st.lists(row, max_size=12))
@example([{"artist": "\ud800", "title": "\udfff", "lyrics": RIVER, "valence": 0.5, "genre": "\ud800"}])
def test_rows_in_equals_rows_accounted_for(rows):
    columns = dict.fromkeys(name for line in rows for name in line)
    songs = pd.DataFrame({name: pd.Series([line.get(name) for line in rows], dtype=object) for name in columns})
    before = songs.copy(deep=True)
    try:
        kept, report = lu.clean_songs(songs)
    except lu.LyricsError:
        kept = None
    pd.testing.assert_frame_equal(songs, before)
    if kept is None:
        return
    assert report.rows_in == len(songs) == report.rows_kept + len(report.dropped)
    assert report.rows_kept == len(kept) == kept["lyrics"].map(words_key).nunique()
    assert report.dropped["reason"].notna().all()
    assert kept["valence"].between(0, 1).all()
    merged = (report.dropped["reason"] == "same words as an earlier song (merged)").sum()
    assert kept["valences"].map(len).sum() == len(kept) + merged
    for text in kept[["artist", "title", "lyrics"]].to_numpy().ravel():
        assert text == normalise_lyrics(text)
        text.encode()
    again, second = lu.clean_songs(kept)
    assert len(second.dropped) == 0
    pd.testing.assert_frame_equal(again, kept)


@given(st.text())
def test_normalising_twice_changes_nothing_more(text):
    assert normalise_lyrics(normalise_lyrics(text)) == normalise_lyrics(text)


@pytest.mark.parametrize("songs", [table([]), table([None, ""]), table([RIVER]).drop(columns="lyrics"), pd.DataFrame()])
def test_nothing_to_clean(songs):
    with pytest.raises(lu.LyricsError):
        lu.clean_songs(songs)


# ---------------------------------------------------------------- splitting


@pytest.mark.parametrize("by", ["artist", "song"])
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_split_shares_nothing(by, seed):
    songs = verses(100)
    sides = lu.split_songs(songs, seed, by=by)
    assert sorted(row for side in sides for row in side["row"]) == songs["row"].tolist()
    assert [len(side) for side in sides] == [80, 10, 10]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert not set(sides[one]["lyrics"].map(words_key)) & set(sides[other]["lyrics"].map(words_key))
        if by == "artist":
            assert not set(sides[one]["artist"]) & set(sides[other]["artist"])


def test_split_ignores_how_an_artist_is_written():
    songs = verses(100)
    songs["artist"] = [f" {name.upper()}" if n % 2 else name for n, name in enumerate(songs["artist"])]
    train, _, test = lu.split_songs(songs)
    assert not set(train["artist"].str.strip().str.lower()) & set(test["artist"].str.strip().str.lower())


def test_split_is_seeded():
    first, same, other = (lu.split_songs(verses(50), seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first.test, same.test)
    assert first.test["row"].tolist() != other.test["row"].tolist()


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (0.1, 0.8, 0.1)])
def test_split_fractions(fractions):
    sides = lu.split_songs(verses(100), fractions=fractions, by="song")
    assert [len(side) / 100 for side in sides] == pytest.approx(fractions)


def test_split_sizes_of_the_paper():
    songs = table([f"love {n}" for n in range(30_000)])
    assert [len(side) for side in lu.split_songs(songs, by="song")] == [24_000, 3_000, 3_000]


def test_stored_split():
    songs = verses(6).assign(split=["train", "test", "validation", "train", "train", "train"])
    assert [side["row"].tolist() for side in lu.split_songs(songs, by="stored")] == [[0, 3, 4, 5], [2], [1]]


@pytest.mark.parametrize(
    ("songs", "options"),
    [
        (verses(20), {"by": "title"}),
        (verses(20), {"by": "stored"}),
        (verses(20).assign(split="train"), {"by": "stored"}),
        (verses(20), {"fractions": (0.8, 0.1, 0.2)}),
        (verses(20), {"fractions": (0.8, 0.2, 0.0)}),
        (verses(20), {"fractions": (0.8, float("nan"), 0.1)}),
        (verses(20), {"fractions": (0.5, 0.5)}),
        (verses(4), {}),
        (verses(2), {"by": "song"}),
        (verses(6), {"fractions": (0.01, 0.01, 0.98)}),
        (verses(20).head(0), {"by": "song"}),
        (table([RIVER, RIVER.upper(), ROOF, KITCHEN]), {"by": "song"}),
    ],
)
def test_impossible_splits(songs, options):
    with pytest.raises(lu.LyricsError):
        lu.split_songs(songs, **options)


# ---------------------------------------------------------------- pickles

cell = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.floats(0, 1), max_size=3),
)


@settings(max_examples=30)
@given(st.lists(st.tuples(cell, cell, cell, cell, cell), min_size=1, max_size=8))
def test_pickle_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "round_trip" / "songs.pkl"
    columns = zip(["artist", "title", "lyrics", "valence", "genre"], zip(*rows, strict=True), strict=True)
    songs = pd.DataFrame({"row": range(len(rows))} | {name: pd.Series(cells, dtype=object) for name, cells in columns})
    lu.save_songs(songs, path)
    pd.testing.assert_frame_equal(lu.load_songs(path), pd.DataFrame(songs.to_dict("list")))
    first = path.read_bytes()
    lu.save_songs(songs.copy(deep=True), path)
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]


def test_pickle_of_cleaned_songs(tmp_path):
    kept, _ = lu.clean_songs(table([RIVER, ROOF, RIVER], [0.1, 0.2, 0.4]))
    lu.save_songs(kept, tmp_path / "new" / "songs.pkl")
    pd.testing.assert_frame_equal(lu.read_songs(tmp_path / "new" / "songs.pkl"), kept, check_dtype=False)


@pytest.mark.parametrize("value", [b"bytes", {1}, object(), 1j, pd.Timestamp(0), "lone surrogate \ud800"])
def test_only_plain_values_are_saved(value, tmp_path):
    with pytest.raises(lu.LyricsError, match=r"songs\.pkl"):
        lu.save_songs(table([RIVER], genre=pd.Series([value], dtype=object)), tmp_path / "songs.pkl")
    assert not list(tmp_path.iterdir())


def test_value_within_itself_is_not_saved(tmp_path):
    endless = []
    endless.append(endless)
    with pytest.raises(lu.LyricsError):
        lu.save_songs(table([RIVER], genre=pd.Series([endless])), tmp_path / "songs.pkl")
