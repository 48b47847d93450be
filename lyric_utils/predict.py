"""Score a table of songs with a saved model: `python -m lyric_utils.predict --model trained_models/lora songs.csv`.

A `.csv` may be larger than memory: it is read, scored and written in blocks. Under `accelerate launch` or `torchrun`
the processes take the blocks in turn, and the first of them writes them in the order of the table.
"""

import argparse
import csv
import glob
import hashlib
import io
from collections import deque
from collections.abc import Iterator
from itertools import compress, islice
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

import lyric_utils as lu
from lyric_utils.models import SongRegressor
from lyric_utils.songs import normalise_lyrics, read_rows
from lyric_utils.training import start_accelerator

BLOCK = 1_024  # songs that one process holds and scores at a time
HEADER, EMPTY = b"row,artist,title,prediction\n", b",\n"  # first line, and end of a line without prediction


def main() -> None:
    """Write each row's number, artist and title with the predicted valence; rows without words get an empty one."""
    parser = argparse.ArgumentParser(prog="python -m lyric_utils.predict", description=main.__doc__)
    parser.add_argument("songs", type=Path, help="song table: .csv, .xlsx or .pkl")
    parser.add_argument("--model", type=Path, default=Path("trained_models/lora"), help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=Path("scored.csv"), help="where the predictions go")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole block of a killed run")
    arguments = parser.parse_args()
    try:
        score_table(arguments.songs, arguments.model, arguments.out, arguments.resume)
    except lu.LyricsError as error:
        raise SystemExit(f"error: {error}") from error


def score_table(songs: Path, model: Path, out: Path, resume: bool = False) -> None:
    """Score a table into `out`. Until it is whole it stands beside `out` as a `.part`, which `resume` goes on with.

    Raises:
        LyricsError: the table or the model cannot be used, or `out` cannot be written.
    """
    accelerator = start_accelerator()
    regressor = lu.load_model(model)
    rows = read_rows(songs)
    try:
        if out.is_dir():
            raise IsADirectoryError("there is a folder of that name")
        part = out.with_name(f"{out.name}.{_fingerprint(songs, model)}.part")
        [(done, empty)] = broadcast_object_list([_start(part, resume) if accelerator.is_main_process else None])
        before = accelerator.process_index * BLOCK
        after = (accelerator.num_processes - 1) * BLOCK - before
        _skip(rows, done)
        hidden = None if accelerator.is_main_process else True  # None: shown in a terminal
        with tqdm(desc="predict", unit="song", initial=done, disable=hidden) as bar:
            while True:
                _skip(rows, before)
                mine = _score_block(regressor, list(islice(rows, BLOCK)))
                _skip(rows, after)
                blocks = gather_object([mine])
                if not blocks[0]:
                    break
                lines = "".join(blocks).encode().splitlines(keepends=True)
                if accelerator.is_main_process:
                    with open(part, "ab") as file:
                        file.writelines(lines)
                bar.update(len(lines))
                done, empty = done + len(lines), empty + sum(line.endswith(EMPTY) for line in lines)
        if accelerator.is_main_process:
            part.replace(out)
            print(f"{out}: {done - empty:,} songs scored, {empty:,} rows without words left empty")
    except OSError as error:
        raise lu.LyricsError(f"{out}: cannot be written ({error.strerror or error}).") from error
    accelerator.end_training()


def _score_block(model: SongRegressor, rows: list[tuple]) -> str:
    """The lines of the output for some rows; no line end stands within a line."""
    lyrics = [normalise_lyrics(text) for *_, text in rows]
    has_words = [isinstance(text, str) and any(map(str.isalpha, text)) for text in lyrics]
    scores = iter(model.predict(list(compress(lyrics, has_words))))
    block = io.StringIO()
    writer = csv.writer(block, lineterminator="\n")
    for (*names, _), is_scored in zip(rows, has_words, strict=True):
        names = [" ".join(str(normalise_lyrics(name)).split()) for name in names]
        writer.writerow([*names, f"{next(scores):.5f}" if is_scored else ""])
    return block.getvalue()


def _skip(rows: Iterator, count: int) -> None:
    deque(islice(rows, count), maxlen=0)


def _fingerprint(songs: Path, model: Path) -> str:
    """Tells apart the parts of different tables, models and sizes of blocks."""
    with open(songs, "rb") as file:
        digest = hashlib.sha256(f"{BLOCK} {songs.stat().st_size}".encode() + file.read(2**20))
    digest.update((model / "config.json").read_bytes())
    return digest.hexdigest()[:8]


def _start(part: Path, resume: bool) -> tuple[int, int]:
    """Make the part, or cut what a killed run left to whole blocks; return its rows, and how many of them are empty."""
    kept, rows, empty, size = (0, 0, 0), 0, 0, len(HEADER)
    part.parent.mkdir(parents=True, exist_ok=True)
    if not resume:
        for earlier in part.parent.glob(glob.escape(part.with_suffix("").stem) + ".????????.part"):
            earlier.unlink()
    with open(part, "ab+") as file:
        file.seek(0)
        if file.readline() != HEADER:
            file.truncate(0)
            file.write(HEADER)
        for line in file:
            rows, empty, size = rows + 1, empty + line.endswith(EMPTY), size + len(line)
            if rows % BLOCK == 0 and line.endswith(b"\n"):
                kept = rows, empty, size
        file.truncate(max(kept[2], len(HEADER)))
    return kept[:2]


if __name__ == "__main__":
    main()
