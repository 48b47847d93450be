"""Score a table of songs with a saved model: `python -m lyric_utils.predict songs.csv --out scored.csv`.

A CSV may be larger than memory: it is scored in blocks, which processes under `accelerate launch` or `torchrun` share.
"""

import argparse
import csv
import glob
import hashlib
import io
import os
import sys
import warnings
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

from lyric_utils._files import LyricsError

BLOCK = 256  # songs that one process scores at a time
HEADER, EMPTY = b"row,artist,title,prediction\n", b",\n"  # first line, and end of a line without prediction


def main() -> None:
    """Write the row, artist, title and predicted valence of every song; a row without words gets no prediction."""
    parser = argparse.ArgumentParser(prog="python -m lyric_utils.predict", description=main.__doc__)
    kinds = ".csv, .tsv, .json, .jsonl, .xlsx or .pkl; a folder of .txt files; - for CSV or JSONL on standard input"
    parser.add_argument("songs", type=Path, help=f"a table with a column 'lyrics': {kinds}")
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the shipped blend)")
    parser.add_argument("--out", type=Path, default=Path("scored.csv"), help="new table (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on after the last whole block of a stopped run")
    arguments = parser.parse_args()
    try:
        score_table(arguments.songs, arguments.model, arguments.out, arguments.resume)
    except LyricsError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        parts = _find_parts(arguments.out)
        kept = f"{parts[0]} is kept, and the same command with --resume goes on from it" if parts else "nothing is kept"
        print(f"\ninterrupted: {kept}.", file=sys.stderr)
        raise SystemExit(130) from None


def score_table(songs: Path, model: Path | None, out: Path, resume: bool = False) -> None:
    """Score a table into `out`. Until it is complete it is beside `out` as a `.part`, which `resume` goes on with."""
    from lyric_utils.songs import STDIN, read_blocks

    is_stdin = songs == STDIN
    if out.exists() and not out.is_file():
        raise LyricsError(f"{out}: not a file. Give the name of a file with --out.")
    if os.path.realpath(out) == os.path.realpath(songs):
        raise LyricsError(f"{out}: this is the table itself. Give another name with --out.")
    if is_stdin and (resume or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise LyricsError("standard input is read once and by one process: save it to a file first.")
    # A first pass counts the rows, and refuses a broken one before hours are spent on those above it.
    total = None if is_stdin else sum(map(len, read_blocks(songs, BLOCK, ["lyrics"])))
    blocks = read_blocks(songs, BLOCK, ["lyrics"])
    blocks = chain([next(blocks)], blocks)

    from accelerate.utils import broadcast_object_list, gather_object

    from lyric_utils._progress import progress
    from lyric_utils.checkpoints import load_model, shipped_folder
    from lyric_utils.training import start_accelerator

    accelerator, model = start_accelerator(), model or shipped_folder("blend")
    regressor = load_model(model)
    part = out.with_name(f"{out.name}.{'0' * 8 if is_stdin else _fingerprint(songs, model)}.part")
    foreign, is_main = 0, accelerator.is_main_process
    try:
        [(done, empty)] = broadcast_object_list([_start(part, out, resume) if is_main else None])
        blocks = islice(blocks, done // BLOCK, None)
        with progress(desc="predict", unit="song", initial=done, total=total) as bar, ExitStack() as stack:
            if is_stdin:  # nothing could go on with its part
                stack.callback(part.unlink, missing_ok=True)
            while group := list(islice(blocks, accelerator.num_processes)):
                scored = gather_object([_score_block(regressor, b) for b in group[accelerator.process_index :][:1]])
                lines = "".join(text for text, _ in scored).encode().splitlines(keepends=True)
                if is_main:
                    with open(part, "ab") as file:
                        file.writelines(lines)
                bar.update(len(lines))
                done, empty = done + len(lines), empty + sum(line.endswith(EMPTY) for line in lines)
                foreign += sum(count for _, count in scored)
            if is_main:
                part.replace(out)
    except OSError as error:
        raise LyricsError(f"{out}: cannot be written ({error.strerror or error}).") from error
    if is_main:
        print(f"{out}: {done - empty:,} songs scored, {empty:,} rows without words left empty")
        if foreign:
            print(f"warning: {foreign:,} of the songs scored now are not in English", file=sys.stderr)
    accelerator.end_training()


def _score_block(model, songs) -> tuple[str, int]:
    """The lines of the output for some songs, none with a line break inside, and how many songs are not English."""
    from lyric_utils.songs import count_not_english, has_words, normalise_lyrics

    lyrics = [normalise_lyrics(text) for text in songs["lyrics"]]
    to_score = list(filter(has_words, lyrics))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not in English")  # counted over all blocks instead
        scores = iter(model.predict(to_score))
    block = io.StringIO()
    writer = csv.writer(block, lineterminator="\n")
    for row, *names, text in zip(songs["row"], songs["artist"], songs["title"], lyrics, strict=True):
        names = [" ".join(str(normalise_lyrics(name)).split()) for name in names]
        names = [f"'{name}" if name.startswith(("=", "+", "-", "@")) else name for name in names]  # CWE-1236
        writer.writerow([row, *names, f"{next(scores):.5f}" if has_words(text) else ""])
    return block.getvalue(), count_not_english(to_score)


def _fingerprint(songs: Path, model: Path) -> str:
    """Tells apart the parts of different tables, models and sizes of blocks."""
    digest = hashlib.sha256(str(BLOCK).encode() + (model / "config.json").read_bytes())
    for path in sorted(songs.glob("*.txt")) if songs.is_dir() else [songs]:
        digest.update(os.fsencode(path.name))
        with open(path, "rb") as file:
            while data := file.read(2**20):
                digest.update(data)
    return digest.hexdigest()[:8]


def _find_parts(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f"{glob.escape(out.name)}.????????.part"))


def _start(part: Path, out: Path, resume: bool) -> tuple[int, int]:
    """Make the part, or cut what a stopped run left to whole blocks; return its rows, and how many are empty."""
    if (left := _find_parts(out)) and not (resume and part in left):
        advice = "add --resume to go on with it, or" if part in left else "it is of other songs or another model:"
        raise LyricsError(f"{left[0]}: left by a run that was stopped; {advice} delete it to start anew.")
    kept, rows, empty, size = (0, 0, len(HEADER)), 0, 0, len(HEADER)
    part.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab+") as file:
        file.seek(0)
        if file.readline() != HEADER:
            file.truncate(0)
            file.write(HEADER)
        for line in file:
            rows, empty, size = rows + 1, empty + line.endswith(EMPTY), size + len(line)
            if rows % BLOCK == 0 and line.endswith(b"\n"):
                kept = rows, empty, size
        file.truncate(kept[2])
    return kept[:2]


if __name__ == "__main__":
    main()
