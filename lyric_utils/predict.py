"""Score a table of songs with a saved model: `python -m lyric_utils.predict --model trained_models/lora songs.csv`."""

import argparse
from pathlib import Path

import lyric_utils as lu
from lyric_utils.songs import normalise_lyrics, written_whole


def main() -> None:
    """Write the table's row, artist and title with the predicted valence; rows without words get an empty one."""
    parser = argparse.ArgumentParser(prog="python -m lyric_utils.predict", description=main.__doc__)
    parser.add_argument("songs", type=Path, help="song table: .csv, .xlsx or .pkl")
    parser.add_argument("--model", type=Path, default=Path("trained_models/lora"), help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=Path("scored.csv"), help="where the predictions go")
    arguments = parser.parse_args()
    try:
        score_table(arguments.songs, arguments.model, arguments.out)
    except lu.LyricsError as error:
        raise SystemExit(f"error: {error}") from error


def score_table(songs: Path, model: Path, out: Path) -> None:
    table = lu.read_songs(songs)
    regressor = lu.load_model(model)
    lyrics = table["lyrics"].map(normalise_lyrics)
    worded = lyrics.map(lambda text: isinstance(text, str) and any(map(str.isalpha, text)))
    table.loc[worded, "prediction"] = regressor.predict(lyrics[worded].tolist())
    with written_whole(out) as temporary:
        table[["row", "artist", "title", "prediction"]].to_csv(temporary, index=False, float_format="%.5f")
    print(f"{out}: {worded.sum():,} songs scored, {(~worded).sum():,} rows without words left empty")


if __name__ == "__main__":
    main()
