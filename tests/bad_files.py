"""The collection of hostile and broken inputs that `tests/test_bad_files.py` runs.

Each input has a name, the loader it is for and what is expected: refused with a LyricsError, or survived with every row
accounted for; none may take 20 s or 1 GiB. What a hostile file tries to do is always the same, to make a folder named
`CANARY`, so that a test can see whether any code ran.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from openpyxl import Workbook
from safetensors.torch import load_file, save_file

CANARY = "CANARY"
EXTENSION_CODES = (0xF0, 0xF0F0, 0x7F0F0F0)  # registered in copyreg by the test, one for each of EXT1, EXT2, EXT4
HEADER = "artist,seq,song,label"
WORDS = "We walked along the river and the morning was warm, and nobody asked where we had been."
ROW = {"artist": "Ann Example", "title": "River", "lyrics": WORDS, "valence": 0.5}
KINDS = (".csv", ".tsv", ".json", ".jsonl", ".xlsx", ".pkl")


class BadTable(NamedTuple):
    """A file for `read_songs` and `clean_songs`.

    Attributes:
        content: its bytes, or a function that makes it at a path.
        rows: None where it is to be refused, else rows read and songs kept.
    """

    suffix: str
    content: bytes | Callable[[Path], None]
    rows: tuple[int, int] | None = None

    def write(self, path: Path) -> None:
        if callable(self.content):
            self.content(path)
        else:
            path.write_bytes(self.content)


class BadCheckpoint(NamedTuple):
    """Damage to the folder of a sound checkpoint.

    Attributes:
        model: "baseline", "lora" or "blend".
        damage: function that does it, given the folder and the folder of the other model's sound checkpoint.
        refused_by: which of "load_model" and "load_results" must refuse it; the other must survive it.
    """

    model: str
    damage: Callable[[Path, Path], None]
    refused_by: tuple[str, ...] = ("load_model",)


# ---------------------------------------------------------------- pickles


class MakesCanary:
    """Every way in which the unpickling of an object calls a method of its class."""

    def __new__(cls, *args, **kwargs):
        if args or kwargs:
            os.mkdir(CANARY)
        return super().__new__(cls)

    def __setstate__(self, state):
        os.mkdir(CANARY)


class Reduces:
    def __reduce__(self):
        return os.mkdir, (CANARY,)


class ReducesInBand:
    """With a buffer, as protocol 5 sends it."""

    def __reduce_ex__(self, protocol):
        return bytearray, (pickle.PickleBuffer(b"buffer"),)


def song_pickle(protocol: int = 4, rows: int = 1, **changes) -> bytes:
    """A song pickle in which some columns, or format, version and columns as a whole, are changed."""
    columns = {"artist": ["Ann Example"], "title": ["River"], "lyrics": [WORDS], "valence": [0.5]}
    columns = {name: values * rows for name, values in columns.items()}
    payload = {"format": "lyric_utils.songs", "version": 1, "columns": columns}
    for name, value in changes.items():
        (payload if name in payload else columns)[name] = value
    return pickle.dumps(payload, protocol=protocol)


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _cells(lyrics: bytes, valence: bytes = b"G" + struct.pack(">d", 0.5)) -> bytes:
    """A song pickle by hand, with two cells given as opcodes."""
    cells = {"artist": _text("Ann"), "title": _text("River"), "lyrics": lyrics, "valence": valence}
    columns = b"".join(_text(name) + b"](" + cell + b"e" for name, cell in cells.items())
    head = _text("format") + _text("lyric_utils.songs") + _text("version") + b"K\x01" + _text("columns")
    return b"\x80\x04}(" + head + b"}(" + columns + b"uu."


MODULE = b"bad_files\nMakesCanary\n"
STACK_GLOBAL = b"\x80\x04" + _text("os") + _text("mkdir") + b"\x93"
CALL = _text(CANARY) + b"\x85R."
HOSTILE_PICKLES = {
    **{f"reduce of an object, protocol {n}": pickle.dumps(Reduces(), n) for n in range(6)},
    "GLOBAL REDUCE": b"cos\nmkdir\n(S'CANARY'\ntR.",
    "STACK_GLOBAL REDUCE": STACK_GLOBAL + CALL,
    "STACK_GLOBAL with a dotted name": b"\x80\x04" + _text("shutil") + _text("os.mkdir") + b"\x93" + CALL,
    "STACK_GLOBAL from the memo": b"\x80\x04" + _text("os") + b"\x94" + _text("mkdir") + b"\x940h\x00h\x01\x93" + CALL,
    "getattr of a global": b"\x80\x04cbuiltins\ngetattr\ncshutil\nos\n" + _text("mkdir") + b"\x86R" + CALL,
    "eval": b'c__builtin__\neval\n(S\'__import__("os").mkdir("CANARY")\'\ntR.',
    "INST": b"(S'CANARY'\nios\nmkdir\n.",
    "OBJ": b"(cos\nmkdir\nS'CANARY'\no.",
    "NEWOBJ": b"\x80\x02c" + MODULE + b"K\x01\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04c" + MODULE + b")}" + _text("a") + b"K\x01s\x92.",
    "BUILD": b"\x80\x02c" + MODULE + b")\x81}b.",
    "EXT1": b"\x80\x02\x82" + struct.pack("<B", EXTENSION_CODES[0]) + CALL,
    "EXT2": b"\x80\x02\x83" + struct.pack("<H", EXTENSION_CODES[1]) + CALL,
    "EXT4": b"\x80\x02\x84" + struct.pack("<i", EXTENSION_CODES[2]) + CALL,
    "pickle within a pickle": b"\x80\x04"
    + _text("_pickle")
    + _text("loads")
    + b"\x93C"
    + bytes([len(STACK_GLOBAL + CALL)])
    + STACK_GLOBAL
    + CALL
    + b"\x85R.",
    "call in a cell of a sound table": _cells(STACK_GLOBAL[2:] + CALL[:-1]),
    "call thrown away, sound table returned": STACK_GLOBAL + CALL[:-1] + b"0" + _cells(_text(WORDS))[2:],
    "call in the key of a dict": b"}" + STACK_GLOBAL[2:] + CALL[:-1] + b"K\x01s.",
    "call before the data break off": STACK_GLOBAL + CALL[:-1],
    "call inside a frame": b"\x80\x04\x95" + struct.pack("<Q", len(STACK_GLOBAL + CALL) - 2) + STACK_GLOBAL[2:] + CALL,
}
BROKEN_PICKLES = {
    "PERSID": b"PCANARY\n.",
    "BINPERSID": _text(CANARY) + b"Q.",
    "EXT1 with an unknown code": b"\x80\x02\x82\x01.",
    "LONG_BINPUT memo bomb": b"\x80\x02]r" + struct.pack("<I", 2**31) + b".",
    "PUT memo bomb": b"]p2147483647\n.",
    "GET of nothing": b"g7\n.",
    "BINGET of nothing": b"\x80\x04h\x07.",
    "LONG_BINGET of nothing": b"\x80\x04j\xff\xff\xff\xff.",
    "BINUNICODE claims 4 GiB": b"\x80\x04X\xff\xff\xff\xffabc.",
    "BINUNICODE8 claims 4 EiB": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
    "BINBYTES8 claims 16 EiB": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
    "BYTEARRAY8 claims 1 TiB": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "LONG4 of negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "LONG4 claims 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "FRAME claims 4 EiB": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "FRAME claims 1 GiB": b"\x80\x04\x95" + struct.pack("<Q", 2**30) + b"}.",
    "INT of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05\x97\x98.",
    "out-of-band buffer": pickle.dumps(ReducesInBand(), 5, buffer_callback=[].append),
    "in-band buffer": pickle.dumps(ReducesInBand(), 5),
    "nested 100,000 lists deep": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "nested 100,000 marks deep": b"(" * 100_000 + b".",
    "list within itself": b"\x80\x04]\x94h\x00a.",
    "protocol 255": b"\x80\xff}.",
    "unknown opcode": b"\x80\x04\xfe.",
    "list as the key of a dict": b"\x80\x04}]K\x01s.",
    "stack underflow": b"\x80\x04e.",
    "lone STOP": b".",
    "empty file": b"",
    "zeros": b"\0" * 1000,
    "text": b"artist,seq,song,label\n",
    "None": pickle.dumps(None),
    "set": pickle.dumps({1, 2}),
    "tuple": pickle.dumps(("lyric_utils.songs", 1)),
    "bytes": pickle.dumps(b"lyric_utils.songs"),
    "empty dict": pickle.dumps({}),
    "protocol 0 table": song_pickle(protocol=0),
    "protocol 2 table": song_pickle(protocol=2),
    "frame of pandas": pickle.dumps(pd.DataFrame({"artist": ["a"], "lyrics": [WORDS]})),
    "array of numpy": pickle.dumps(np.arange(3)),
    "another format": song_pickle(format="other"),
    "a later version": song_pickle(version=2),
    "version as a list": song_pickle(version=[1]),
    "columns are a list": song_pickle(columns=[["artist"], ["title"]]),
    "columns are texts": song_pickle(columns=dict.fromkeys(("artist", "title", "lyrics", "valence"), "text")),
    "columns of unequal length": song_pickle(valence=[0.5, 0.6]),
    "column missing": song_pickle(columns={"artist": ["Ann"], "title": ["River"], "valence": [0.5]}),
    "no columns": song_pickle(columns={}),
    "no rows": song_pickle(rows=0),
    "lone surrogate": song_pickle(lyrics=[WORDS + "\ud800"]),
    "bytes as lyrics": song_pickle(lyrics=[WORDS.encode()]),
    "truncated": song_pickle()[:-20],
}
SURVIVED_PICKLES = {
    "text that spells a call": (song_pickle(title=["cos\nmkdir\n(S'CANARY'\ntR."]), (1, 1)),
    "hostile pickle as text": (song_pickle(rows=2, lyrics=[WORDS, (STACK_GLOBAL + CALL).decode("latin-1")]), (2, 1)),
    "hostile pickle behind the end": (song_pickle() + STACK_GLOBAL + CALL, (1, 1)),
    "cells of every other kind": (
        song_pickle(rows=6, lyrics=[WORDS, None, 5, [WORDS], {"a": 1}, True], valence=[0.5, [1], {}, None, "x", False]),
        (6, 1),
    ),
    "valences of every other kind": (
        song_pickle(rows=7, valence=[10**70, float("nan"), float("-inf"), True, [0.5], -0.0, "0.25"]),
        (7, 1),
    ),
    "damaged columns of an earlier cleaning": (song_pickle(rows=2, valences=[["x"], [0.1]], artists=[1, None]), (2, 1)),
    "row numbers that are none": (song_pickle(rows=3, row=[float("inf"), "x", None]), (3, 1)),
}


# ---------------------------------------------------------------- csv and xlsx


def csv(*rows: str, header: str = HEADER, encoding: str = "utf-8") -> bytes:
    return "\n".join([header, *rows, ""]).encode(encoding, "surrogatepass")


def _good(label: object = 0.5) -> str:
    return f'Ann Example,"{WORDS}",River,{label}'


def _lyrics(*cells: str) -> bytes:
    """A csv of one good row and one row for each of these lyrics."""
    return csv(_good(), *(f"Ann,{cell},River,0.5" for cell in cells))


def _sheet(*rows: tuple) -> bytes:
    book = Workbook()
    for row in [tuple(HEADER.split(",")), *rows]:
        book.active.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def _zip(**entries: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in entries.items():
            archive.writestr(name, text)
    return file.getvalue()


def _with_entry(sheet: bytes, entry: str, text: str) -> bytes:
    """An .xlsx file in which one entry of the archive is replaced."""
    with zipfile.ZipFile(io.BytesIO(sheet)) as archive:
        return _zip(**{name: archive.read(name) for name in archive.namelist()} | {entry: text})


def _with_prolog(sheet: bytes, prolog: str, cell: str) -> bytes:
    """An .xlsx file whose sheet begins with an XML prolog and has `cell` as a title."""
    entry = "xl/worksheets/sheet1.xml"
    with zipfile.ZipFile(io.BytesIO(sheet)) as archive:
        return _with_entry(sheet, entry, prolog + archive.read(entry).decode().replace("River", cell))


NAMESPACE = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
SHEET = _sheet(("Ann Example", WORDS, "River", 0.5), ("Ben Sample", "Nothing but rain tonight, my friend", "Roof", 0.2))
LAUGHS = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
)
BAD_TABLES = {
    **{f"pickle, hostile: {name}": BadTable(".pkl", data) for name, data in HOSTILE_PICKLES.items()},
    **{f"pickle, broken: {name}": BadTable(".pkl", data) for name, data in BROKEN_PICKLES.items()},
    **{f"pickle, survived: {name}": BadTable(".pkl", data, rows) for name, (data, rows) in SURVIVED_PICKLES.items()},
    "csv: zero bytes": BadTable(".csv", b""),
    "csv: only a BOM": BadTable(".csv", b"\xef\xbb\xbf"),
    "csv: only line ends": BadTable(".csv", b"\n\r\n\n"),
    "csv: header only": BadTable(".csv", csv()),
    "csv: no header": BadTable(".csv", csv(header=_good())),
    "csv: wrong columns": BadTable(".csv", csv("1,2", header="x,y")),
    "csv: a column missing": BadTable(".csv", csv("a,b,c", header="artist,song,label")),
    "csv: 10,000 wrong columns": BadTable(".csv", csv(header=",".join(map(str, range(10_000))))),
    "csv: a lone surrogate": BadTable(".csv", csv(_good(), "Ann,\ud800,River,0.5")),
    "csv: overlong UTF-8": BadTable(".csv", csv(_good()) + b"\xc0\xaf,x,y,0.5\n"),
    "csv: random bytes": BadTable(".csv", np.random.default_rng(0).bytes(10_000)),
    "csv: gzip": BadTable(".csv", b"\x1f\x8b\x08\x00" + bytes(100)),
    "csv: an unclosed quote": BadTable(".csv", csv(_good(), 'Ann,"never closed,River,0.5')),
    "csv: an unclosed quote, closed by the next": BadTable(".csv", csv('Ann,"never closed,River,0.5', _good())),
    "csv: a 10 MB header": BadTable(".csv", b"x" * 10_000_000),
    "csv: a folder": BadTable(".csv", Path.mkdir),
    "csv: a link to nothing": BadTable(".csv", lambda path: path.symlink_to(path.with_name("gone"))),
    "csv: a link to itself": BadTable(".csv", lambda path: path.symlink_to(path)),
    "csv: a pipe": BadTable(".csv", os.mkfifo),
    "csv: missing": BadTable(".csv", lambda path: None),
    "json: no records": BadTable(".json", b"[]"),
    "json: a number": BadTable(".json", b"7"),
    "json: nested 100,000 deep": BadTable(".json", b"[" * 100_000),
    "json: NUL bytes": BadTable(".json", bytes(100)),
    "jsonl: cut off": BadTable(".jsonl", json.dumps({"lyrics": WORDS}).encode()[:-9]),
    "jsonl: nested 100,000 deep": BadTable(".jsonl", b"[" * 100_000),
    "jsonl: lists": BadTable(".jsonl", b'["la", 0.5]\n'),
    "text": BadTable(".txt", WORDS.encode()),
    "no suffix": BadTable("", csv(_good())),
    "csv: NUL bytes": BadTable(".csv", _lyrics("\0\0\0", WORDS.replace(",", "").replace(" ", "\0")), (3, 1)),
    "csv: a 2 MB line": BadTable(".csv", csv(_good(), f"Ann,{'love me ' * 250_000},River,0.5"), (2, 2)),
    "csv: a 10 MB word": BadTable(".csv", csv(_good(), f"Ann,{'a' * 10_000_000},River,0.5"), (2, 1)),
    "csv: quotes within quotes": BadTable(".csv", csv(_good(), 'Ann,say "what" and ""why"",River,0.5'), (2, 2)),
    "csv: a row with too few fields": BadTable(".csv", csv(_good(), "Ann", "Ann,,"), (3, 1)),
    "csv: labels that are none": BadTable(
        ".csv",
        csv(*[_good(label) for label in ("nan", "NaN", "inf", "-inf", "1e400", "", "happy", '"0,5"', 1.5, -0.1, 0.5)]),
        (11, 1),
    ),
    "csv: label true and false": BadTable(".csv", csv(_good("True"), _good("False"), _good()), (3, 1)),
    "csv: lyrics of emoji": BadTable(".csv", _lyrics("😀🎵💔", "❤️‍🔥"), (3, 1)),
    "csv: lyrics of control characters": BadTable(".csv", _lyrics("\x01\x02\x7f\x85\x1b[0;", "\x0c"), (3, 1)),
    "csv: lyrics of combining marks": BadTable(".csv", _lyrics("\u0301\u0489" * 1000), (2, 1)),
    "csv: lyrics of invisible characters": BadTable(".csv", _lyrics("\u200b\u200d\ufeff\u2060\u202e"), (2, 1)),
    "csv: lyrics of digits": BadTable(".csv", _lyrics("1 2 3 4"), (2, 1)),
    "csv: lyrics of noncharacters": BadTable(".csv", _lyrics("\ufffe\uffff\U0010ffff"), (2, 1)),
    "csv: lyrics named NA, null, nan": BadTable(".csv", _lyrics("NA", "null", "nan"), (4, 1)),
    "csv: index of infinities": BadTable(".csv", csv(f"inf,{_good()}", header=f",{HEADER}"), (1, 1)),
    "csv: index of huge numbers": BadTable(".csv", csv(f"{10**40},{_good()}", header=f",{HEADER}"), (1, 1)),
    "csv: formulas": BadTable(".csv", csv(_good(), "=cmd|'/C mkdir CANARY'!A0,@SUM(1),+1,0.5"), (2, 1)),
    "xlsx: zero bytes": BadTable(".xlsx", b""),
    "xlsx: a csv": BadTable(".xlsx", csv(_good())),
    "xlsx: a zip of something else": BadTable(".xlsx", _zip(**{"readme.txt": "hello"})),
    "xlsx: truncated": BadTable(".xlsx", SHEET[: len(SHEET) // 2]),
    "xlsx: end cut off": BadTable(".xlsx", SHEET[:-30]),
    "xlsx: an old .xls": BadTable(".xlsx", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(2000)),
    "xlsx: sheet breaks off": BadTable(".xlsx", _with_entry(SHEET, "xl/worksheets/sheet1.xml", "<worksheet><row>")),
    "xlsx: workbook is empty": BadTable(".xlsx", _with_entry(SHEET, "xl/workbook.xml", "")),
    "xlsx: workbook without sheets": BadTable(".xlsx", _with_entry(SHEET, "xl/workbook.xml", "<workbook/>")),
    "xlsx: billion laughs": BadTable(".xlsx", _with_prolog(SHEET, LAUGHS + "]>", "&j;")),
    "xlsx: outside entity": BadTable(
        ".xlsx", _with_prolog(SHEET, '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', "&e;")
    ),
    "xlsx: header only": BadTable(".xlsx", _sheet()),
    "xlsx: a folder": BadTable(".xlsx", Path.mkdir),
    "xlsx: cells of every kind": BadTable(
        ".xlsx",
        _sheet(("Ann", WORDS, "River", 0.5), ("Ann", 5, "x", 0.5), ("Ann", True, "x", 0.5), (None, None, None, None),
               (1, WORDS + " Again", 2, "0.5"), ("Ann", WORDS, "x", True), ("Ann", "=1/0", "x", 0.5)),
        (6, 2),
    ),
}  # fmt: skip


# ---------------------------------------------------------------- tables of every kind


MARKS = "\u0301\u0323" * 50_000  # in the order that costs most


def _xml(root: str, inner: str, content: str, before: str = "") -> str:
    return f'<{root} xmlns="{NAMESPACE}">{before}<{inner}>{content}</{inner}></{root}>'


def _sheet_of(*rows: str, before: str = "") -> bytes:
    """An .xlsx file whose first sheet has these rows, each of them XML."""
    return _with_entry(SHEET, "xl/worksheets/sheet1.xml", _xml("worksheet", "sheetData", "".join(rows), before))


def _cell(value: object, place: str = "") -> str:
    """XML of a cell; without a place it stands behind the one before."""
    place = place and f' r="{place}"'
    text = f' t="inlineStr"><is><t>{value}</t></is>' if isinstance(value, str) else f"><v>{value}</v>"
    return f"<c{place}{text}</c>"


def _row(*values: object, number: object = "") -> str:
    number = number and f' r="{number}"'
    return f"<row{number}>{''.join(map(_cell, values))}</row>"


GOOD_ROWS = _row(*HEADER.split(",")) + _row("Ann Example", WORDS, "River", 0.5)


def in_kind(kind: str, *rows: dict) -> bytes:
    """Rows with the same columns as a song table of that kind."""
    if kind in (".json", ".jsonl"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        return ("\n".join(lines) if kind == ".jsonl" else f"[{','.join(lines)}]").encode()
    if kind == ".pkl":
        return song_pickle(columns={name: [row[name] for row in rows] for name in rows[0]})
    if kind == ".xlsx":
        return _sheet_of(*(_row(*values) for values in (rows[0], *map(dict.values, rows))))
    return pd.DataFrame(rows).to_csv(index=False, sep="\t" if kind == ".tsv" else ",").encode()


def _lyrics_twice(kind: str) -> bytes:
    """Two columns that are both the lyrics, by one name where the kind can say that, or by two."""
    if kind in (".csv", ".tsv"):
        return in_kind(kind, ROW | {"Again": WORDS}).replace(b"Again", b"lyrics")
    return in_kind(kind, ROW | {" Lyrics": WORDS})


def _doubling(kind: str, times: int = 40) -> bytes:
    """A song pickle with a cell that holds the cell before twice, again and again: in a list, or under two keys."""
    cell = _text("la")
    for n in range(-1, times):
        again = b"h" + bytes([n]) if n >= 0 else b"N"
        cell = b"](" + cell + again + b"e" if kind == "list" else b"}(" + _text("a") + cell + _text("b") + again + b"u"
        cell += b"\x94"
    return _cells(cell)


def _sparse(path: Path) -> None:
    """3 GiB of zeros that take no room."""
    path.touch()
    os.truncate(path, 3 * 2**30)


def _texts(**files: bytes | Callable[[Path], None]) -> Callable[[Path], None]:
    """A folder of .txt files."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for name, content in files.items():
            path = folder / f"{name}.txt"
            content(path) if callable(content) else path.write_bytes(content)

    return make


def _large(kind: str, content: Callable[[], bytes], rows: tuple[int, int] | None = None) -> BadTable:
    """Made when it is needed."""
    return BadTable(kind, lambda path: path.write_bytes(content()), rows)


WIDE = dict.fromkeys((f"c{n}" for n in range(10_000)), 1)
LONG = "la " * 3_333_334  # beyond the letters that a cell may have
BOUNDLESS = {
    **{f"{kind}: 10,000 columns": _large(kind, partial(in_kind, kind, ROW | WIDE)) for kind in KINDS},
    **{f"{kind}: a cell of 10 MB": _large(kind, partial(in_kind, kind, ROW | {"lyrics": LONG})) for kind in KINDS},
    **{f"{kind}: 3 GiB of zeros": BadTable(kind, _sparse) for kind in KINDS},
    "txt: 3 GiB of zeros": BadTable("", _texts(one=_sparse)),
    "txt: a song of 10 MB": BadTable("", _texts(one=LONG.encode())),
    "csv: a cell of 11 MB in quotes": _large(".csv", lambda: csv(_good(), 'Ann,"' + "la\n" * 3_600_000 + '",x,0.5')),
    "csv: a line of 30 MB": _large(".csv", lambda: csv(_good(), "Ann," + "la," * 10_000_000)),
    "csv: a header of 30 MB": _large(".csv", lambda: b"la," * 10_000_000),
    "csv: 20 MB after a quote": _large(".csv", lambda: csv(_good(), 'Ann,"never closed', *[_good()] * 180_000)),
    "json: a dict of 10,000 columns": _large(".json", lambda: json.dumps({name: [1] for name in WIDE}).encode()),
    "json: 20,000,000 empty lists": _large(".json", lambda: b'[{"lyrics": [' + b"[]," * 20_000_000 + b"0]}]"),
    "json: 20,000,000 empty records": _large(".json", lambda: b"[" + b"{}," * 20_000_000 + b"{}]"),
    "jsonl: new columns in every row": _large(".jsonl", lambda: b"".join(b'{"n%d": 1}\n' % n for n in range(10_000))),
    "pickle: a list that doubles 40 times": BadTable(".pkl", _doubling("list")),
    "pickle: a dict that doubles 40 times": BadTable(".pkl", _doubling("dict")),
    "pickle: one list as all columns": BadTable(
        ".pkl", song_pickle(columns=dict(zip(ROW, [[WORDS]] * 4, strict=True)))
    ),
    "pickle: 10 MB two hundred times": _large(".pkl", lambda: song_pickle(rows=200, lyrics=["la " * 3_000_000] * 200)),
    "xlsx: 70 MB unpacked": _large(".xlsx", lambda: _with_entry(SHEET, "xl/more.xml", " " * 70_000_000)),
    "xlsx: 3,000,000 cells without a value": _large(".xlsx", lambda: _sheet_of("<c/>" * 3_000_000)),
    "xlsx: 3,000,000 rows without a cell": _large(".xlsx", lambda: _sheet_of(GOOD_ROWS, "<row/>" * 3_000_000)),
    "xlsx: 3,000,000 styles": _large(
        ".xlsx", lambda: _with_entry(SHEET, "xl/styles.xml", _xml("styleSheet", "cellXfs", "<xf/>" * 3_000_000))
    ),
    "xlsx: 3,000,000 properties": _large(
        ".xlsx", lambda: _with_entry(SHEET, "xl/workbook.xml", _xml("workbook", "sheets", "<x/>" * 3_000_000))
    ),
}
CHEAP = {  # what costs little in the file, and must cost little in time and memory
    "pickle: one text ten times": BadTable(".pkl", song_pickle(rows=10), (10, 1)),
    "xlsx: dimensions too large": BadTable(
        ".xlsx", _sheet_of(GOOD_ROWS, before='<dimension ref="A1:XFD1048576"/>'), (1, 1)
    ),
    "xlsx: dimensions too small": BadTable(".xlsx", _sheet_of(GOOD_ROWS, before='<dimension ref="A1:A1"/>'), (1, 1)),
    "csv: 100,000 marks in the lyrics": _large(".csv", lambda: csv(_good(), f'Ann,"{WORDS}, e{MARKS}",x,0.5'), (2, 2)),
    "csv: 100,000 marks in the artist": _large(".csv", lambda: csv(f'e{MARKS},"{WORDS}",x,0.5'), (1, 1)),
    "csv: 100,000 marks alone": _large(".csv", lambda: csv(_good(), f"Ann,{MARKS},x,0.5"), (2, 1)),
    "csv: 100,000 letters, each of eighteen": _large(
        ".csv", lambda: csv(_good(), f'Ann,"{WORDS} {chr(0xFDFA) * 100_000}",x,0.5'), (2, 2)
    ),
}
SHEETS = {
    f"xlsx: {name}": BadTable(".xlsx", _sheet_of(GOOD_ROWS, *rows))
    for name, rows in {
        "row number 2,000,000,000": [_row("Ben", WORDS, "Roof", 0.5, number=2_000_000_000)],
        "row number of thirty digits": [_row("Ben", WORDS, "Roof", 0.5, number=10**30)],
        "row number as text": [_row("Ben", WORDS, "Roof", 0.5, number="two")],
        "a cell in the last column": [f"<row>{_cell(1, 'XFD3')}</row>"],
        "a cell in the last corner": [f'<row r="1048576">{_cell(1, "XFD1048576")}</row>'],
        "a cell in a column beyond": [f"<row>{_cell(1, 'ZZZZZZZZZ3')}</row>"],
        "a cell in no column": [f"<row>{_cell(1, '33')}</row>"],
        "a string that is not there": ['<row><c t="s"><v>99</v></c></row>'],
        "a number that is none": ["<row><c><v>one</v></c></row>"],
    }.items()
} | {"xlsx: dimensions that are none": BadTable(".xlsx", _sheet_of(GOOD_ROWS, before='<dimension ref="everywhere"/>'))}
NAMES_AS_ROW = dict(zip(ROW, ROW, strict=True))
HEADERS = {
    **{f"{kind}: two columns of lyrics": BadTable(kind, _lyrics_twice(kind)) for kind in KINDS},
    **{
        f"{kind}: a name twice in a record": BadTable(kind, in_kind(kind, ROW | {"x": "y"}).replace(b'"x"', b'"title"'))
        for kind in (".json", ".jsonl")
    },
    "csv: lyrics by two names": BadTable(".csv", in_kind(".csv", ROW | {"seq": WORDS})),
    "csv: labels by two names": BadTable(".csv", in_kind(".csv", ROW | {"LABEL": 0.1})),
    **{
        f"{kind}: the header again {where}": BadTable(kind, in_kind(kind, *rows))
        for kind in (".csv", ".tsv", ".xlsx")
        for where, rows in {
            "at once": (NAMES_AS_ROW, ROW),
            "in between": (ROW, NAMES_AS_ROW, ROW),
            "at the end": (ROW, NAMES_AS_ROW),
        }.items()
    },
    "csv: the header again in quotes": BadTable(".csv", csv(_good(), '"artist","seq","song","label"', _good())),
}
UNDECODABLE = {
    "Latin-1": ("latin-1", "Zoë"), "Windows-1252": ("cp1252", "Zoë’s"), "Mac Roman": ("mac-roman", "Zoë"),
    "Shift JIS": ("shift-jis", "歌う人"), "GBK": ("gbk", "歌唱"), "EUC-KR": ("euc-kr", "노래"),
    "KOI8-R": ("koi8-r", "Анна"), "EBCDIC": ("cp037", "Zoe"), "UTF-32": ("utf-32", "Zoe"),
    "UTF-32 without a mark": ("utf-32-le", "Zoë"), "UTF-16 LE without a mark": ("utf-16-le", "Zoe"),
    "UTF-16 BE without a mark": ("utf-16-be", "Zoe"),
}  # fmt: skip
MARKED = {
    "UTF-8": ("utf-8", b"\xef\xbb\xbf"),
    "UTF-16 LE": ("utf-16-le", b"\xff\xfe"),
    "UTF-16 BE": ("utf-16-be", b"\xfe\xff"),
}


def _in_encoding(kind: str, encoding: str, artist: str) -> bytes:
    """Fifty rows that any encoding writes in the same way, and one that it does not."""
    rows = [ROW | {"lyrics": f"{WORDS} {n}"} for n in range(50)]
    return in_kind(kind, *rows, ROW | {"artist": artist}).decode().encode(encoding)


ENCODINGS = {
    **{
        f"{kind}: {name}": BadTable(kind, _in_encoding(kind, *encoding))
        for kind in (".csv", ".tsv", ".jsonl")
        for name, encoding in UNDECODABLE.items()
    },
    "txt: Latin-1": BadTable("", _texts(one=WORDS.encode(), two="Das Café war schön".encode("latin-1"))),
    "csv: a letter cut in two": BadTable(".csv", csv(_good(), "Zoë")[:-2]),
    "csv: UTF-8 of half characters": BadTable(".csv", csv(_good()) + b"\xed\xa0\xbd\xed\xb8\x80,a,b,0.5\n"),
    "csv: UTF-16 with half a letter": BadTable(".csv", csv(_good(), encoding="utf-16")[:-1]),
    "csv: UTF-16 of half characters": BadTable(".csv", csv(_good("\ud83d"), encoding="utf-16")),
    **{
        f"{kind}: {name} with a mark": BadTable(kind, mark + in_kind(kind, ROW).decode().encode(encoding), (1, 1))
        for kind in (".csv", ".tsv", ".json", ".jsonl")
        for name, (encoding, mark) in MARKED.items()
    },
    "csv: line ends of an old Macintosh": BadTable(".csv", csv(_good()).replace(b"\n", b"\r"), (1, 1)),
}
BAD_TABLES |= BOUNDLESS | CHEAP | SHEETS | HEADERS | ENCODINGS


# ---------------------------------------------------------------- what stands where a file should, and how it is named


def _open_to_none(path: Path) -> None:
    """A sound file that an ordinary user may not read."""
    path.chmod(0)


def _instead(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Made where a sound file or folder stood."""

    def place(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)

    return place


PLACES: dict[str, Callable[[Path], None]] = {
    "nothing": _instead(lambda path: None),
    "a folder": _instead(Path.mkdir),
    "a pipe": _instead(os.mkfifo),
    "a device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a socket": _instead(lambda path: os.mknod(path, stat.S_IFSOCK | 0o666)),
    "a link to itself": _instead(lambda path: path.symlink_to(path)),
    "a link to a folder": _instead(lambda path: path.symlink_to("/")),
    "a closed file": _open_to_none,
    "3 GiB of zeros": _instead(_sparse),
}
BAD_NAMES = {
    "300 letters": "x" * 300,
    "300 letters of four bytes": "🎵" * 300,
    "a long path": "/".join(["long"] * 2_000),
    "terminal escapes": "\x1b[31mred\x1b]0;title\x07",
    "line ends": "one\ntwo\r\nthree\u2028four",
    "from right to left": "\u202egnp",
    "bytes that are no UTF-8": "\udcff\udcfe",
    "a NUL byte": "a\0b",
    "nothing but blanks": "   ",
    "below a file": "file/below",
}


# ---------------------------------------------------------------- arguments

FRAME = pd.DataFrame({name: [value] for name, value in ROW.items()})
WRONG_VALUES: dict[str, Callable[[], object]] = {
    "None": lambda: None,
    "a text": lambda: "one\ntwo\x1b[31m",
    "a number as text": lambda: "0.5",
    "-1": lambda: -1,
    "10**30": lambda: 10**30,
    "NaN": lambda: float("nan"),
    "True": lambda: True,
    "a nested list": lambda: [["one", ["two"]], 3],
    "a dict": lambda: {"one": 1},
    "a table": lambda: FRAME,
    "an object": object,
}
BAD_FRAMES: dict[str, Callable[[], pd.DataFrame]] = {
    "no columns": pd.DataFrame,
    "no rows": lambda: FRAME.head(0),
    "columns that are numbers": lambda: FRAME.set_axis(range(4), axis=1),
    "columns that are lists": lambda: FRAME.set_axis(
        pd.Index([("a",), ("b",), ("c",), ("d",)], tupleize_cols=False), axis=1
    ),
    "columns of two levels": lambda: pd.concat({"outer": FRAME}, axis=1),
    "a column twice": lambda: pd.concat([FRAME, FRAME["lyrics"]], axis=1),
    "a column by two names": lambda: FRAME.assign(seq="la"),
    "no lyrics": lambda: FRAME.drop(columns="lyrics"),
    "lyrics of numbers": lambda: FRAME.assign(lyrics=5),
    "lyrics of lists": lambda: FRAME.assign(lyrics=[["la"]]),
    "lyrics of tables": lambda: FRAME.assign(lyrics=[FRAME]),
    "lyrics of arrays": lambda: FRAME.assign(lyrics=[np.array(["la"])]),
    "lyrics of None": lambda: FRAME.assign(lyrics=None),
    "lyrics of NA": lambda: FRAME.assign(lyrics=pd.array([pd.NA], dtype="string")),
    "lyrics of dates": lambda: FRAME.assign(lyrics=pd.Timestamp("2024-01-01")),
    "lyrics of complex numbers": lambda: FRAME.assign(lyrics=1j),
    "valence of lists": lambda: FRAME.assign(valence=[[0.5]]),
    "valence of complex numbers": lambda: FRAME.assign(valence=0.5 + 0j),
    "valence of dates": lambda: FRAME.assign(valence=pd.Timestamp("2024-01-01")),
    "valence of NA": lambda: FRAME.assign(valence=pd.array([pd.NA], dtype="Float64")),
    "valence beyond": lambda: FRAME.assign(valence=10**400),
}


# ---------------------------------------------------------------- checkpoints


def _remove(name):
    return lambda folder, other: (folder / name).unlink()


def _rewrite(name, content):
    return lambda folder, other: (folder / name).write_bytes(content)


def _truncate(name):
    return lambda folder, other: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def _flip(name, position):
    def damage(folder, other):
        data = bytearray((folder / name).read_bytes())
        data[int(position * len(data))] ^= 0x10
        (folder / name).write_bytes(data)

    return damage


def _swap(name):
    return lambda folder, other: shutil.copy(other / name, folder / name)


def _change(name, *keys_and_value):
    """Set one value of a JSON file; None as the value removes it."""

    def damage(folder, other):
        content = json.loads((folder / name).read_text())
        *outer, key, value = keys_and_value
        inner = content
        for step in outer:
            inner = inner[step]
        if value is None:
            del inner[key]
        else:
            inner[key] = value
        (folder / name).write_text(json.dumps(content))

    return damage


def _set(name, *keys_and_value):
    """Like `_change`, but None as the value stands for null."""
    *keys, value = keys_and_value
    null = "null" if value is None else value

    def damage(folder, other):
        _change(name, *keys, null)(folder, other)
        if value is None:
            text = (folder / name).read_text()
            (folder / name).write_text(text.replace(f'"{keys[-1]}": "null"', f'"{keys[-1]}": null'))

    return damage


def _tensors(name, change, hide=True):
    """Change the dict of tensors in a weights file and, if `hide`, the checksum in config.json as well."""

    def damage(folder, other):
        weights = change(load_file(folder / name))
        save_file({key: weight.contiguous() for key, weight in weights.items()}, folder / name)
        if hide:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            _change("config.json", "sha256", name, found)(folder, other)

    return damage


def _weights(name, change, hide=True):
    """Change every tensor of a weights file."""
    return _tensors(name, lambda weights: {key: change(weight) for key, weight in weights.items()}, hide)


def _first(change):
    """Change one tensor alone, the first by name; None as the new one removes it."""

    def changed(weights):
        name = min(weights)
        weight = change(weights.pop(name))
        return weights if weight is None else weights | {name: weight}

    return changed


def _one_tensor(name, change):
    """Change one tensor of a blend's word model."""
    return _tensors(WORDS_FILE, lambda weights: weights | {name: change(weights[name])})


def _spelled(change):
    """Change the vocabulary of a blend's word model, given as bytes."""

    def changed(weights):
        spelled = change(bytes(weights["vocabulary"].tolist()))
        return weights | {"vocabulary": torch.tensor(list(spelled), dtype=torch.uint8)}

    return _tensors(WORDS_FILE, changed)


def _empty_folder(folder, other):
    shutil.rmtree(folder)
    folder.mkdir()


def _file_instead(folder, other):
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def _folder_instead(name):
    def damage(folder, other):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


BOTH = ("load_model", "load_results")
RESULTS = ("load_results",)
ADAPTER, HEAD, WORDS_FILE = "adapter_model.safetensors", "head.safetensors", "words.safetensors"
NOT_A_CSV = b"\x93NUMPY\0\xff"
BAD_CHECKPOINTS = {
    "no folder": BadCheckpoint("lora", lambda folder, other: shutil.rmtree(folder), BOTH),
    "empty folder": BadCheckpoint("lora", _empty_folder, BOTH),
    "file instead of a folder": BadCheckpoint("lora", _file_instead, BOTH),
    **{
        f"{model} without {name}": BadCheckpoint(model, _remove(name), refused_by)
        for model, name, refused_by in (
            ("baseline", "config.json", BOTH),
            ("baseline", "model.safetensors", ("load_model",)),
            ("lora", "config.json", BOTH),
            ("lora", ADAPTER, ("load_model",)),
            ("lora", HEAD, ("load_model",)),
            ("lora", "adapter_config.json", ()),  # for stock peft; config.json says the same
            ("lora", "README.md", ()),
            ("lora", "history.json", RESULTS),
            ("lora", "metrics.json", RESULTS),
            ("lora", "predictions.csv", RESULTS),
        )
    },
    **{f"{name} truncated": BadCheckpoint("lora", _truncate(name)) for name in (ADAPTER, HEAD)},
    **{f"{name} empty": BadCheckpoint("lora", _rewrite(name, b"")) for name in (ADAPTER, HEAD)},
    **{
        f"{name} with a bit flipped at {position:.0%}": BadCheckpoint("lora", _flip(name, position))
        for name in (ADAPTER, HEAD)
        for position in (0.0, 0.001, 0.5, 0.999)
    },
    "model.safetensors truncated": BadCheckpoint("baseline", _truncate("model.safetensors")),
    "model.safetensors is a pickle": BadCheckpoint("baseline", _rewrite("model.safetensors", STACK_GLOBAL + CALL)),
    "model.safetensors is a folder": BadCheckpoint("baseline", _folder_instead("model.safetensors")),
    "header claims 8 EiB": BadCheckpoint("baseline", _rewrite("model.safetensors", struct.pack("<Q", 2**63) + b"{}")),
    "config of the other model": BadCheckpoint("lora", _swap("config.json")),
    "baseline with the config of the other model": BadCheckpoint("baseline", _swap("config.json")),
    "head of NaN": BadCheckpoint("lora", _weights(HEAD, lambda weight: weight * np.nan)),
    "adapters of infinity": BadCheckpoint("lora", _weights(ADAPTER, lambda weight: weight + np.inf)),
    "baseline of NaN": BadCheckpoint("baseline", _weights("model.safetensors", lambda weight: weight * np.nan)),
    "weights changed": BadCheckpoint("lora", _weights(HEAD, lambda weight: weight + 1, hide=False)),
    "head of another shape": BadCheckpoint("lora", _weights(HEAD, lambda weight: torch.cat([weight, weight]))),
    "adapters of another rank": BadCheckpoint("lora", _weights(ADAPTER, lambda weight: torch.cat([weight, weight]))),
    "rank changed": BadCheckpoint("lora", _change("config.json", "recipe", "rank", 4)),
    "rank -1": BadCheckpoint("lora", _change("config.json", "recipe", "rank", -1), BOTH),
    "rank 0": BadCheckpoint("lora", _change("config.json", "recipe", "rank", 0), BOTH),
    "rank of a billion": BadCheckpoint("lora", _change("config.json", "recipe", "rank", 10**9)),
    "rank as text": BadCheckpoint("lora", _change("config.json", "recipe", "rank", "8"), BOTH),
    "no rank": BadCheckpoint("lora", _change("config.json", "recipe", "rank", None)),
    "alpha as text": BadCheckpoint("lora", _change("config.json", "recipe", "alpha", "16"), BOTH),
    "dropout of 5": BadCheckpoint("lora", _change("config.json", "recipe", "lora_dropout", 5), BOTH),
    "99 adapted layers": BadCheckpoint("lora", _change("config.json", "recipe", "adapted_layers", 99)),
    "no adapted layers": BadCheckpoint("lora", _change("config.json", "recipe", "adapted_layers", 0), BOTH),
    "unknown pooling": BadCheckpoint("lora", _change("config.json", "recipe", "pooling", "median"), BOTH),
    "unknown model": BadCheckpoint("lora", _change("config.json", "recipe", "model", "gpt"), BOTH),
    "model as a list": BadCheckpoint("lora", _change("config.json", "recipe", "model", ["lora"]), BOTH),
    "unknown setting": BadCheckpoint("lora", _change("config.json", "recipe", "colour", "red"), BOTH),
    "recipe is a list": BadCheckpoint("lora", _change("config.json", "recipe", [1]), BOTH),
    "no recipe": BadCheckpoint("lora", _change("config.json", "recipe", None), BOTH),
    "windows of 0": BadCheckpoint("baseline", _change("config.json", "max_length", 0)),
    "windows of 100,000": BadCheckpoint("baseline", _change("config.json", "max_length", 100_000)),
    "windows as text": BadCheckpoint("baseline", _change("config.json", "max_length", "512"), BOTH),
    "stride above the window": BadCheckpoint("baseline", _change("config.json", "stride", 512)),
    "negative stride": BadCheckpoint("baseline", _change("config.json", "stride", -1)),
    "a later version": BadCheckpoint("lora", _change("config.json", "version", 3), BOTH),
    "weights of another encoder": BadCheckpoint("lora", _change("config.json", "encoder_sha256", "0" * 64)),
    "no encoder": BadCheckpoint("lora", _change("config.json", "encoder_sha256", None), BOTH),
    "no checksums": BadCheckpoint("lora", _change("config.json", "sha256", None), BOTH),
    "checksums are a list": BadCheckpoint("lora", _change("config.json", "sha256", ["x"]), BOTH),
    **{
        f"{name} {how}": BadCheckpoint("lora", _rewrite(name, content), BOTH if name == "config.json" else RESULTS)
        for name in ("config.json", "history.json", "metrics.json")
        for how, content in {
            "empty": b"",
            "cut off": b'{"version": 1, "rec',
            "a number": b"7",
            "null": b"null",
            "a list of lists": b"[[1]]",
            "in Latin-1": '{"profile": "é"}'.encode("latin-1"),
            "nested 100,000 deep": b"[" * 100_000,
            "NUL bytes": bytes(100),
        }.items()
    },
    "history of texts": BadCheckpoint("lora", _change("history.json", 0, "validation_mse", "low"), RESULTS),
    "history without a name": BadCheckpoint("lora", _change("history.json", 0, "epoch", None), RESULTS),
    "metrics of texts": BadCheckpoint("lora", _change("metrics.json", "mse", "low"), RESULTS),
    **{
        f"predictions {how}": BadCheckpoint("lora", _rewrite("predictions.csv", content), RESULTS)
        for how, content in {
            "empty": b"",
            "of other columns": b"row,artist\n1,a\n",
            "in binary": NOT_A_CSV,
            "of texts": b"row,artist,title,words,chunks,valence,prediction\n1,a,b,10,1,high,0.5\n",
            "of NaN": b"row,artist,title,words,chunks,valence,prediction\n1,a,b,10,1,0.5,nan\n",
            "without a value": b"row,artist,title,words,chunks,valence,prediction\n1,a,b,10,1,0.5,\n",
        }.items()
    },
}

NO_NUMBERS = {
    "NaN": float("nan"), "infinite": float("inf"), "minus infinite": float("-inf"), "null": None, "text": "0.5",
    "true": True, "a list": [1], "a dict": {"a": 1}, "-1": -1, "10**30": 10**30,
}  # fmt: skip
NO_TEXTS = {"a number": 7, "null": None, "a list": ["text"], "a dict": {"a": 1}, "true": True, "unknown": "nonsense"}
NUMBERS = (
    "pooled_layers", "adapted_layers", "rank", "alpha", "lora_dropout", "attention_dropout", "distillation_weight",
    "epochs", "batch_songs", "learning_rate", "head_learning_rate", "weight_decay", "warmup", "text_weight", "rescale",
)  # fmt: skip
CHOICES = ("model", "pooling", "loss_on", "init", "schedule")
BAD_RECIPES = {
    f"{field} {how}": BadCheckpoint("lora", _set("config.json", "recipe", field, value), BOTH)
    for fields, values in (
        (NUMBERS, {how: NO_NUMBERS[how] for how in ("NaN", "null", "text", "-1")}),
        (CHOICES, {how: NO_TEXTS[how] for how in ("a number", "unknown")}),
        (("target_modules",), {"text": "query", "null": None, "numbers": [1, 2]}),
    )
    for field in fields
    for how, value in values.items()
} | {
    f"target_modules {how}": BadCheckpoint("lora", _set("config.json", "recipe", "target_modules", value))
    for how, value in {"empty": [], "unknown": ["nonsense"]}.items()
}
FIELDS = {
    "version": {"true": True, "0": 0, "NaN": float("nan"), "null": None},
    "seed": {"NaN": float("nan"), "text": "1", "-1": -1, "2**32": 2**32, "0.5": 0.5},
    "max_length": {"infinite": float("inf"), "text": "512", "null": None, "0.5": 0.5},
    "stride": {"NaN": float("nan"), "a list": [1], "0.5": 0.5},
    **{field: {how: NO_TEXTS[how] for how in ("a number", "null")} for field in (
        "encoder", "encoder_sha256", "profile"
    )},
    "sha256": {"text": "0" * 64, "null": None, "of numbers": {HEAD: 7}, "of null": {HEAD: None}},
    "recipe": {"text": "lora", "a number": 7, "null": None, "empty": {}},
    "residuals": {"text": "0.5", "a number": 0.5, "a dict": {"0": 0.5}, "empty": [], "in a list": [[0.5]], **{
        f"of {value}": [0.1, value] for value in (float("nan"), float("inf"), None, True, "0.5", -0.1, 1.1)
    }},
}  # fmt: skip
BAD_FIELDS = {
    f"config: {field} {how}": BadCheckpoint("lora", _set("config.json", field, value), BOTH)
    for field, values in FIELDS.items()
    for how, value in values.items()
} | {
    f"config: {field} {how}": BadCheckpoint("lora", _set("config.json", field, value))
    for field, how, value in (
        ("max_length", "-1", -1),
        ("max_length", "10**30", 10**30),
        ("stride", "10**30", 10**30),
        ("encoder_sha256", "empty", ""),
        ("sha256", "empty", {}),
    )
}
BAD_WEIGHTS = {
    **{
        f"{name} in {str(dtype).removeprefix('torch.')}": BadCheckpoint(
            model, _weights(name, lambda w, dtype=dtype: w.to(dtype))
        )
        for model, name in (("baseline", "model.safetensors"), ("lora", HEAD), ("lora", ADAPTER))
        for dtype in (torch.int64, torch.bool, torch.complex64, torch.float16)
    },
    **{
        f"{name}: {how}": BadCheckpoint(model, _tensors(name, change))
        for model, name in (("baseline", "model.safetensors"), ("lora", HEAD), ("lora", ADAPTER))
        for how, change in {
            "one NaN": _first(lambda weight: weight.index_fill(0, torch.tensor([0]), torch.nan)),
            "one of infinity": _first(lambda weight: weight.index_fill(0, torch.tensor([0]), -torch.inf)),
            "finite but huge": _first(lambda weight: weight * 0 + 3e38),
            "of ten million": _first(lambda weight: weight * 0 - 1e7),
            "a dimension more": _first(lambda weight: weight[None]),
            "a row less": _first(lambda weight: weight[1:]),
            "empty": _first(lambda weight: weight[:0]),
            "a tensor less": _first(lambda weight: None),
            "a tensor more": lambda weights: weights | {"more": torch.zeros(1)},
            "a tensor under another name": lambda weights: {f"x.{key}": weight for key, weight in weights.items()},
            "no tensors": lambda weights: {},
        }.items()
    },
    "weights of the blend's LoRA of NaN": BadCheckpoint("blend", _weights(ADAPTER, lambda weight: weight * np.nan)),
    "a blend said to be LoRA": BadCheckpoint("blend", _set("config.json", "recipe", "rank", 4)),
    "LoRA said to be a blend": BadCheckpoint("lora", _set("config.json", "recipe", "model", "blend")),
    "baseline said to be full": BadCheckpoint("baseline", _set("config.json", "recipe", "model", "full")),
}
ARRAYS = ("idf", "form_mean", "form_scale", "coefficients", "intercept", "mean_valence", "vocabulary")
BAD_WORDS = {
    **{
        f"{array} {how}": BadCheckpoint("blend", _one_tensor(array, change))
        for array in ARRAYS
        for how, change in {
            "empty": lambda values: values[:0],
            "a value less": lambda values: values[:-1],
            "a value more": lambda values: torch.cat([values, values[-1:]]),
            "in int64": lambda values: values.long(),
            "as a table": lambda values: values[None],
        }.items()
        if (array, how) not in {("vocabulary", "a value less"), ("vocabulary", "a value more")}  # another n-gram
    },
    **{
        f"{array} {how}": BadCheckpoint("blend", _one_tensor(array, lambda values, value=value: values * 0 + value))
        for array in ARRAYS[:-1]
        for how, value in {"of NaN": np.nan, "infinite": np.inf, "huge": 1e30}.items()
    },
    **{
        f"words without {array}": BadCheckpoint(
            "blend", _tensors(WORDS_FILE, lambda weights, array=array: {k: v for k, v in weights.items() if k != array})
        )
        for array in ARRAYS
    },
    **{
        f"vocabulary {how}": BadCheckpoint("blend", _spelled(change))
        for how, change in {
            "with an n-gram twice": lambda spelled: b"\n".join([*spelled.split(b"\n")[:-1], spelled.split(b"\n")[0]]),
            "with an n-gram less": lambda spelled: spelled.rpartition(b"\n")[0],
            "with an n-gram more": lambda spelled: spelled + b"\nmore",
            "of invalid UTF-8": lambda spelled: spelled[:-1] + b"\xff",
            "of NUL bytes": lambda spelled: bytes(len(spelled)),
            "in UTF-16": lambda spelled: spelled.decode().encode("utf-16"),
        }.items()
    },
    "words with a tensor more": BadCheckpoint(
        "blend", _tensors(WORDS_FILE, lambda weights: weights | {"x": torch.ones(1)})
    ),
    "form_scale of zero": BadCheckpoint("blend", _one_tensor("form_scale", lambda values: values * 0)),
    "form_scale of which one is zero": BadCheckpoint(
        "blend", _one_tensor("form_scale", lambda values: torch.tensor([0.0, 1, 1, 1], dtype=torch.float64))
    ),
    "form_scale below zero": BadCheckpoint("blend", _one_tensor("form_scale", lambda values: -values)),
    "words of another checkpoint": BadCheckpoint("blend", _tensors(WORDS_FILE, _first(lambda v: v + 1), hide=False)),
}
PREDICTED = "row,artist,title,words,chunks,valence,prediction"
BAD_RESULTS = {
    **{
        f"history: {field} {how}": BadCheckpoint("lora", _set("history.json", 0, field, value), RESULTS)
        for field in ("epoch", "train_loss", "validation_mse")
        for how, value in NO_NUMBERS.items()
        if how not in ("-1", "10**30")
    },
    **{
        f"metrics: mse {how}": BadCheckpoint("lora", _set("metrics.json", "mse", value), RESULTS)
        for how, value in NO_NUMBERS.items()
        if how not in ("NaN", "null", "-1", "10**30")  # a score may be undefined
    },
    **{
        f"predictions: {how}": BadCheckpoint(
            "lora", _rewrite("predictions.csv", f"{PREDICTED}\n{line}\n".encode("utf-8", "surrogateescape")), RESULTS
        )
        for how, line in {
            "a row of text": "one,a,b,10,1,0.5,0.5",
            "a row of half": "1.5,a,b,10,1,0.5,0.5",
            "a row of ten to the thirty": f"{10**30},a,b,10,1,0.5,0.5",
            "no row": ",a,b,10,1,0.5,0.5",
            "an infinite valence": "1,a,b,10,1,inf,0.5",
            "chunks of text": "1,a,b,10,few,0.5,0.5",
            "too many cells": "1,a,b,10,1,0.5,0.5,7,8,9",
            "an open quote": '1,"a,b,10,1,0.5,0.5',
            "Latin-1": "1,\udce9,b,10,1,0.5,0.5",
        }.items()
    },
}
BAD_CHECKPOINTS |= BAD_RECIPES | BAD_FIELDS | BAD_WEIGHTS | BAD_WORDS | BAD_RESULTS


# ---------------------------------------------------------------- states of a training


def _signed(content: bytes) -> bytes:
    """With the checksum that a sound state has."""
    return hashlib.sha256(content).digest() + content


def _saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return _signed(file.getvalue())


def _in_state(**changes) -> Callable[[dict], bytes]:
    """A state in which some entries are replaced, by a function of what they were; None removes one."""

    def change(state):
        changed = {name: function(state[name]) for name, function in changes.items()}
        return _saved({name: value for name, value in (state | changed).items() if value is not None})

    return change


def _tensor(change):
    """Change the first of some tensors; None removes it."""
    return lambda tensors: {
        name: new for n, (name, old) in enumerate(tensors.items()) if (new := old if n else change(old)) is not None
    }


BAD_STATES: dict[str, Callable[[dict], bytes]] = {
    "empty": lambda state: b"",
    "31 bytes": lambda state: bytes(31),
    "zeros": lambda state: bytes(10_000),
    "the checksum of nothing": lambda state: _signed(b""),
    "cut off": lambda state: _saved(state)[:-100],
    "a bit flipped": lambda state: _saved(state)[:-1] + b"\xff",
    "without a checksum": lambda state: _saved(state)[32:],
    "signed random bytes": lambda state: _signed(np.random.default_rng(0).bytes(10_000)),
    "signed text": lambda state: _signed(b"PK\x03\x04 no state"),
    "a pickle that runs code": lambda state: _signed(STACK_GLOBAL + CALL),
    "saved code": lambda state: _saved({"history": Reduces()}),
    "code within": lambda state: _saved(state | {"optimizer": Reduces()}),
    "a list": lambda state: _saved([1]),
    "nothing": lambda state: _saved(None),
    "an empty dict": lambda state: _saved({}),
    **{f"without {name}": _in_state(**{name: lambda value: None}) for name in (
        "fingerprint", "history", "parameters", "best", "optimizer"
    )},
    "another fingerprint": _in_state(fingerprint=lambda value: "0" * 64),
    "a fingerprint of another kind": _in_state(fingerprint=lambda value: ["0"]),
    **{
        f"history {how}": _in_state(history=lambda value, new=new: new)
        for how, new in {
            "of text": "one",
            "of numbers": [1],
            "without a loss": [{"epoch": 1}],
            "of texts": [{"epoch": "1", "train_loss": "low", "validation_mse": "low", "seconds": 1.0}],
            "of NaN": [{"epoch": 1, "train_loss": np.nan, "validation_mse": np.nan, "seconds": 1.0}],
            "as a dict": {"epoch": 1},
        }.items()
    },
    **{
        f"{which} {how}": _in_state(**{which: change})
        for which in ("parameters", "best")
        for how, change in {
            "of NaN": _tensor(lambda tensor: tensor * np.nan),
            "that are huge": _tensor(lambda tensor: tensor * 0 + 1e30),
            "of another shape": _tensor(lambda tensor: tensor[1:]),
            "of another type": _tensor(lambda tensor: tensor.double()),
            "of which one is missing": _tensor(lambda tensor: None),
            "that are none": _tensor(lambda tensor: "a tensor"),
            "as a list": lambda tensors: [*tensors.values()],
            "as text": lambda tensors: "tensors",
        }.items()
    },
    **{
        f"optimizer {how}": _in_state(optimizer=change)
        for how, change in {
            "as a list": lambda optimizer: [1],
            "empty": lambda optimizer: {},
            "without groups": lambda optimizer: optimizer | {"param_groups": []},
            "with a group more": lambda optimizer: optimizer | {"param_groups": optimizer["param_groups"] * 2},
        }.items()
    },
}  # fmt: skip


# ---------------------------------------------------------------- encoder folders


def _json(name: str, **values) -> Callable[[Path], None]:
    """Set values of a JSON file."""

    def damage(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return damage


def _encoder_config(**values):
    return _json("config.json", **values)


def _tokenizer_config(**values):
    return _json("tokenizer_config.json", **values)


def _tokenizer(change: Callable[[dict], object], **values) -> Callable[[Path], None]:
    """Change tokenizer.json in place, and let transformers read it as it is."""

    def damage(folder):
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        _tokenizer_config(tokenizer_class="PreTrainedTokenizerFast", **values)(folder)

    return damage


def _encoder_weights(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def damage(folder):
        weights = change(load_file(folder / "model.safetensors"))
        save_file(
            {key: weight.clone() for key, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
        )

    return damage


def _without(name: str) -> Callable[[Path], None]:
    return _encoder_weights(lambda weights: {key: weight for key, weight in weights.items() if key != name})


def _with(name: str, change: Callable) -> Callable[[Path], None]:
    return _encoder_weights(lambda weights: weights | {name: change(weights[name])})


def _in_dtype(dtype: torch.dtype) -> Callable[[Path], None]:
    return _encoder_weights(lambda weights: {key: weight.to(dtype) for key, weight in weights.items()})


def _short_vocabulary(folder):
    """The parameters of 100 tokens, while the tokenizer has 8,000."""
    _with("embeddings.word_embeddings.weight", lambda weight: weight[:100])(folder)
    _encoder_config(vocab_size=100)(folder)


def _pickled_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Reduces()}, folder / "pytorch_model.bin")


def _remote_code(folder):
    (folder / "evil.py").write_text(f"import os\nos.mkdir({CANARY!r})\n")
    _encoder_config(model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})(folder)


def _no_tokenizer(folder):
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


DENSE = "encoder.layer.0.output.dense.weight"
BAD_ENCODERS: dict[str, Callable[[Path], None]] = {
    "weights truncated": lambda folder: os.truncate(folder / "model.safetensors", 100_000),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights are random bytes": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 1000),
    "pickled weights that run code": _pickled_weights,
    "code of its own": _remote_code,
    "no tokenizer": _no_tokenizer,
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer of no content": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "tokenizer of random bytes": lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff" * 1000),
    "settings of the tokenizer are a list": lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
    "settings of the tokenizer are empty": lambda folder: (folder / "tokenizer_config.json").write_text(""),
    "config missing": lambda folder: (folder / "config.json").unlink(),
    "config is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config cut off": lambda folder: (folder / "config.json").write_text("{"),
    "config nested 100,000 deep": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "config of 3 GiB": lambda folder: os.truncate(folder / "config.json", 3 * 2**30),
    "tokenizer of 3 GiB": lambda folder: os.truncate(folder / "tokenizer.json", 3 * 2**30),
    "hidden size changed": _encoder_config(hidden_size=100),
    "layers as text": _encoder_config(num_hidden_layers="six"),
    "a layer less in the config": _encoder_config(num_hidden_layers=5),
    "a layer more in the config": _encoder_config(num_hidden_layers=7),
    "no layers": _encoder_config(num_hidden_layers=0),
    "-1 layers": _encoder_config(num_hidden_layers=-1),
    **{
        f"{name} of a million": _encoder_config(**{name: 10**6})
        for name in (
            "num_hidden_layers",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
            "type_vocab_size",
        )
    },
    "all sizes of a million": _encoder_config(hidden_size=10**6, intermediate_size=10**6, vocab_size=10**6),
    "0 heads": _encoder_config(num_attention_heads=0),
    "5 heads": _encoder_config(num_attention_heads=5),
    "heads as text": _encoder_config(num_attention_heads="four"),
    "unknown activation": _encoder_config(hidden_act="evil"),
    "activation as a list": _encoder_config(hidden_act=["gelu"]),
    "layer_norm_eps as text": _encoder_config(layer_norm_eps="1e-12"),
    "layer_norm_eps of NaN": _encoder_config(layer_norm_eps=float("nan")),
    "vocabulary of 0": _encoder_config(vocab_size=0),
    "vocabulary of -1": _encoder_config(vocab_size=-1),
    "vocabulary as null": _encoder_config(vocab_size=None),
    "more positions than parameters": _encoder_config(max_position_embeddings=1_024),
    "fewer positions than parameters": _encoder_config(max_position_embeddings=100),
    "padding beyond the vocabulary": _encoder_config(pad_token_id=10**9),
    "other kinds of segments": _encoder_config(type_vocab_size=1),
    "layers of a decoder": _encoder_config(is_decoder=True, add_cross_attention=True),
    "a quantization that is not installed": _encoder_config(
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    ),
    "not of the BERT family": _encoder_config(model_type="gpt2"),
    "a family without a pooler": _encoder_config(model_type="distilbert"),
    **{
        f"without {name}": _without(name)
        for name in (
            DENSE,
            "embeddings.word_embeddings.weight",
            "embeddings.position_embeddings.weight",
            "embeddings.LayerNorm.bias",
            "encoder.layer.5.attention.self.query.bias",
        )
    },
    "no tensors": _encoder_weights(lambda weights: {"other": weights[DENSE]}),
    "a layer more in the weights": _encoder_weights(
        lambda weights: (
            weights | {key.replace("layer.0", "layer.6"): weights[key] for key in weights if "layer.0" in key}
        )
    ),
    "a weight of NaN": _with(DENSE, lambda weight: weight.index_fill(0, torch.tensor([3]), torch.nan)),
    "a weight of infinity": _with(DENSE, lambda weight: weight.index_fill(0, torch.tensor([3]), torch.inf)),
    "a weight that is huge": _with(DENSE, lambda weight: weight * 0 + 1e30),
    "embeddings of NaN": _with("embeddings.word_embeddings.weight", lambda weight: weight * torch.nan),
    "a weight of another shape": _with(DENSE, lambda weight: weight[1:]),
    "a weight turned round": _with(DENSE, lambda weight: weight.T.contiguous()),
    "fewer tokens than the tokenizer has": _short_vocabulary,
    "a token beyond the parameters": _tokenizer(lambda content: content["model"]["vocab"].update(river=99_999)),
    "a token of -1": _tokenizer(lambda content: content["model"]["vocab"].update(river=-1)),
    "an added token beyond the parameters": _tokenizer(
        lambda content: content["added_tokens"].append(
            content["added_tokens"][0] | {"id": 8_000, "content": "river, n"}
        )
    ),
    "no tokens": _tokenizer(lambda content: content["model"].update(vocab={})),
    "no tokens but the special ones": _tokenizer(
        lambda content: content["model"].update(vocab={"[UNK]": 0, "[CLS]": 1, "[SEP]": 2})
    ),
    "windows of text": _tokenizer_config(model_max_length="many"),
}
# Sound by themselves, and others than the encoder that they are copies of.
OTHER_ENCODERS: dict[str, Callable[[Path], None]] = {
    "2 heads": _encoder_config(num_attention_heads=2),
    "8 heads": _encoder_config(num_attention_heads=8),
    "another activation": _encoder_config(hidden_act="relu"),
    "nearly the same activation": _encoder_config(hidden_act="gelu_new"),
    "another layer_norm_eps": _encoder_config(layer_norm_eps=1e-5),
    "another family": _encoder_config(model_type="roberta"),
    "another weight": _with(DENSE, lambda weight: weight.index_fill(0, torch.tensor([3]), 0.0)),
    **{f"in {str(dtype).removeprefix('torch.')}": _in_dtype(dtype) for dtype in (torch.bfloat16, torch.float16)},
    "not lower-cased": _tokenizer_config(do_lower_case=False),
    "with accents": _tokenizer_config(strip_accents=False),
    "vocabulary permuted": _tokenizer(
        lambda content: content["model"]["vocab"].update(
            river=content["model"]["vocab"]["rain"], rain=content["model"]["vocab"]["river"]
        )
    ),
    "without normalization": _tokenizer(lambda content: content.update(normalizer=None)),
    "cut at blanks alone": _tokenizer(lambda content: content.update(pre_tokenizer={"type": "WhitespaceSplit"})),
    "another prefix within words": _tokenizer(lambda content: content["model"].update(continuing_subword_prefix="@@")),
    "long words unknown": _tokenizer(lambda content: content["model"].update(max_input_chars_per_word=50)),
    "no special tokens": _tokenizer(lambda content: content.update(post_processor=None)),
    "another first token": _tokenizer(
        lambda content: content["post_processor"]["special_tokens"]["[CLS]"].update(ids=[102])
    ),
    "another first token by its settings": _tokenizer_config(cls_token="river"),
    "cut from the left": _tokenizer_config(truncation_side="left"),
}
