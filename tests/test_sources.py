"""Where songs come from. The downloads run against a real HTTP server on 127.0.0.1; nothing outside is touched."""

import hashlib
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from kagglehub.exceptions import UnauthenticatedError

from lyric_utils import sources
from lyric_utils.profiles import PROFILES
from lyric_utils.songs import LyricsError, save_songs

CONTENT = np.random.default_rng(0).bytes(200_000)
HALF = len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SONGS = pd.DataFrame(
    {"artist": list("abcde"), "title": list("vwxyz"), "lyrics": ["la"] * 5, "valence": [0.1, 0.2, 0.3, 0.4, 0.5]}
)
SAMPLE, SUBSET, PAPER = PROFILES["sample"], PROFILES["subset"], PROFILES["paper"]


@dataclass
class Site:
    """What the server on 127.0.0.1 serves, how it misbehaves, and what it was asked.

    Attributes:
        break_after: bytes of the body after which each answer breaks off, one entry an answer; then none does.
        statuses: HTTP status of each answer, one entry an answer; then 200 or 206.
        ranges: whether it understands the header Range; `says_length`: whether it sends Content-Length.
        pause: seconds between two pieces of 20,000 bytes.
        asked, sent: first byte asked for, and bytes of body sent, one entry a request.
    """

    url: str = ""
    content: bytes = CONTENT
    break_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    says_length: bool = True
    pause: float = 0.0
    asked: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        asked = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        start = asked if site.ranges else 0
        total, body = len(site.content), site.content[start:]
        site.asked.append(asked)
        site.sent.append(0)
        status = site.statuses.pop(0) if site.statuses else 206 if site.ranges else 200
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if site.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        end = site.break_after.pop(0) if site.break_after else len(body)
        try:
            for first in range(0, end, 20_000):
                self.wfile.write(body[first : min(first + 20_000, end)])
                site.sent[-1] = min(first + 20_000, end)
                time.sleep(site.pause)
        except ConnectionError:
            pass  # the client had seen enough

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(url=f"http://127.0.0.1:{server.server_port}/songs.bin")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def quick_and_private(monkeypatch, tmp_path):
    """No waiting between attempts, no proxy, a cache of one's own, and no song file from outside."""
    monkeypatch.setattr(sources, "PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("LYRICS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LYRICS_DATA", raising=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "songs.bin"


def part_of(path):
    return path.with_name(f"{path.name}.{SHA256[:8]}.part")


def fetch(site, path):
    return sources.download(site.url, path, len(CONTENT), SHA256)


def refused(site, path):
    """Check that the download fails in one clear sentence and leaves nothing under the final name; return that."""
    with pytest.raises(LyricsError) as caught:
        fetch(site, path)
    assert site.url in str(caught.value)
    assert "LYRICS_DATA" in str(caught.value)
    assert not path.exists()
    return str(caught.value)


# ---------------------------------------------------------------- download


def test_download_once(site, path):
    assert fetch(site, path) == path
    assert path.read_bytes() == CONTENT
    assert not part_of(path).exists()
    fetch(site, path)
    assert len(site.asked) == 1


def test_slow_server_is_waited_for(site, path):
    site.pause = 0.02
    fetch(site, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("says_length", [True, False])
def test_broken_answer_is_resumed_where_it_broke(site, path, says_length):
    site.break_after, site.says_length = [HALF], says_length
    fetch(site, path)
    assert path.read_bytes() == CONTENT
    assert HALF - sources.BLOCK <= site.asked[1] <= HALF
    assert sum(site.sent) <= len(CONTENT) + sources.BLOCK


def test_download_is_resumed_by_a_later_run(site, path, monkeypatch):
    site.break_after = [HALF]
    monkeypatch.setattr(sources, "ATTEMPTS", 1)
    refused(site, path)
    kept = part_of(path).stat().st_size
    assert HALF - sources.BLOCK <= kept <= HALF
    fetch(site, path)
    assert path.read_bytes() == CONTENT
    assert site.asked == [0, kept]
    assert site.sent[1] == len(CONTENT) - kept


def test_server_that_ignores_ranges_is_read_from_the_start(site, path):
    site.break_after, site.ranges = [HALF], False
    fetch(site, path)
    assert path.read_bytes() == CONTENT
    assert site.asked[1] > 0
    assert site.sent[1] == len(CONTENT)


def test_attempts_are_bounded_and_what_arrived_is_kept(site, path):
    site.break_after = [20_000] * 100
    assert "bytes" in refused(site, path)
    assert len(site.asked) == sources.ATTEMPTS
    assert part_of(path).stat().st_size > 0


@pytest.mark.parametrize("left_over", [b"\0" * HALF, CONTENT[:HALF][::-1], b"\0" * len(CONTENT), CONTENT * 2])
def test_damaged_part_is_noticed_and_fetched_anew(site, path, left_over):
    path.parent.mkdir()
    part_of(path).write_bytes(left_over)
    fetch(site, path)
    assert path.read_bytes() == CONTENT


def test_part_that_lacks_only_its_name_needs_no_server(path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT)
    fetch(Site(url="http://127.0.0.1:9/songs.bin"), path)
    assert path.read_bytes() == CONTENT


def test_damaged_file_in_the_cache_is_replaced(site, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    fetch(site, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("says_length", [True, False])
@pytest.mark.parametrize(
    "wrong", [b"Please log in", CONTENT[::-1], CONTENT * 2], ids=["shorter", "other bytes", "longer"]
)
def test_wrong_file_is_refused(site, path, wrong, says_length):
    site.content, site.says_length, site.ranges = wrong, says_length, False
    refused(site, path)
    assert sources._length(part_of(path)) < len(CONTENT)


def test_wrong_file_does_not_cost_the_half_that_arrived(site, path):
    path.parent.mkdir()
    part_of(path).write_bytes(CONTENT[:HALF])
    site.content, site.ranges = b"Please log in", False
    refused(site, path)
    site.content, site.ranges = CONTENT, True
    fetch(site, path)
    assert site.asked == [HALF, HALF]
    assert path.read_bytes() == CONTENT


def test_not_found_is_final(site, path):
    site.statuses = [404]
    assert "HTTP 404" in refused(site, path)
    assert len(site.asked) == 1


def test_busy_server_is_asked_again(site, path):
    site.statuses = [503, 500]
    fetch(site, path)
    assert path.read_bytes() == CONTENT


def test_refused_connection(path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: the port refuses
        assert "ConnectionError" in refused(Site(url=f"http://127.0.0.1:{unused.getsockname()[1]}/songs.bin"), path)


def test_silent_server(path, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUTS", (0.1, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        assert "ReadTimeout" in refused(Site(url=f"http://127.0.0.1:{silent.getsockname()[1]}/songs.bin"), path)


def test_falling_silent_half_way(site, path, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUTS", (1, 0.1))
    monkeypatch.setattr(sources, "ATTEMPTS", 2)
    site.pause = 0.4
    refused(site, path)
    assert site.asked[1] > 0


def test_no_place_to_write(site, tmp_path):
    (tmp_path / "cache").write_text("a file, where a folder is needed")
    with pytest.raises(LyricsError, match=r"songs\.bin: cannot be written .* LYRICS_CACHE"):
        fetch(site, tmp_path / "cache" / "songs.bin")


def test_several_at_once_download_once(site, path):
    site.pause = 0.01
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: fetch(site, path), range(4)))
    assert path.read_bytes() == CONTENT
    assert len(site.asked) == 1


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


@pytest.mark.parametrize("profile", [SUBSET, PAPER])
def test_lyrics_data_stands_in_for_every_download(profile, tmp_path, monkeypatch):
    SONGS.to_csv(tmp_path / "own.csv")
    monkeypatch.setenv("LYRICS_DATA", str(tmp_path / "own.csv"))
    assert sources.load_source(profile)["row"].tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setenv("LYRICS_DATA", str(tmp_path / "gone.csv"))
    with pytest.raises(LyricsError, match=r"LYRICS_DATA=.*gone\.csv: no such file"):
        sources.load_source(profile)


def test_subset_comes_over_http_once(site, tmp_path, monkeypatch):
    SONGS.to_excel(tmp_path / "served.xlsx")
    site.content = (tmp_path / "served.xlsx").read_bytes()
    sha256 = hashlib.sha256(site.content).hexdigest()
    monkeypatch.setattr(sources, "SUBSET", {"url": site.url, "size": len(site.content), "sha256": sha256})
    for _ in range(2):
        assert sources.load_source(SUBSET)["title"].tolist() == list("vwxyz")
    assert len(site.asked) == 1


def test_subset_is_the_promised_file():
    assert sources.SUBSET["url"] == (
        "https://raw.githubusercontent.com/EdenBD/lyrics-sentiment/"
        "7eaf7e0e1b0c2a1e4eb8aee9647e4bbed6bf0cc7/diversified.xlsx"
    )
    assert sources.SUBSET["size"] == 2_819_572
    assert re.fullmatch("[0-9a-f]{64}", sources.SUBSET["sha256"])


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
    with pytest.raises(LyricsError, match=r"source='tape' .*sample, subset, kaggle"):
        sources.load_source(replace(SUBSET, source="tape"))


@pytest.mark.parametrize("count", [6, 0, -1])
def test_draw_songs_more_than_there_are(count):
    with pytest.raises(LyricsError, match=rf"{count} songs cannot be drawn from 5"):
        sources.draw_songs(SONGS, count, seed=42)
