"""The song table: read it, clean it, split it, and keep it in a pickle that is safe to open."""

import csv
import hashlib
import io
import json
import pickle
import pickletools
import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, dropwhile, islice, zip_longest
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd
import py3langid

from lyric_utils._files import LyricsError, atomic_write
from lyric_utils._progress import progress

COLUMNS = ["artist", "title", "lyrics", "valence"]  # of a song table, which has a song per row, numbered in "row"
KAGGLE_NAMES = {"seq": "lyrics", "song": "title", "label": "valence"}
PLAIN_NAMES = {name: name for name in ("row", *COLUMNS, "split")} | KAGGLE_NAMES
KINDS = ".csv, .tsv, .json, .jsonl, .xlsx, .pkl"
STDIN = Path("-")
FORMAT, VERSION = "lyric_utils.songs", 1
# A pickle of plain builtins needs no others, and none of these imports, calls or builds an object.
PLAIN_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "EMPTY_LIST", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
GUESTS = re.compile(r"[\s(\[](?:(?:feat|ft)\.|(?:feat|ft|featuring)\s).*", re.DOTALL)


def read_songs(path: str | Path, needed: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a song table; its cells are kept as they are, for `clean_songs` to judge.

    `path` is a `.csv` or `.tsv` (comma, semicolon or tab), `.json` (list of records or dict of columns), `.jsonl`,
    `.xlsx` or `.pkl` (see `save_songs`) file; a folder of `.txt` files, one song each; or "-", a CSV or JSON Lines on
    standard input. Text is UTF-8, or UTF-16 with a byte order mark. Case does not matter in column names, and Kaggle's
    `seq`, `song` and `label` mean `lyrics`, `title` and `valence`. A column `row`, or an unnamed first one, numbers the
    rows; a row without a whole number there gets its position. `artist` and `title`, where not `needed`, may be absent.
    Raises `LyricsError` if the file cannot be read, has no rows, lacks a column, or has a row longer than its header.
    """
    return next(read_blocks(path, None, needed))


def read_blocks(path: str | Path, rows: int | None, needed: Sequence[str] = COLUMNS) -> Iterator[pd.DataFrame]:
    """Like `read_songs`, in blocks of at most `rows` rows; a CSV or JSON Lines is never held in memory as a whole."""
    path, start, names = Path(path), 0, {}
    source, kind = ("standard input", ".csv") if path == STDIN else (path, path.suffix.lower())
    if not (path == STDIN or path.is_file() or path.is_dir()):
        raise LyricsError(f"{path}: no such file. Give the path of a song table: {KINDS}.")
    if path.is_file() and kind not in KINDS.split(", "):
        raise LyricsError(f"{path}: '{kind}' is not a kind of song table. Use {KINDS}, or a folder of .txt files.")
    if path.is_file() and kind == ".pkl":
        table = load_songs(path, needed)
        yield from (table[n:][:rows].reset_index(drop=True) for n in range(0, len(table), rows or len(table)))
        return
    records = _read_records(path, kind, source)
    try:
        while block := list(islice(records, rows)):
            names |= dict.fromkeys(chain.from_iterable(block))
            yield _as_song_table(pd.DataFrame(block, columns=list(names), dtype=object), source, needed, start)
            start += len(block)
    except LyricsError:
        raise
    except Exception as error:  # pandas and openpyxl raise dozens of kinds on broken files
        raise LyricsError(f"{source}: not a readable song table ({textwrap.shorten(str(error), 300)}).") from error
    if not start:
        raise LyricsError(f"{source}: no songs in it. A table needs a header and a row, a folder needs .txt files.")


def _read_records(path: Path, kind: str, source: str | Path) -> Iterator[dict]:
    """The rows of a table, one by one, as column name -> cell; an empty cell is None."""
    if path.is_dir():
        yield from ({"title": f.stem, "lyrics": "".join(_read_lines(f, f))} for f in sorted(path.glob("*.txt")))
    elif kind == ".xlsx":
        sheet = pd.read_excel(path, header=None, dtype=object, keep_default_na=False, na_values=[""])
        names, *rows = sheet.where(sheet.notna(), None).to_numpy().tolist() or [[]]
        names = _plain_names(names, source)
        for cells in rows:  # Excel writes "\r" as _x000D_
            cells = [cell.replace("_x000D_", "\r") if isinstance(cell, str) else cell for cell in cells]
            yield dict(zip(names, cells, strict=True))
    else:
        lines = dropwhile(str.isspace, _read_lines(path, source))
        lines = chain([header := next(lines, "")], lines)
        if kind == ".json":
            content = json.loads("".join(lines))
            records = pd.DataFrame(content, dtype=object).to_dict("records") if isinstance(content, dict) else content
            yield from (_as_record(record, f"{source}: record {n}") for n, record in enumerate(records, 1))
        elif kind == ".jsonl" or (path == STDIN and header.lstrip().startswith("{")):
            yield from (_as_record(line, f"{source}: line {n}") for n, line in enumerate(lines, 1) if line.strip())
        else:
            yield from _read_csv(lines, header, ",;\t" if kind == ".csv" else "\t,;", source)


def _read_lines(path: Path, source: str | Path) -> Iterator[str]:
    number = 0
    with open(sys.stdin.fileno() if path == STDIN else path, "rb", closefd=path != STDIN) as raw:
        is_utf16 = re.match(rb"\xff\xfe(?!\0\0)|\xfe\xff", raw.peek(4))  # with two zeros, it is UTF-32
        text = io.TextIOWrapper(raw, "utf-16" if is_utf16 else "utf-8-sig", newline="")
        try:
            for number, line in enumerate(text, 1):  # noqa: B007
                yield line.replace("\0", " ")
        except UnicodeDecodeError as error:
            number += 1 + error.object[: error.start].count(b"\n")
            raise LyricsError(f"{source}: line {number} is not UTF-8 text. Save the file again as UTF-8.") from error


def _read_csv(lines: Iterable[str], header: str, separators: str, source: str | Path) -> Iterator[dict]:
    csv.field_size_limit(2**26)  # an unclosed quote swallows no more characters than that
    separator = max(separators, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
    reader, line = csv.reader(lines, delimiter=separator, strict=True), 0
    try:
        names, line = _plain_names(next(reader), source), reader.line_num
        for cells in reader:
            if len(cells) > len(names):
                raise csv.Error(f"it has {len(cells)} cells, the header {len(names)}")
            if cells:  # a blank line has none
                yield dict(zip_longest(names, (cell or None for cell in cells)))
            line = reader.line_num
    except csv.Error as error:
        reason = str(error).replace("unexpected end of data", "its quote is never closed")
        advice = 'Enclose a cell with separators, quotes or line breaks in "...", and double the quotes inside.'
        raise LyricsError(f"{source}: the row at line {line + 1} cannot be read: {reason}. {advice}") from error


def _as_record(record: object, place: str) -> dict:
    try:
        record = json.loads(record) if isinstance(record, str) else record
        return dict(zip(_plain_names(record.keys(), place), record.values(), strict=True))
    except (json.JSONDecodeError, AttributeError) as error:
        raise LyricsError(f'{place} is not a JSON record such as {{"lyrics": "..."}}.') from error


def _plain_names(names: Iterable, source: str | Path) -> list[str]:
    """The columns as a song table names them: "row" for an unnamed first one, "" for any other without a name."""
    names = ["" if name is None or str(name).startswith("Unnamed: ") else str(name).strip() for name in names]
    plain = [PLAIN_NAMES.get(name.lower(), name) for name in names]
    if plain[:1] == [""] and "row" not in plain:
        plain[0] = "row"
    seen: set[str] = set()
    if twice := [name for name in plain if name and (name in seen or seen.add(name))]:
        raise LyricsError(f"{source}: two columns are the song's {twice[0][:40]!r}. Remove or rename one of them.")
    return plain


def _as_song_table(table: pd.DataFrame, source: str | Path, needed=COLUMNS, start: int = 0) -> pd.DataFrame:
    """The table with the columns of a song table first and its rows numbered, positions being counted from `start`."""
    if missing := [name for name in needed if name not in table.columns]:
        kaggle = {plain: f" (or '{name}')" for name, plain in KAGGLE_NAMES.items()}
        wanted = ", ".join(f"'{name}'{kaggle.get(name, '')}" for name in missing)
        found = textwrap.shorten(", ".join(repr(str(name)[:40]) for name in table.columns[:20]), 400)
        raise LyricsError(f"{source}: column {wanted} is missing; the columns are {found}.")
    table, position = table.reset_index(drop=True), pd.Series(range(start, start + len(table)), dtype=float)
    number = table["row"].map(_number).astype(float) if "row" in table.columns else position
    number = number.where((number % 1 == 0) & (number.abs() < 2**53), position).astype(int)
    for name in {"artist", "title"}.difference(needed):
        table[name] = table[name].where(table[name].notna(), "") if name in table.columns else ""
    extras = [name for name in table.columns if name and name not in ("row", *COLUMNS)]
    return table.assign(row=number)[["row", *(name for name in COLUMNS if name in table.columns), *extras]]


def _number(value: object) -> float:
    """The number that a cell holds or spells, else NaN."""
    try:
        return np.nan if isinstance(value, bool | np.bool_) else float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


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


def clean_songs(songs: pd.DataFrame) -> tuple[pd.DataFrame, CleaningReport]:
    """Normalise the text, drop rows that cannot be used, and merge rows with the same words into one song.

    Rows are dropped, in this order, for lyrics that are missing, empty, or not text (no letter in them), for a valence
    that is missing, not a number, or outside 0 to 1, and for lyrics that are not English. Rows whose `words_key` agrees
    become one song: its valence is their mean, its columns `valences` and `artists` keep the individual values, and all
    else comes from the first. A table cleaned before stays as it is. Raises `LyricsError` if no row can be used.
    """
    songs = _as_song_table(songs, "song table")
    lyrics = pd.Series([normalise_lyrics(value) for value in songs["lyrics"]], index=songs.index, dtype=object)
    valence = songs["valence"].map(_number).astype(float)
    reason = pd.Series(None, index=songs.index, dtype=object)
    for name, fails in {
        "lyrics missing": lyrics.isna(),
        "lyrics empty": lyrics.map(lambda value: value == ""),
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
    merged: dict[bytes, tuple[list, list]] = {}
    for key, song in zip(words, usable.to_dict("records"), strict=True):
        earlier = song.get("valences")  # merged by an earlier cleaning, if the song's valence is their mean
        is_list = isinstance(earlier, list) and earlier and all(isinstance(value, float) for value in earlier)
        is_merged = is_list and fmean(earlier) == song["valence"]
        valences, artists = merged.setdefault(key, ([], []))
        valences += earlier if is_merged else [song["valence"]]
        artists += song["artists"] if is_merged else [song["artist"]]
    valences, artists = zip(*merged.values(), strict=True)
    kept = usable[~words.duplicated()].assign(valence=[*map(fmean, valences)], valences=valences, artists=artists)
    dropped = songs.loc[reason.notna(), ["row", "artist", "title"]].assign(reason=reason.dropna())
    return kept.reset_index(drop=True), CleaningReport(len(songs), len(kept), dropped.reset_index(drop=True))


def normalise_lyrics(lyrics: object) -> object:
    """A text with `\\n` line ends, without control characters, blanks around lines or two blank lines in a row."""
    if not isinstance(lyrics, str):
        return lyrics
    text = lyrics.encode("utf-8", "replace").decode()  # a lone surrogate cannot be tokenized
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text.replace("\r\n", "\n").replace("\r", "\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(map(str.strip, text.split("\n")))).strip()


def has_words(text: object) -> bool:
    """Whether it is a text with a letter in it."""
    return isinstance(text, str) and any(map(str.isalpha, text))


def is_english(lyrics: str) -> bool:
    """Whether English is the most likely language, by py3langid (Lui & Baldwin 2012), offline and deterministic."""
    return py3langid.classify(lyrics[:5_000])[0] == "en"  # as the far larger lingua says, for 99.8% of 6,424 songs


def count_not_english(lyrics: Iterable[str]) -> int:
    """How many songs are not in English; texts of less than twelve words are too short to tell."""
    return sum(not is_english(text) for text in lyrics if len(text.split()) >= 12)


def words_key(lyrics: str) -> str:
    """The words of a song, case, punctuation and spacing aside: equal for two copies of the same lyrics."""
    return " ".join(re.sub(r"[^\w\s]|_", "", unicodedata.normalize("NFKC", lyrics).casefold()).split())


def _words_hash(lyrics: str) -> bytes:
    """128 bits that stand for the words of a song, so that a table's words need not be held twice."""
    return hashlib.blake2b(words_key(lyrics).encode("utf-8", "replace"), digest_size=16).digest()


def artist_key(name: object) -> str:
    """What identifies an artist: case, accents, spacing, punctuation, a leading "the" and guests ("feat.") aside."""
    name = unicodedata.normalize("NFKD", name if isinstance(name, str) else "").casefold().strip()
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


def split_songs(songs: pd.DataFrame, seed: int = 42, fractions=(0.8, 0.1, 0.1), by: str = "artist") -> Split:
    """Split a cleaned song table into train, validation and test, whose shares are `fractions`, adding up to 1.

    By "artist", a hash of the seed and `artist_key` gives each artist one side in all tables, so the fractions hold in
    expectation. "song" draws songs one by one. "stored" reads the column `split`; a song without one is left out.
    Raises `LyricsError` if two songs have the same words, an argument makes no sense, or a side would be empty.
    """
    hashes = songs["lyrics"].map(_words_hash)
    if again := songs.loc[hashes.duplicated(), "row"].tolist():
        raise LyricsError(f"row {again[0]} has the same words as an earlier row: run clean_songs before split_songs.")
    if by == "stored" and "split" in songs.columns:
        sides = songs["split"].to_numpy(dtype=object)
        if unknown := set(songs["split"].dropna()).difference(Split._fields):
            raise LyricsError(f"column 'split' holds {min(map(repr, unknown))}; use {', '.join(Split._fields)}.")
    elif by not in ("artist", "song"):
        raise LyricsError(f"by={by!r}: songs are split by 'artist', by 'song', or as 'stored' in a column 'split'.")
    elif len(fractions) != 3 or not min(fractions) > 0 or not np.isclose(sum(fractions), 1):
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


def save_songs(songs: pd.DataFrame, path: str | Path) -> None:
    """Write a song table as a pickle of plain builtins (dict of lists), the same bytes for the same songs.

    Raises `LyricsError` if a column holds anything but text, numbers or lists of them, or writing fails.
    """
    try:  # through JSON, so that only plain builtins remain and no two values share one object
        columns = json.loads(json.dumps(songs.to_dict("list"), ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise LyricsError(f"{path}: a song pickle holds text, numbers and lists of them only ({error}).") from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(pickle.dumps({"format": FORMAT, "version": VERSION, "columns": columns}, protocol=4))


class _PlainUnpickler(pickle.Unpickler):  # see "Restricting Globals" in Python's documentation of pickle
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_songs(path: str | Path, needed: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a pickle that `save_songs` wrote. Code in it never runs: only opcodes of plain builtins are loaded."""
    path = Path(path)
    if not path.is_file():
        raise LyricsError(f"{path}: no such file. Give the path of a song pickle.")
    try:
        data = path.read_bytes()  # once: what is checked is what is loaded
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in PLAIN_OPCODES:
                raise pickle.UnpicklingError(f"opcode {opcode.name} at byte {position} could run code")
            if isinstance(argument, str):
                argument.encode()  # raises for a lone surrogate, which is no text and could not be written
        payload = _PlainUnpickler(io.BytesIO(data)).load()
        if (payload["format"], payload["version"]) != (FORMAT, VERSION):
            raise ValueError(f"its format is {payload['format']!r}, version {payload['version']!r}")
        if not all(isinstance(column, list) for column in payload["columns"].values()):
            raise TypeError("its columns are not lists")
        table = pd.DataFrame(payload["columns"])
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise LyricsError(f"{path}: refused, it is not a song pickle as save_songs writes it ({reason}).") from error
    if table.empty:
        raise LyricsError(f"{path}: no songs in it.")
    return _as_song_table(table, path, needed)
