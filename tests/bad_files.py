"""The collection of hostile and broken inputs that `tests/test_bad_files.py` runs.

Each input has a name, the loader it is for and what is expected: refused with a LyricsError, or survived with every row
accounted for. What a hostile file tries to do is always the same, to make a folder named `CANARY`, so that a test can
see whether any code ran.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
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
        model: "baseline" or "lora".
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
    "csv: a 10 MB line": BadTable(".csv", csv(_good(), f"Ann,{'love me ' * 1_250_000},River,0.5"), (2, 2)),
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


def _weights(name, change, hide=True):
    """Change every tensor of a weights file and, if `hide`, the checksum in config.json as well."""

    def damage(folder, other):
        weights = {key: change(weight).contiguous() for key, weight in load_file(folder / name).items()}
        save_file(weights, folder / name)
        if hide:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            _change("config.json", "sha256", name, found)(folder, other)

    return damage


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
ADAPTER, HEAD = "adapter_model.safetensors", "head.safetensors"
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


# ---------------------------------------------------------------- encoder folders


def _encoder_config(name, value):
    return lambda folder: _change("config.json", name, value)(folder, None)


def _pickled_weights(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings": Reduces()}, folder / "pytorch_model.bin")


def _remote_code(folder):
    (folder / "evil.py").write_text(f"import os\nos.mkdir({CANARY!r})\n")
    _encoder_config("model_type", "evil")(folder)
    _encoder_config("auto_map", {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})(folder)


def _no_tokenizer(folder):
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()


BAD_ENCODERS: dict[str, Callable[[Path], None]] = {
    "weights truncated": lambda folder: os.truncate(folder / "model.safetensors", 100_000),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "weights are random bytes": lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 1000),
    "pickled weights that run code": _pickled_weights,
    "code of its own": _remote_code,
    "no tokenizer": _no_tokenizer,
    "tokenizer of no content": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "config missing": lambda folder: (folder / "config.json").unlink(),
    "config is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config cut off": lambda folder: (folder / "config.json").write_text("{"),
    "hidden size changed": _encoder_config("hidden_size", 100),
    "layers as text": _encoder_config("num_hidden_layers", "six"),
    "not of the BERT family": _encoder_config("model_type", "gpt2"),
}
