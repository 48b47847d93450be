"""Clean songs, tell their words and artists apart, and split them."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, groupby, islice
from statistics import fmean
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import py3langid
from pydantic import PlainValidator

from lyric_utils._checks import Real, Seed, checked
from lyric_utils._files import LyricsError
from lyric_utils._progress import progress
from lyric_utils.tables import as_number, as_song_table

ENGLISH = "the and you your my it that with what this for of is to i i'm don't be we are was have can know when all"
ENGLISH = frozenset([*ENGLISH.split(), "just", "like", "but", "they", "on"])
SECTION_MARK = re.compile(r"[\[{][^\]}\n]*[\]}]")  # such as [Chorus]
SECTION_LINE = re.compile(r"[\W\d]*(?:repeat )?(?:pre-|post-)?(?:chorus|verse|bridge|intro|outro|refrain|interlude|"
                          r"instrumental)\b[\W\dx]*", re.IGNORECASE)  # fmt: skip
GUESTS = re.compile(r"[\s(\[](?:(?:feat|ft)\.|(?:feat|ft|featuring)\s).*", re.DOTALL)


class CleaningReport(NamedTuple):
    """Where every row went: `rows_in == rows_kept + len(dropped)`; why is in the column `reason` of `dropped`."""

    rows_in: int
    rows_kept: int
    dropped: pd.DataFrame

    @property
    def counts(self) -> pd.Series:
        """Rows by reason, most frequent first."""
        return self.dropped["reason"].value_counts()

    def __str__(self) -> str:
        reasons = "".join(f"\n  {count:>7,}  {reason}" for reason, count in self.counts.items())
        rows_in, kept, dropped = self.rows_in, self.rows_kept, len(self.dropped)
        return f"{rows_in:,} rows in, {kept:,} songs kept, {dropped:,} rows accounted for{reasons}"


@checked
def clean_songs(songs: pd.DataFrame) -> tuple[pd.DataFrame, CleaningReport]:
    """Normalise the text, drop rows that cannot be used, and merge rows with the same words into one song.

    Rows are dropped, in this order, for lyrics that are missing, empty, or not text (no letter in them), for a valence
    that is missing, not a number, or outside 0 to 1, and for lyrics that are not English. Rows whose `words_key` agrees
    become one song: its valence is their mean, its columns `valences` and `artists` keep the individual values, and all
    else comes from the first. A table cleaned before stays as it is. Raises `LyricsError` if no row can be used.
    """
    songs = as_song_table(songs)
    lyrics = pd.Series([normalise_lyrics(value) for value in songs["lyrics"]], index=songs.index, dtype=object)
    valence = songs["valence"].map(as_number).astype(float)
    reason = pd.Series(None, index=songs.index, dtype=object)
    for name, fails in {
        "lyrics missing": lyrics.isna(),
        "lyrics empty": lyrics.map(lambda value: isinstance(value, str) and not value),
        "lyrics not text": ~lyrics.map(has_words),
        "valence missing": songs["valence"].isna(),
        "valence not a number": valence.isna(),
        "valence outside 0 to 1": ~valence.between(0, 1),
    }.items():
        reason[reason.isna() & fails] = name
    to_identify = progress(reason.index[reason.isna()], desc="identify language", unit="song", delay=2)
    reason.loc[[index for index in to_identify if not is_english(lyrics[index])]] = "lyrics not English"
    named = songs[["artist", "title"]].astype(object)
    named = named.where(named.notna(), "").map(lambda name: normalise_lyrics(str(name)))
    usable = songs.assign(**named, lyrics=lyrics[reason.isna()].map(str), valence=valence)[reason.isna()]
    if usable.empty:
        raise LyricsError(f"No usable song among {len(songs)} rows: {reason.value_counts().to_dict()}.")
    words = usable["lyrics"].map(_words_hash)
    reason[usable.index[words.duplicated()]] = "same words as an earlier song (merged)"
    merged = pd.DataFrame(map(_merged_before, usable.to_dict("records")), usable.index).groupby(words, sort=False).sum()
    columns = {"valence": [*merged["valences"].map(fmean)], **merged.to_dict("list")}
    kept = usable[~words.duplicated()].assign(**columns)
    dropped = songs.loc[reason.notna(), ["row", "artist", "title"]].assign(reason=reason.dropna())
    return kept.reset_index(drop=True), CleaningReport(len(songs), len(kept), dropped.reset_index(drop=True))


def _merged_before(song: dict) -> dict[str, list]:
    """The values of all rows that an earlier cleaning merged into this song, whose valence is the mean of theirs."""
    valences, artists = song.get("valences"), song.get("artists")
    are_lists = isinstance(valences, list) and isinstance(artists, list) and len(valences) == len(artists) > 0
    are_plain = are_lists and {*map(type, valences)} == {float} and {*map(type, artists)} == {str}
    if not (are_plain and fmean(valences) == song["valence"]):
        valences, artists = [song["valence"]], [song["artist"]]
    return {"valences": valences, "artists": artists}


def normalise_lyrics(lyrics: object) -> object:
    """A text with `\\n` line ends, without control characters, blanks around lines or two blank lines in a row.

    Section marks such as [Chorus], which are not sung, are taken out.
    """
    if not isinstance(lyrics, str):
        return lyrics
    text = limit_marks(lyrics).encode("utf-8", "replace").decode()  # a lone surrogate cannot be tokenized
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = [line.strip() for line in SECTION_MARK.sub(" ", text).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join("" if SECTION_LINE.fullmatch(line) else line for line in lines)).strip()


def list_of_texts(lyrics: Iterable[str]) -> list[str]:
    """The songs as a list of texts; raises `LyricsError` for one text, a table, a dict, or a song that is no text."""
    if isinstance(lyrics, str | bytes | dict | set | pd.DataFrame) or not isinstance(lyrics, Iterable):
        raise LyricsError(f"not a list of texts, but {type(lyrics).__name__}: give songs['lyrics'], or [brackets].")
    lyrics = list(lyrics)
    if wrong := [n for n, text in enumerate(lyrics) if not isinstance(text, str)]:
        kind = type(lyrics[wrong[0]]).__name__
        raise LyricsError(f"song {wrong[0]} (counting from 0) is {kind}, not str: run clean_songs first.")
    return [*map(limit_marks, lyrics)]


Lyrics = Annotated[Iterable[str], PlainValidator(list_of_texts)]  # as arguments, which arrive as `list_of_texts`


def as_sung(lyrics: Iterable[str]) -> list[str]:
    """What a model reads of the songs: normalised, as those it learned from, unless no words are left by that."""
    return [text if has_words(text) else raw for raw in lyrics for text in [normalise_lyrics(raw)]]


def limit_marks(text: str) -> str:
    """A text with at most 30 combining marks in a row, as in Unicode's stream-safe format (UAX #15).

    No language needs more, and normalising a text takes time that grows with the square of such a run.
    """
    if not re.search(r"[^\0-\u02ff]{31}", text):
        return text
    runs = groupby(text, lambda mark: unicodedata.combining(mark) > 0)
    return "".join(chain.from_iterable(islice(run, 30 if are_marks else None) for are_marks, run in runs))


def has_words(text: object) -> bool:
    """Whether it is a text with a letter in it."""
    return isinstance(text, str) and any(map(str.isalpha, text))


def is_english(lyrics: str) -> bool:
    """Whether English is the most likely language, by py3langid (Lui & Baldwin 2012), offline and deterministic."""
    words = lyrics[:5_000].casefold().split()
    if 4 * sum(map(ENGLISH.__contains__, words)) > len(words):  # holds for 81% of the subset's songs, all of them "en"
        return True
    return py3langid.classify(lyrics[:5_000])[0] == "en"  # as the far larger lingua says, for 99.8% of 6,424 songs


def count_not_english(lyrics: Iterable[str]) -> int:
    """How many songs are not in English; texts of less than twelve words are too short to tell."""
    return sum(not is_english(text) for text in lyrics if len(text.split()) >= 12)


def as_cell(name: object) -> str:
    """A name as one line for a .csv file, which a spreadsheet shows as text and never runs as a formula (CWE-1236)."""
    name = " ".join(str(normalise_lyrics(name)).split())
    return f"'{name}" if name.startswith((*"=+-@＝＋－＠",)) else name


def words_key(lyrics: str) -> str:
    """The words of a song, case, punctuation and spacing aside: equal for two copies of the same lyrics."""
    return " ".join(re.sub(r"[^\w\s]|_", "", unicodedata.normalize("NFKC", limit_marks(lyrics)).casefold()).split())


def _words_hash(lyrics: str) -> bytes:
    """128 bits that stand for the words of a song, so that a table's words need not be held twice."""
    return hashlib.blake2b(words_key(lyrics).encode("utf-8", "replace"), digest_size=16).digest()


def artist_key(name: object) -> str:
    """What identifies an artist: case, accents, spacing, punctuation, a leading "the" and guests ("feat.") aside."""
    name = unicodedata.normalize("NFKD", limit_marks(name) if isinstance(name, str) else "").casefold().strip()
    name = GUESTS.sub("", name).removeprefix("the ").replace("&", "and")
    return "".join(filter(str.isalnum, name))


def fingerprint_songs(songs: pd.DataFrame) -> str:
    """SHA-256 of the songs' words and valences, in their order."""
    cells = zip(songs["lyrics"], songs["valence"], strict=True)
    return hashlib.sha256(b"".join(_words_hash(text) + b"%.6g" % valence for text, valence in cells)).hexdigest()


class Split(NamedTuple):
    """Three song tables that share no song."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


@checked
def split_songs(
    songs: pd.DataFrame, seed: Seed = 42, fractions: tuple[Real, Real, Real] = (0.8, 0.1, 0.1), by: str = "artist"
) -> Split:
    """Split a cleaned song table into train, validation and test, whose shares are `fractions`, adding up to 1.

    By "artist", a hash of the seed and `artist_key` gives each artist one side in all tables, so the fractions hold in
    expectation. "song" draws songs one by one. "stored" reads the column `split`; a song without one is left out.
    Raises `LyricsError` if two songs have the same words, an argument makes no sense, or a side would be empty.
    """
    songs = as_song_table(songs, ["artist", "lyrics"])
    hashes = pd.Series([*map(_words_hash, list_of_texts(songs["lyrics"]))])
    if again := songs.loc[hashes.duplicated(), "row"].tolist():
        raise LyricsError(f"row {again[0]} has the same words as an earlier row: run clean_songs before split_songs.")
    if by == "stored" and "split" in songs.columns:
        sides = songs["split"].astype(object).where(songs["split"].notna(), None).to_numpy()
        if unknown := set(songs["split"].dropna()).difference(Split._fields):
            raise LyricsError(f"column 'split' holds {min(map(repr, unknown))}; use {', '.join(Split._fields)}.")
    elif by not in ("artist", "song"):
        raise LyricsError(f"by={by!r}: songs are split by 'artist', by 'song', or as 'stored' in a column 'split'.")
    elif not min(fractions) > 0 or not np.isclose(sum(fractions), 1):
        raise LyricsError(f"fractions={fractions}: three positive shares that add up to 1 are needed.")
    elif by == "artist":
        keys = [artist_key(artist) or words.hex() for artist, words in zip(songs["artist"], hashes, strict=True)]
        numbers = [int(hashlib.sha256(f"{seed} {key}".encode()).hexdigest()[:12], 16) / 16**12 for key in keys]
        sides = np.array(Split._fields)[np.searchsorted(np.cumsum(fractions)[:2], numbers, side="right")]
    else:
        from sklearn.model_selection import train_test_split

        sides, rest = np.full(len(songs), "train", dtype=object), np.arange(len(songs))
        for side, share in (("test", fractions[2]), ("validation", fractions[1] / (1 - fractions[2]))):
            with suppress(ValueError):  # too few songs: they stay in "train"
                rest, drawn = train_test_split(np.sort(rest), test_size=share, random_state=seed)
                sides[drawn] = side
    split = Split(*(songs[sides == side].reset_index(drop=True) for side in Split._fields))
    if empty := [side for side, table in split._asdict().items() if table.empty]:
        advice = "Give more songs or artists, another seed, by='song', or by='stored' with a column 'split'."
        raise LyricsError(f"{len(songs):,} songs leave {' and '.join(empty)} empty. {advice}")
    return split
