"""Where songs come from. The downloads run against a real HTTP server on 127.0.0.1; nothing outside is touched."""

import hashlib
import re
import socket
import threading
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from kagglehub.exceptions import UnauthenticatedError

from lyric_utils import sources
from lyric_utils._files import LyricsError
from lyric_utils.profiles import PROFILES
from lyric_utils.tables import save_songs

SONGS = pd.DataFrame(
    {"artist": list("abcde"), "title": list("vwxyz"), "lyrics": ["la"] * 5, "valence": [0.1, 0.2, 0.3, 0.4, 0.5]}
)
SAMPLE, BILLBOARD, SUBSET, PAPER = (PROFILES[name] for name in ("sample", "billboard", "subset", "paper"))


@dataclass
class Site:
    """What the server on 127.0.0.1 serves, and how it misbehaves.

    Attributes:
        statuses: HTTP status of each answer, one entry per answer; 200 after that.
        broken: number of answers that break off half way; none does after that.
        asked: number of requests so far.
    """

    content: bytes
    url: str = ""
    statuses: list[int] = field(default_factory=list)
    broken: int = 0
    asked: int = 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.asked += 1
        self.send_response(site.statuses.pop(0) if site.statuses else 200)
        self.send_header("Content-Length", str(len(site.content)))
        self.end_headers()
        self.wfile.write(site.content[: len(site.content) // 2] if site.broken >= site.asked else site.content)

    def log_message(self, *args):
        pass


def serve_subset(monkeypatch, url, content):
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(sources.SOURCES, "subset", (url, {"diversified.xlsx": digest}))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server that has a small table in place of the public one."""
    SONGS.to_excel(tmp_path / "served.xlsx")
    content = (tmp_path / "served.xlsx").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(content, url=f"http://127.0.0.1:{server.server_port}")
    serve_subset(monkeypatch, server.site.url, content)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick_and_private(monkeypatch, tmp_path):
    """No waiting between attempts, no proxy, a cache of its own, and no song file from outside."""
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LYRICS_DATA", raising=False)


@pytest.fixture
def cached(tmp_path):
    """Where the download is kept."""
    return tmp_path / "cache" / "diversified.xlsx"


# ---------------------------------------------------------------- download


def refused(url, cached):
    """Check that the download fails in one clear sentence and leaves nothing behind; return that."""
    with pytest.raises(LyricsError) as caught:
        sources.load_source(SUBSET)
    assert str(caught.value).startswith(f"{url}: not downloaded")
    assert "LYRICS_DATA" in str(caught.value)
    assert not list(cached.parent.iterdir())
    return str(caught.value)


def test_download_once(site, cached):
    for _ in range(2):
        assert sources.load_source(SUBSET)["title"].tolist() == list("vwxyz")
    assert site.asked == 1
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]


def test_damaged_file_in_the_cache_is_replaced(site, cached):
    cached.parent.mkdir()
    cached.write_bytes(site.content[:-1])
    sources.load_source(SUBSET)
    assert cached.read_bytes() == site.content


def test_busy_server_and_broken_answer_are_tried_again(site, cached):
    site.statuses, site.broken = [503], 2
    sources.load_source(SUBSET)
    assert site.asked == 3
    assert cached.read_bytes() == site.content


def test_wrong_file_is_refused(site, cached):
    site.content = b"Please log in"
    assert "SHA256 hash" in refused(site.url, cached)


def test_broken_answers(site, cached):
    site.broken = 10
    refused(site.url, cached)


def test_not_found(site, cached):
    site.statuses = [404] * 10
    assert "404" in refused(site.url, cached)


def test_nothing_listens(cached, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: the port refuses
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        serve_subset(monkeypatch, url, b"")
        assert "ConnectionError" in refused(url, cached)


def test_no_place_to_write(site, cached):
    cached.parent.write_text("a file, where a folder is needed")
    with pytest.raises(LyricsError, match=r"cache.*LYRICS_DATA"):
        sources.load_source(SUBSET)


# ---------------------------------------------------------------- sources


def test_sample_is_read_whatever_lyrics_data_says(tmp_path, monkeypatch):
    save_songs(SONGS, tmp_path / "sample.pkl")
    monkeypatch.setattr(sources, "SAMPLE", tmp_path / "sample.pkl")
    monkeypatch.setenv("LYRICS_DATA", "nowhere.csv")
    assert sources.load_source(SAMPLE)["title"].tolist() == list("vwxyz")


def test_missing_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SAMPLE", tmp_path / "sample_150.pkl")
    with pytest.raises(LyricsError, match=r"sample_150\.pkl: missing.*pip install -e"):
        sources.load_source(SAMPLE)


@pytest.mark.parametrize("profile", [BILLBOARD, SUBSET, PAPER])
def test_lyrics_data_stands_in_for_every_download(profile, tmp_path, monkeypatch):
    SONGS.to_csv(tmp_path / "own.csv")
    monkeypatch.setenv("LYRICS_DATA", str(tmp_path / "own.csv"))
    assert sources.load_source(profile)["row"].tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setenv("LYRICS_DATA", str(tmp_path / "gone.csv"))
    with pytest.raises(LyricsError, match=r"LYRICS_DATA=.*gone\.csv: no such file"):
        sources.load_source(profile)


def test_lyrics_data_names_a_folder_with_the_files_of_a_source(tmp_path, monkeypatch):
    monkeypatch.setenv("LYRICS_DATA", str(tmp_path))
    with pytest.raises(LyricsError, match=r"LYRICS_DATA=.*: no diversified\.xlsx in it"):
        sources.load_source(SUBSET)
    SONGS.to_csv(tmp_path / "diversified.csv")
    assert sources.load_source(SUBSET)["title"].tolist() == list("vwxyz")
    with pytest.raises(LyricsError, match=r"LYRICS_DATA=.*: no lyrics\.rda in it"):
        sources.load_source(BILLBOARD)


@pytest.mark.parametrize("name", ["billboard", "subset"])
def test_downloads_are_of_a_fixed_commit_with_known_checksums(name):
    url, files = sources.SOURCES[name]
    assert re.fullmatch(r"https://raw\.githubusercontent\.com/\w+/[\w-]+/[0-9a-f]{40}(/data)?", url)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in files.values())


def test_kaggle_is_asked_once(tmp_path, monkeypatch):
    asked = []

    def dataset_download(handle, path):
        asked.append((handle, path))
        SONGS.rename(columns={"lyrics": "seq", "title": "song", "valence": "label"}).to_csv(tmp_path / path)
        return str(tmp_path / path)

    monkeypatch.setattr("kagglehub.dataset_download", dataset_download)
    for _ in range(2):
        assert sources.load_source(PAPER)["title"].tolist() == list("vwxyz")
    assert asked == [("edenbd/150k-lyrics-labeled-with-spotify-valence", "labeled_lyrics_cleaned.csv")]
    (tmp_path / "labeled_lyrics_cleaned.csv").unlink()
    sources.load_source(PAPER)
    assert len(asked) == 2


@pytest.mark.parametrize("error", [UnauthenticatedError(), ConnectionError("offline"), ValueError("odd")])
def test_kaggle_out_of_reach(error, monkeypatch):
    def dataset_download(handle, path):
        raise error

    monkeypatch.setattr("kagglehub.dataset_download", dataset_download)
    with pytest.raises(LyricsError, match=r"https://www\.kaggle\.com/datasets/edenbd/.*LYRICS_DATA") as caught:
        sources.load_source(PAPER)
    assert str(error) in str(caught.value)


# ---------------------------------------------------------------- drawing


def test_draw_songs_is_reproducible():
    songs = pd.DataFrame({"row": range(1000)})
    drawn = sources.draw_songs(songs, 100, seed=42)
    assert drawn.equals(sources.draw_songs(songs.copy(), 100, seed=42))
    assert not drawn.equals(sources.draw_songs(songs, 100, seed=43))
    assert drawn["row"].is_monotonic_increasing
    assert drawn["row"].is_unique
    assert drawn.index.tolist() == list(range(100))
    assert drawn["row"].tolist()[:5] == [10, 23, 30, 39, 54]  # numpy keeps this stream as it is (NEP 19)


def test_draw_songs_all():
    assert sources.draw_songs(SONGS, None, seed=42).equals(SONGS)
    assert sources.draw_songs(SONGS, 5, seed=42).equals(SONGS)


def test_unknown_source():
    with pytest.raises(LyricsError, match=r"source='tape': .*'sample', 'billboard', 'subset' or 'kaggle'"):
        sources.load_source(replace(SUBSET, source="tape"))


@pytest.mark.parametrize(
    ("count", "message"), [(6, "6 songs cannot be drawn from 5"), (0, "count=0: "), (-1, "count=-1: ")]
)
def test_draw_songs_more_than_there_are(count, message):
    with pytest.raises(LyricsError, match=message):
        sources.draw_songs(SONGS, count, seed=42)
