"""Score a table of songs with a saved model: `python -m lyric_utils.predict songs.csv --out scored.csv`.

A CSV may be larger than memory: it is scored in blocks, which processes under `accelerate launch` or `torchrun` share.
"""

import csv
import glob
import hashlib
import io
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate, chain, islice, zip_longest
from pathlib import Path

from lyric_utils._command import Parser, run_command
from lyric_utils._files import LyricsError, check_target, describe, exclusive, open_file, read_file, visible

BLOCK, LETTERS = 256, 2**20  # songs, and about how many letters, that one process scores at a time
HEADER, EMPTY = b"row,artist,title,prediction\n", b",\n"  # first line, and end of a line without prediction
INTERVAL_HEADER = b"row,artist,title,prediction,low,high\n"


def main() -> None:
    """Write the row, artist, title and predicted valence of every song; a row without words gets no prediction."""
    parser = Parser(prog="python -m lyric_utils.predict", description=main.__doc__)
    kinds = ".csv, .tsv, .json, .jsonl, .xlsx or .pkl; a folder of .txt files; - for CSV or JSONL on standard input"
    parser.add_argument("songs", type=Path, help=f"a table with a column 'lyrics': {kinds}")
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: the shipped blend)")
    parser.add_argument("--out", type=Path, default=Path("scored.csv"), help="new table (default: %(default)s)")
    parser.add_argument("--interval", type=float, help="such as 0.9: add the ends between which 90%% of truths lie")
    parser.add_argument("--overwrite", action="store_true", help="replace a table that this command wrote before")
    parser.add_argument("--resume", action="store_true", help="go on after the last whole block of a stopped run")
    run_command(lambda a: score_table(**vars(a)), arguments := parser.parse_args(), lambda: _left_of(arguments.out))


def score_table(songs: Path, model: Path | None, out: Path, resume: bool = False, overwrite: bool = False,
                interval: float | None = None) -> None:  # fmt: skip
    """Score a table into `out`. Until it is complete it is beside `out` as a `.part`, which `resume` goes on with."""
    from lyric_utils.tables import STDIN, read_blocks

    is_stdin, out = songs == STDIN, Path(os.path.realpath(out))
    _check_out(out, songs, resume or overwrite)
    if is_stdin and (resume or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        raise LyricsError("standard input is read once and by one process: save it to a file first.")

    # A first pass counts the rows, and refuses a broken one before hours are spent on those above it.
    known = [] if is_stdin else [*map(_identify, read_blocks(songs, BLOCK, ["lyrics"], LETTERS))]
    sizes, blocks = [size for size, _ in known], read_blocks(songs, BLOCK, ["lyrics"], LETTERS)
    blocks = chain([next(blocks)], blocks) if is_stdin else blocks

    from accelerate.utils import broadcast_object_list, gather_object

    from lyric_utils._progress import progress
    from lyric_utils.checkpoints import load_model, shipped_folder
    from lyric_utils.training import start_accelerator

    accelerator, model, foreign = start_accelerator(), model or shipped_folder("blend"), 0
    regressor = load_model(model)
    regressor.predict([], interval)  # an interval that it cannot give is refused before anything is written
    header = HEADER if interval is None else INTERVAL_HEADER
    run = hashlib.sha256(repr((known, interval)).encode() + read_file(model / "config.json"))
    part = out.with_name(f"{out.name}.{'0' * 8 if is_stdin else run.hexdigest()[:8]}.part")
    try:
        with ExitStack() as stack:
            if is_main := accelerator.is_main_process:
                stack.enter_context(exclusive(out))
            [skip] = broadcast_object_list([_blocks_in(part, out, resume, sizes, header) if is_main else None])
            if is_stdin:  # nothing could go on with its part
                stack.callback(part.unlink, missing_ok=True)
            done, blocks = sum(sizes[:skip]), islice(_unchanged(blocks, known, songs, part), skip, None)
            bar = stack.enter_context(progress(desc="predict", unit="song", initial=done, total=sum(sizes) or None))
            while group := list(islice(blocks, accelerator.num_processes)):
                mine = group[accelerator.process_index :][:1]
                scored = gather_object([_score_block(regressor, block, interval) for block in mine])
                if is_main:
                    with open(part, "ab") as file:
                        file.write(b"" if file.tell() else header)
                        file.writelines(lines for lines, _ in scored)
                bar.update(sum(map(len, group)))
                foreign += sum(count for _, count in scored)
            if is_main:
                _check_out(out, songs, resume or overwrite)
                with open_file(part) as file:
                    rows = Counter(line.endswith(EMPTY) for line in file)
                part.replace(out)
    except OSError as error:
        raise LyricsError(f"{out}: cannot be written ({describe(error)}); {_left_of(out)}") from error
    if is_main:
        print(f"{visible(out)}: {rows[False] - 1:,} songs scored, {rows[True]:,} rows without words left empty")
        if foreign:
            print(f"warning: {foreign:,} of the songs scored now are not in English", file=sys.stderr)
    accelerator.end_training()


def _identify(block) -> tuple[int, str]:
    """How many rows a block has, and a hash of what is in them."""
    cells = block[["row", "artist", "title", "lyrics"]].to_numpy().tolist()
    return len(block), hashlib.sha256(repr(cells).encode("utf-8", "surrogatepass")).hexdigest()


def _unchanged(blocks: Iterator, known: list[tuple[int, str]], songs: Path, part: Path) -> Iterator:
    """The blocks, as long as they are those that a first pass has read; of standard input there is no first pass."""
    for block, expected in zip_longest(blocks, known):
        if known and (block is None or _identify(block) != expected):
            part.unlink(missing_ok=True)
            raise LyricsError(f"{songs}: changed while it was scored. Run the command again.")
        yield block


def _check_out(out: Path, songs: Path, may_replace: bool) -> None:
    """Raise `LyricsError` where a table must not be written: over another file, in a checkpoint, among the songs."""
    if os.path.lexists(out):
        check_target(out, HEADER + b"|" + INTERVAL_HEADER)
        if not may_replace:
            raise LyricsError(f"{out}: exists already. Add --overwrite, or give another name with --out.")
    if all(os.path.isfile(out.parent / name) for name in ("config.json", "history.json")):
        raise LyricsError(f"{out}: lies in the folder of a checkpoint. Give another name with --out.")
    if out.suffix == ".txt" and out.parent == Path(os.path.realpath(songs)):
        raise LyricsError(f"{out}: lies among the songs, as one of them. Give another name with --out.")


def _score_block(model, songs, interval: float | None) -> tuple[bytes, int]:
    """The lines of the output for some songs, none with a line break inside, and how many songs are not English."""
    from lyric_utils.songs import as_cell, count_not_english, has_words, normalise_lyrics

    lyrics = [normalise_lyrics(text) for text in songs["lyrics"]]
    to_score = list(filter(has_words, lyrics))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not in English")  # counted over all blocks instead
        columns = 1 if interval is None else 3
        scores = iter(model.predict(to_score, interval).reshape(-1, columns))
    block = io.StringIO()
    writer = csv.writer(block, lineterminator="\n")
    for row, artist, title, text in zip(songs["row"], songs["artist"], songs["title"], lyrics, strict=True):
        values = [f"{value:.5f}" for value in next(scores)] if has_words(text) else [""] * columns
        writer.writerow([row, as_cell(artist), as_cell(title), *values])
    return block.getvalue().encode(), count_not_english(to_score)


def _find_parts(out: Path) -> list[Path]:
    out = Path(os.path.realpath(out))
    return sorted(out.parent.glob(f"{glob.escape(out.name)}.????????.part"))


def _left_of(out: Path) -> str:
    parts = _find_parts(out)
    return f"{parts[0]} is kept, and the same command with --resume goes on from it." if parts else "nothing is kept."


def _blocks_in(part: Path, out: Path, resume: bool, sizes: list[int], header: bytes) -> int:
    """How many whole blocks a stopped run has left in its part, which is cut to them."""
    if (left := _find_parts(out)) and not (resume and part in left):
        advice = "add --resume to go on with it, or" if part in left else "it is of other songs, model or interval:"
        raise LyricsError(f"{left[0]}: left by a run that was stopped; {advice} delete it to start anew.")
    if not left:
        if resume and os.path.lexists(out):
            raise LyricsError(f"{out}: is complete already. Add --overwrite instead of --resume to score it anew.")
        return 0
    ends = {rows: number for number, rows in enumerate(accumulate(sizes, initial=0))}
    with open_file(part) as file:
        if not header.startswith(first := file.readline(len(header))):
            raise LyricsError(f"{part}: not the part of a table. Move it away.")
        blocks, kept = 0, len(first) if first == header else 0
        for rows, line in enumerate(file, 1):
            if rows in ends and line.endswith(b"\n"):
                blocks, kept = ends[rows], file.tell()
    os.truncate(part, kept)
    return blocks


if __name__ == "__main__":
    main()
