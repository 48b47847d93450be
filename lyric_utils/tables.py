"""Song tables in files: one reader for all kinds, and a pickle that is safe to open."""

import csv
import io
import json
import math
import pickle
import pickletools
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, dropwhile, zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from lyric_utils._checks import PathLike, checked
from lyric_utils._files import MAX_BYTES, LyricsError, describe, open_file, read_file, write_file

COLUMNS = ["artist", "title", "lyrics", "valence"]  # of a song table, which has a song per row, numbered in "row"
KAGGLE_NAMES = {"seq": "lyrics", "song": "title", "label": "valence"}
PLAIN_NAMES = {name: name for name in ("row", *COLUMNS, "split")} | KAGGLE_NAMES
KINDS = ".csv, .tsv, .json, .jsonl, .xlsx, .pkl"
STDIN = Path("-")
BOUNDS = {"rows": 1_000_000, "columns": 1_000, "letters in a cell": 10_000_000, "letters": 2**30, "cells": 5_000_000}
LONGEST_LINE = 2 * BOUNDS["letters in a cell"]
MAX_JSON, MAX_EXCEL = 2**24, 2**26  # bytes of a file that becomes many times as large in memory
MAX_TAGS = 2_000_000  # of XML in an Excel file: the cells of 50,000 songs
EMPTY_CELLS = {None, "", "#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A"}  # as Excel spells them
QUOTES = 'Enclose a cell with separators, quotes or line breaks in "...", and double the quotes inside'
FORMAT, VERSION = "lyric_utils.songs", 1
# A pickle of plain builtins needs no others, and none of these imports, calls or builds an object.
TEXT_OPCODES = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
PLAIN_OPCODES = TEXT_OPCODES | {
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "EMPTY_LIST", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
}


@checked
def read_songs(path: PathLike, needed: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a song table; its cells are kept as they are, for `clean_songs` to judge.

    `path` is a `.csv` or `.tsv` (comma, semicolon or tab), `.json` (list of records or dict of columns), `.jsonl`,
    `.xlsx` (its first sheet) or `.pkl` (see `save_songs`) file; a folder of `.txt` files, one song each; or "-", a CSV
    or JSON Lines on standard input. Text is UTF-8, or UTF-16 with a byte order mark. Case does not matter in column
    names, and Kaggle's `seq`, `song` and `label` mean `lyrics`, `title` and `valence`. A column `row`, or an unnamed
    first one, numbers the rows; a row without a whole number there gets its position. `artist` and `title`, where not
    `needed`, may be absent.
    Raises `LyricsError` if the file cannot be read, has no rows, lacks a column, has a row longer than its header, or
    is beyond `BOUNDS`.
    """
    return next(read_blocks(path, math.inf, needed))


def read_blocks(
    path: Path, rows: float, needed: Sequence[str] = COLUMNS, letters: float = math.inf
) -> Iterator[pd.DataFrame]:
    """Like `read_songs`, in blocks that end with the row that brings them to so many rows or letters.

    A CSV or JSON Lines is never held in memory as a whole, and `BOUNDS` are those of a block.
    """
    start = 0
    try:
        for block, names in _blocks(_read_records(path), rows, letters):
            yield as_song_table(pd.DataFrame(block, columns=names, dtype=object), needed, start)
            start += len(block)
        if not start:
            raise ValueError("no songs in it. A table needs a header and a row, a folder needs .txt files")
    except LyricsError:
        raise
    except Exception as error:  # pandas and openpyxl raise dozens of kinds on broken files
        source = "standard input (-)" if path == STDIN else path
        other = type(error) is not ValueError  # of a library, which knows neither songs nor a way out
        reason = f"not a readable song table: {describe(error)}. Save it again, as .csv perhaps" if other else error
        raise LyricsError(f"{source}: {reason}.") from error


def read_rows(path: Path) -> list[dict]:
    """All rows of a table within the bounds, as column name -> cell."""
    return [row for block, _ in _blocks(_read_records(path), math.inf, math.inf) for row in block]


def _blocks(records: Iterable[dict], rows: float, letters: float) -> Iterator[tuple[list[dict], list[str]]]:
    """The records in blocks, each with the names of all columns so far, as long as a block keeps to the bounds."""
    block, names, size, cells = [], {}, 0, 0
    for record in records:
        block.append(record)
        names |= dict.fromkeys(record)
        sizes = [*map(_size, record.values())]
        size, cells = size + sum(sizes), cells + len(sizes)
        _check_bounds(len(block), len(names), max(sizes, default=0), size, cells)
        if len(block) >= rows or size >= letters:
            yield block, [*names]
            block, size, cells = [], 0, 0
    if block:
        yield block, [*names]


def _size(cell: object) -> int:
    """How many letters a cell holds, a number in a list counted as eight; a list within a list is refused."""
    if not isinstance(cell, str | list | dict):
        return 0
    items = cell.values() if isinstance(cell, dict) else cell
    if not isinstance(cell, str) and any(isinstance(item, list | dict) for item in items):
        raise ValueError("a cell holds a list within a list")
    return len(cell) if isinstance(cell, str) else 8 * len(cell) + sum(map(_size, items))


def _check_bounds(*found: int) -> None:
    for (what, limit), count in zip(BOUNDS.items(), found, strict=False):
        if count > limit:
            raise ValueError(f"{count:,} {what}, but a song table has at most {limit:,}. Split the table")


def _read_records(path: Path) -> Iterator[dict]:
    """The rows of a table, one by one, as column name -> cell; an empty cell is None."""
    kind = path.suffix.lower()
    if path.is_dir():
        yield from (_read_text(file) for file in sorted(path.iterdir()) if file.suffix.lower() == ".txt")
    elif path == STDIN or kind in (".csv", ".tsv", ".jsonl"):
        if path == STDIN and sys.stdin is None:
            raise ValueError("it is closed")
        raw = sys.stdin.buffer if path == STDIN else open_file(path)
        lines = dropwhile(lambda line: line[1].isspace(), enumerate(_read_lines(raw), 1))
        number, first = next(lines, (1, ""))
        lines = chain([first], (line for _, line in lines))
        if kind == ".jsonl" or (path == STDIN and first.lstrip().startswith("{")):
            records = enumerate(lines, number)
            yield from (_as_record(line, f"line {n}") for n, line in records if line.strip())
        else:
            yield from _as_records(_read_csv(lines, first, "\t,;" if kind == ".tsv" else ",;\t", number))
    elif kind == ".json":
        content = json.loads("".join(_read_lines(open_file(path, MAX_JSON), -1)), object_pairs_hook=_unique)
        records = _turn_columns(content) if isinstance(content, dict) else content
        yield from (_as_record(record, f"record {n}") for n, record in enumerate(records, 1))
    elif kind == ".xlsx":
        yield from _as_records(_read_sheet(read_file(path)))
    elif kind == ".pkl":
        yield from load_songs(path, ()).to_dict("records")
    else:
        open_file(path).close()
        raise ValueError(f"'{kind}' is not a kind of song table. Use {KINDS}, or a folder of .txt files")


@checked
def _read_text(file: PathLike) -> dict:
    return {"title": file.stem, "lyrics": "".join(_read_lines(open_file(file, MAX_BYTES)))}


def _read_lines(raw: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[str]:
    number = 1
    with raw:
        is_utf16 = re.match(rb"\xff\xfe(?!\0\0)|\xfe\xff", raw.peek(4))  # with two zeros, it is UTF-32
        text = io.TextIOWrapper(raw, "utf-16" if is_utf16 else "utf-8-sig", newline="")
        try:
            while line := text.readline(longest):
                if len(line) == longest:
                    raise ValueError(f"line {number} has {longest:,} letters or more. Split the table")
                if line.count("\0") > len(line) / 3:
                    raise ValueError(f"line {number} is not UTF-8 text. Save the file again as UTF-8")
                number += 1
                yield line.replace("\0", " ")
        except UnicodeDecodeError as error:
            number += error.object[: error.start].count(b"\n")
            raise ValueError(f"line {number} is not UTF-8 text. Save the file again as UTF-8") from error


def _read_csv(lines: Iterator[str], header: str, separators: str, line: int) -> Iterator[tuple[int, list]]:
    csv.field_size_limit(BOUNDS["letters in a cell"])  # an unclosed quote swallows no more than that
    separator = max(separators, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
    reader, start = csv.reader(lines, delimiter=separator, strict=True), line
    try:
        for cells in reader:
            if cells:  # a blank line has none
                yield line, [cell or None for cell in cells]
            line = start + reader.line_num
    except csv.Error as error:
        reason = str(error).replace("unexpected end of data", "its quote is never closed")
        reason = reason.replace("field larger than field limit", "more letters in a cell than the limit")
        raise ValueError(f"the row at line {line} cannot be read: {reason}. {QUOTES}") from error


def _read_sheet(content: bytes) -> Iterator[tuple[int, list]]:
    """The rows of an Excel file that have values, streamed: far cells and false dimensions cost no memory."""
    from openpyxl import load_workbook

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if (size := sum(entry.file_size for entry in archive.infolist())) > MAX_EXCEL:
            raise ValueError(f"{size:,} bytes unpacked, but at most {MAX_EXCEL:,} are read. Save it as .csv")
        texts = {name: archive.read(name) for name in archive.namelist()}
    for name, text in texts.items():
        limit = MAX_TAGS if name.startswith(("xl/worksheets/sheet", "xl/sharedStrings")) else MAX_TAGS // 20
        if text.count(b"<") > limit:
            raise ValueError(f"{name} in it has more than {limit:,} tags. Save it as .csv")
        rows = [*map(int, re.findall(rb"<row\b[^>]*?\br=[\"'](\d{1,18})", text))]
        if rows != sorted(rows) or rows[-1:] > [2**20]:
            raise ValueError("its rows are out of order, or beyond the last of a sheet. Save it as .csv")
    sheet, width = load_workbook(io.BytesIO(content), read_only=True, data_only=True).worksheets[0], 0
    sheet.reset_dimensions()
    for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
        _check_bounds(number - 1, 0, 0, 0, width := width + len(cells))
        cells = [None if cell in EMPTY_CELLS else cell for cell in cells]
        while cells and cells[-1] is None:
            cells.pop()
        if cells:  # Excel writes "\r" as _x000D_
            yield number, [cell.replace("_x000D_", "\r") if isinstance(cell, str) else cell for cell in cells]


def _as_records(rows: Iterator[tuple[int, list]]) -> Iterator[dict]:
    header = next(rows, (0, []))[1]
    names = _plain_names(header)
    for line, cells in rows:
        if len(cells) > len(names):
            reason = f"it has {len(cells)} cells, the header {len(names)}"
            raise ValueError(f"the row at line {line} cannot be read: {reason}. {QUOTES}")
        if cells == header:
            raise ValueError(f"line {line} is the header again. Remove it")
        yield dict(zip_longest(names, cells))


def _as_record(record: object, place: str) -> dict:
    with suppress(json.JSONDecodeError):
        record = json.loads(record, object_pairs_hook=_unique) if isinstance(record, str) else record
    if not isinstance(record, dict):
        raise ValueError(f'{place} is not a JSON record such as {{"lyrics": "..."}}')
    return dict(zip(_plain_names(record), record.values(), strict=True))


def _unique(pairs: list[tuple]) -> dict:
    if len(record := dict(pairs)) < len(pairs):
        raise ValueError(f"a JSON key stands twice among {', '.join(key[:20] for key, _ in pairs[:10])}. Remove one")
    return record


def _turn_columns(columns: dict) -> Iterator[dict]:
    """The records of a table that is stored by column, each a list or, as pandas writes it, a dict by row."""
    if not all(isinstance(column, list | dict) for column in columns.values()):
        raise ValueError("its columns are not lists")
    _check_bounds(0, len(columns), 0, 0, sum(map(len, columns.values())))
    tables = [dict(enumerate(column)) if isinstance(column, list) else column for column in columns.values()]
    if any(table.keys() != tables[0].keys() for table in tables):
        raise ValueError("its columns are not of one length")
    cells = ([table[row] for table in tables] for row in next(iter(tables), ()))
    return (dict(zip(columns, row, strict=True)) for row in cells)


def _plain_names(names: Iterable) -> list[str]:
    """The columns as a song table names them: "row" for an unnamed first one, "" for any other without a name."""
    names = ["" if name is None or str(name).startswith("Unnamed: ") else str(name).strip() for name in names]
    _check_bounds(0, len(names))
    plain = [PLAIN_NAMES.get(name.lower(), name) for name in names]
    if plain[:1] == [""] and "row" not in plain:
        plain[0] = "row"
    seen: set[str] = set()
    if twice := [name for name in plain if name and (name in seen or seen.add(name))]:
        raise ValueError(f"two columns are the song's {twice[0][:40]!r}. Remove or rename one of them")
    return plain


def as_song_table(table: pd.DataFrame, needed: Sequence[str] = COLUMNS, start: int = 0) -> pd.DataFrame:
    """The table with the columns of a song table first and its rows numbered, positions being counted from `start`.

    Raises `ValueError` if a column is missing or stands twice.
    """
    table = table.set_axis(_plain_names(table.columns), axis=1).reset_index(drop=True)
    if missing := [name for name in needed if name not in table.columns]:
        kaggle = {plain: f" (or '{name}')" for name, plain in KAGGLE_NAMES.items()}
        wanted = ", ".join(f"'{name}'{kaggle.get(name, '')}" for name in missing)
        found = ", ".join(repr(name[:20]) for name in table.columns[:10])
        raise ValueError(f"column {wanted} is missing; the columns are {found}")
    position = range(start, start + len(table))
    number = [*map(_row_number, table["row"], position)] if "row" in table.columns else position
    for name in {"artist", "title"}.difference(needed):
        table[name] = table[name].where(table[name].notna(), "") if name in table.columns else ""
    if infer_dtype(table.get("valence", ())) == "floating":
        table["valence"] = table["valence"].astype(float)
    extras = [name for name in table.columns if name and name not in ("row", *COLUMNS)]
    return table.assign(row=number)[["row", *(name for name in COLUMNS if name in table.columns), *extras]]


def as_number(value: object) -> float:
    """The number that a cell holds or spells, else NaN."""
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool | np.bool_) and "_" not in str(value):  # Python takes 1_000 for a number
            return float(value)
    return np.nan


def _row_number(value: object, position: int) -> int:
    """The whole number of 64 bits that a cell holds or spells, else the row's position."""
    number = as_number(value)
    if number % 1 != 0:  # true for NaN and infinity
        return position
    number = int(number) if "." in str(value) or "e" in str(value).lower() else int(value)
    return number if abs(number) < 2**63 else position


@checked
def save_songs(songs: pd.DataFrame, path: PathLike) -> None:
    """Write a song table as a pickle of plain builtins (dict of lists), the same bytes for the same songs.

    Raises `LyricsError` if a column holds anything but text, numbers or lists of them, writing fails, or `path` is
    another file than a song pickle.
    """
    if not all(isinstance(name, str) for name in songs.columns) or not songs.columns.is_unique:
        raise LyricsError(f"{path}: not written, since the names of columns must be texts that differ.")
    try:  # through JSON, so that only plain builtins remain and no two values share one object
        columns = json.loads(json.dumps(songs.to_dict("list"), ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise LyricsError(f"{path}: a song pickle holds text, numbers and lists of them only ({error}).") from error
    data = pickle.dumps({"format": FORMAT, "version": VERSION, "columns": columns}, protocol=4)
    _parse(data)  # refuses what could not be loaded again
    write_file(path, data, rb"\x80\x04\x95.{8}}\x94\(\x8c\x06format\x94\x8c\x11" + FORMAT.encode())


class _PlainUnpickler(pickle.Unpickler):  # see "Restricting Globals" in Python's documentation of pickle
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


@checked
def load_songs(path: PathLike, needed: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Read a pickle that `save_songs` wrote. Code in it never runs: only opcodes of plain builtins are loaded."""
    data = read_file(path)  # once: what is checked is what is loaded
    try:
        return as_song_table(_parse(data), needed)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise LyricsError(f"{path}: refused, not a song pickle as save_songs writes it ({describe(error)}).") from error


def _parse(data: bytes) -> pd.DataFrame:
    """The table in a song pickle; raises nearly anything if it is damaged, or beyond the bounds."""
    _check_opcodes(data)
    payload = _PlainUnpickler(io.BytesIO(data)).load()
    if (payload["format"], payload["version"]) != (FORMAT, VERSION):
        raise ValueError(f"its format is {payload['format']!r}, version {payload['version']!r}")
    columns = payload["columns"]
    if not all(isinstance(column, list) for column in columns.values()):
        raise ValueError("its columns are not lists")
    sizes = [*map(_size, chain(*columns.values()))]
    _check_bounds(len(sizes) // max(len(columns), 1), len(columns), max(sizes, default=0), sum(sizes), len(sizes))
    if not sizes:
        raise ValueError("no songs in it")
    _plain_names(columns)
    return pd.DataFrame(columns)


def _check_opcodes(data: bytes) -> None:
    """Raise unless a pickle holds plain builtins alone, and each list once, so that it is no larger than its file."""
    memo, before = [], ""
    for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if number > 2 * BOUNDS["cells"]:
            raise ValueError(f"more than {number:,} values. Split the table")
        if opcode.name not in PLAIN_OPCODES:
            raise ValueError(f"opcode {opcode.name} at byte {position} could run code")
        if isinstance(argument, str):
            argument.encode()  # raises for a lone surrogate, which is no text and could not be written
        if opcode.name == "MEMOIZE":
            memo.append(before in TEXT_OPCODES)
        elif opcode.name.endswith("BINGET") and not memo[argument]:
            raise ValueError(f"byte {position} refers to a list a second time")
        before = opcode.name
