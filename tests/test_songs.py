"""The song table: reading, cleaning, splitting, pickles."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lyric_utils as lu
from lyric_utils.songs import artist_key, as_sung, fingerprint_songs, normalise_lyrics, words_key
from lyric_utils.tables import read_blocks

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


def test_row_numbers_that_are_none_give_way_to_positions(tmp_path):
    path = tmp_path / "songs.csv"
    path.write_text(f",artist,title,lyrics\n7,a,b,c\n\nx,a,b,c\n1e400,a,b,c\n{10**40},a,b,c\n\n,a,b,c\n12.0,a,b,c\n")
    expected = [7, 1, 2, 3, 4, 12]
    assert lu.read_songs(path, ["lyrics"])["row"].tolist() == expected
    for rows in (1, 2, 3):
        assert [row for block in read_blocks(path, rows, ["lyrics"]) for row in block["row"]] == expected


def test_excel_spells_carriage_returns(tmp_path):
    path = tmp_path / "songs.xlsx"
    table([RIVER.replace("\n", "_x000D_\n")]).to_excel(path, index=False)
    assert normalise_lyrics(lu.read_songs(path).loc[0, "lyrics"]) == RIVER


def write_csv(separator=",", encoding="utf-8", end="\n"):
    def write(songs, path):
        text = songs.to_csv(index=False, sep=separator, lineterminator=end)
        path.write_bytes(text.encode(encoding))

    return write


def write_folder(songs, path):
    path.mkdir()
    for title, lyrics in zip(songs["title"], songs["lyrics"], strict=True):
        (path / f"{title}.txt").write_text(lyrics, encoding="utf-8-sig")
    (path / "notes.md").touch()


FORMATS = {
    "comma": ("songs.csv", write_csv()),
    "semicolon": ("songs.csv", write_csv(";")),
    "tab": ("songs.csv", write_csv("\t")),
    "tsv": ("songs.tsv", write_csv("\t")),
    "comma in a tsv": ("songs.tsv", write_csv(",")),
    "Windows line ends": ("songs.csv", write_csv(end="\r\n")),
    "BOM": ("songs.csv", write_csv(encoding="utf-8-sig")),
    "UTF-16": ("songs.csv", write_csv("\t", encoding="utf-16")),
    "blank lines": ("songs.csv", lambda songs, path: path.write_text("\n \n" + songs.to_csv(index=False) + "\n\n")),
    "xlsx": ("songs.xlsx", lambda songs, path: songs.to_excel(path, index=False)),
    "json records": ("songs.json", lambda songs, path: songs.to_json(path, orient="records")),
    "json columns": ("songs.json", lambda songs, path: songs.to_json(path)),
    "json lists": ("songs.json", lambda songs, path: path.write_text(json.dumps(songs.to_dict("list")))),
    "jsonl": ("songs.jsonl", lambda songs, path: songs.to_json(path, orient="records", lines=True)),
    "pickle": ("songs.pkl", lambda songs, path: lu.save_songs(songs.assign(artist="", valence=0.5), path)),
    "folder": ("songs", write_folder),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_songs(name, tmp_path):
    file, write = FORMATS[name]
    songs = pd.DataFrame({"title": list("ABCDE"), "lyrics": [RIVER, ROOF, 'say "hi", Björk', KITCHEN, GERMAN]})
    write(songs, tmp_path / file)
    read = lu.read_songs(tmp_path / file, ["lyrics"])
    assert read[["row", "artist"]].to_dict("list") == {"row": [0, 1, 2, 3, 4], "artist": [""] * 5}
    assert read[["title", "lyrics"]].map(normalise_lyrics).to_dict("list") == songs.to_dict("list")
    blocks = list(read_blocks(tmp_path / file, 2, ["lyrics"]))
    assert [len(block) for block in blocks] == [2, 2, 1]
    pd.testing.assert_frame_equal(pd.concat(blocks, ignore_index=True), read)


def test_lyrics_alone_are_a_table(tmp_path):
    path = tmp_path / "songs.csv"
    pd.DataFrame({" Lyrics ": [RIVER, None, ROOF]}).to_csv(path, index=False)
    songs = lu.read_songs(path, ["lyrics"])
    assert songs["lyrics"].tolist() == [RIVER, None, ROOF]
    assert songs.columns.tolist() == ["row", "artist", "title", "lyrics"]
    with pytest.raises(lu.LyricsError, match=r"'artist', 'title' \(or 'song'\), 'valence' \(or 'label'\) is missing"):
        lu.read_songs(path)


def test_headers_in_any_case(tmp_path):
    path = tmp_path / "songs.csv"
    path.write_text("ARTIST, Song ,Seq,Label,Split,Year\nAnn,River,la la,0.5,test,1999\n")
    assert lu.read_songs(path).columns.tolist() == ["row", "artist", "title", "lyrics", "valence", "split", "Year"]


@pytest.mark.parametrize("content", ["artist;lyrics\nAnn;la, la\n", '{"artist": "Ann", "lyrics": "la, la"}\n'])
def test_standard_input(content, monkeypatch, tmp_path):
    (tmp_path / "input").write_text(content)
    with open(tmp_path / "input") as file:
        monkeypatch.setattr(sys, "stdin", file)
        songs = lu.read_songs("-", ["lyrics"])
    assert songs.to_dict("records") == [{"row": 0, "artist": "Ann", "title": "", "lyrics": "la, la"}]


def test_standard_input_is_a_pipe():
    script = "import lyric_utils as lu; print(lu.read_songs('-', ['lyrics'])['lyrics'].tolist())"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, input="Lyrics\nla\n", capture_output=True, text=True, check=True)
    assert done.stdout == "['la']\n"
    done = subprocess.run(command, input="Artist\nAnn\n", capture_output=True, text=True)
    assert "LyricsError: standard input (-): column 'lyrics' (or 'seq') is missing" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"artist,lyrics\nAnn,la\nAnn,la,la,la\n", "line 3 cannot be read: it has 4 cells, the header 2"),
        ("a.csv", b"artist,lyrics\nAnn,la,la\n", "line 2 cannot be read: it has 3 cells"),
        ("a.csv", b'artist,lyrics\nAnn,"la\nla"\n\nAnn,"la\nla\n', "line 5 cannot be read: its quote is never closed"),
        ("a.csv", b'artist,lyrics\nAnn,"la" la\n', "line 2 cannot be read"),
        ("a.csv", b"artist,lyrics\nAnn,la\nZo\xeb,la\n", "line 3 is not UTF-8"),
        ("a.csv", b"artist,lyrics\n" + b"Ann,la la la la\n" * 1_999 + b"Zo\xeb,la\n", "line 2001 is not UTF-8"),
        ("a.csv", "artist,lyrics\nAnn,la\n".encode("utf-32"), "line 1 is not UTF-8"),
        ("a.csv", "lyrics\nla".encode("utf-16")[:-1], "is not UTF-8"),
        ("a.csv", b"lyrics,LYRICS\nla,la\n", "two columns are the song's 'lyrics'"),
        ("a.csv", b"lyrics,seq\nla,la\n", "two columns are the song's 'lyrics'"),
        ("a.csv", b"lyrics,genre,genre\nla,la,la\n", "two columns are the song's 'genre'"),
        ("a.jsonl", b'{"lyrics": "la"}\n\n{"lyrics"\n', "line 3 is not a JSON record"),
        ("a.jsonl", b'{"lyrics": "la"}\n7\n', "line 2 is not a JSON record"),
        ("a.json", b'[{"lyrics": "la"}, "la"]', "record 2 is not a JSON record"),
        ("a.json", b'{"lyrics": "la"}', "its columns are not lists"),
        ("a.json", b'{"lyrics": ["la"], "artist": []}', "its columns are not of one length"),
        ("a.json", b'{"lyrics": "la"}\n{"lyrics": "la"}\n', "Extra data"),
        ("a.txt", b"la la", "or a folder of .txt files"),
    ],
)
def test_broken_tables_are_refused_by_name(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(lu.LyricsError) as whole:
        lu.read_songs(path, ["lyrics"])
    with pytest.raises(lu.LyricsError) as streamed:
        list(read_blocks(path, 1, ["lyrics"]))
    assert str(whole.value) == str(streamed.value)
    assert f"{path}: " in str(whole.value)
    assert message in str(whole.value)


def test_records_need_not_have_every_field(tmp_path):
    path = tmp_path / "songs.jsonl"
    path.write_text('{"lyrics": "la"}\n{"artist": "Ann"}\n{"LYRICS": "lo", "artist": null}\n')
    for songs in (lu.read_songs(path, ["lyrics"]), pd.concat(read_blocks(path, 1, ["lyrics"]))):
        assert songs["artist"].tolist() == ["", "Ann", ""]
        assert songs["lyrics"].fillna("missing").tolist() == ["la", "missing", "lo"]


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


def test_section_marks_are_not_sung():
    marked = (
        "[Verse 1: Ann]\nDown to the river [x2]\n{Bridge}\nRepeat chorus\n(Chorus x 3)\nINTRO:\nThe chorus of birds"
    )
    assert normalise_lyrics(marked) == "Down to the river\n\nThe chorus of birds"
    assert normalise_lyrics("an open [ bracket\nand a ] closed one") == "an open [ bracket\nand a ] closed one"
    assert normalise_lyrics("(Instrumental)") == ""


def test_a_model_reads_songs_as_they_are_sung_or_as_they_are():
    assert as_sung(["[Chorus]\nhome", "[Instrumental]"]) == ["home", "[Instrumental]"]


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
    if by == "song":
        assert [len(side) for side in sides] == [80, 10, 10]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert not set(sides[one]["lyrics"].map(words_key)) & set(sides[other]["lyrics"].map(words_key))
        if by == "artist":
            assert not set(sides[one]["artist"]) & set(sides[other]["artist"])


def side_of_artist(split):
    return {artist_key(name): side for side, songs in split._asdict().items() for name in songs["artist"]}


def test_an_artist_is_on_the_same_side_in_every_table():
    songs = table([f"love {n}" for n in range(400)], artist=[f"Artist {n // 2}" for n in range(400)])
    first = side_of_artist(lu.split_songs(songs.iloc[:300]))
    other = songs.iloc[100:].sample(frac=1, random_state=0)
    other = other.assign(artist=[f" The {name.upper()} feat. Ann" for name in other["artist"]])
    second = side_of_artist(lu.split_songs(other))
    shared = first.keys() & second.keys()
    assert len(shared) == 100
    assert all(first[artist] == second[artist] for artist in shared)
    assert first["artist0"] == "train"  # the hash is the same on every machine and in every version
    assert side_of_artist(lu.split_songs(songs, seed=1)) != side_of_artist(lu.split_songs(songs))


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.7, 0.1, 0.2), (0.2, 0.3, 0.5)])
def test_fractions_hold_in_expectation(fractions):
    songs = table([f"love {n}" for n in range(2_000)], artist=[f"Artist {n}" for n in range(2_000)])
    shares = [len(side) / 2_000 for side in lu.split_songs(songs, fractions=fractions)]
    assert shares == pytest.approx(fractions, abs=0.03)


def test_songs_without_an_artist_are_split_one_by_one():
    songs = table([f"love {n}" for n in range(200)], artist=[None, "", "!!!", "?"] * 50)
    assert min(len(side) for side in lu.split_songs(songs)) > 5


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Beyoncé", "BEYONCE\u0301 "),
        ("The Beatles", "Beatles"),
        ("AC/DC", "ac-dc"),
        ("Jay-Z", "JAY Z"),
        ("Sinéad O'Connor", "Sinead O’Connor"),
        ("Simon & Garfunkel", "Simon and Garfunkel"),
        *(("Drake", f"Drake {guests}") for guests in ("feat. Rihanna", "(Ft. Rihanna)", "[featuring X]", "ft Rihanna")),
    ],
)
def test_artist_key_sees_through_spellings(name, other):
    assert artist_key(name) == artist_key(other) != ""


def test_artist_key_keeps_artists_apart():
    names = ["Little Feat", "Little", "The The", "Swift", "Taft", "Thea", "A", "椎名林檎", "Боря"]
    assert len({artist_key(name) for name in names}) == len(names)
    assert artist_key("!?") == artist_key("") == artist_key(None) == ""


def test_split_is_seeded():
    first, same, other = (lu.split_songs(verses(50), seed, by="song") for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first.test, same.test)
    assert first.test["row"].tolist() != other.test["row"].tolist()


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (0.1, 0.8, 0.1)])
def test_split_fractions(fractions):
    sides = lu.split_songs(verses(100), fractions=fractions, by="song")
    assert [len(side) / 100 for side in sides] == pytest.approx(fractions)


def test_split_by_song_is_what_it_always_was():
    assert lu.split_songs(verses(20), by="song").test["row"].tolist() == [0, 17]


def test_split_sizes_of_the_paper():
    songs = table([f"love {n}" for n in range(30_000)])
    assert [len(side) for side in lu.split_songs(songs, by="song")] == [24_000, 3_000, 3_000]


def test_stored_split():
    songs = verses(7).assign(split=["train", "test", "validation", "train", "train", "train", None])
    assert [side["row"].tolist() for side in lu.split_songs(songs, by="stored")] == [[0, 3, 4, 5], [2], [1]]


@pytest.mark.parametrize(
    ("songs", "options", "message"),
    [
        (verses(20), {"by": "title"}, "by='title'"),
        (verses(20), {"by": "stored"}, "a column 'split'"),
        (verses(20).assign(split="train"), {"by": "stored"}, "leave validation and test empty"),
        (verses(20).assign(split="dev"), {"by": "stored"}, "column 'split' holds 'dev'"),
        (verses(20), {"fractions": (0.8, 0.1, 0.2)}, "fractions="),
        (verses(20), {"fractions": (0.8, 0.2, 0.0)}, "fractions="),
        (verses(20), {"fractions": (0.8, float("nan"), 0.1)}, "fractions.1=nan: "),
        (verses(20), {"fractions": (0.5, 0.5)}, "fractions.2=<tuple>: "),
        (verses(2), {}, "empty. Give more songs or artists, another seed, by='song', or by='stored'"),
        (verses(2), {"by": "song"}, "empty. Give more songs"),
        (verses(20).head(0), {"by": "song"}, "0 songs leave train and validation and test empty"),
        (table([RIVER, RIVER.upper(), ROOF, KITCHEN]), {"by": "song"}, "row 1 has the same words"),
    ],
)
def test_impossible_splits(songs, options, message):
    with pytest.raises(lu.LyricsError) as caught:
        lu.split_songs(songs, **options)
    assert message in str(caught.value)


def test_fingerprint_tells_tables_apart():
    songs = verses(20)
    same = songs.assign(lyrics=songs["lyrics"].str.upper(), artist="me", valence=songs["valence"] * (1 + 1e-9))
    assert fingerprint_songs(songs) == fingerprint_songs(same)
    others = (songs.iloc[::-1], songs.head(19), songs.assign(valence=0.5), songs.assign(lyrics="la"))
    assert len({fingerprint_songs(table) for table in (songs, *others)}) == 5


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
