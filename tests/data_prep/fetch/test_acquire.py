"""Videos come whole or fail in a class of their own: from disk, from a real nginx, and from pages by yt-dlp."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from data_prep.books.request import ClipRequest, Part, Place
from data_prep.fetch import acquire
from data_prep.fetch.acquire import Acquirer
from data_prep.fetch.failures import AcquireError, classify, retry_after
from data_prep.fetch.policy import FetchPolicy
from tests.data_prep.cut.test_audio import sweep, with_sound
from tests.material.servers.loopback import Site, free_port, site

SMALL = random.Random(0).randbytes(50_000)
LARGE = random.Random(1).randbytes(acquire.BLOCK * 2 + 12_345)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("web")) as here:
        pages = {
            "page.html": b"<p>no video",
            "page.html.mp4": b"<p>gone",
            "one.html": b'<title>one</title><video src="small.mp4"></video>',
            "two.html": b'<title>two</title><video src="small.mp4"></video><video src="large.mp4"></video>',
        }
        videos = {"small.mp4": SMALL, "large.mp4": LARGE, "small": SMALL, "large": LARGE, "empty.mp4": b""}
        for name, data in (pages | videos).items():
            (here.files / name).write_bytes(data)
        yield here


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def acquirer(folder: Path, **options: object) -> Acquirer:
    own = {name: options.pop(name) for name in ("root", "keeper", "sound") if name in options}
    policy = {"rate": 200.0, "attempts": 2, "pause": 0.05, "timeout": 5.0, "private": True, **options}
    return Acquirer(folder, policy=FetchPolicy(**policy), **own)


def wanted(source: str, part: Part | None = None) -> ClipRequest:
    return ClipRequest(Place("list.jsonl", 1), source, part=part)


def failure(folder: Path, source: str, **options: object) -> AcquireError:
    """Return how a source fails, and make sure that nothing is left of it."""
    with pytest.raises(AcquireError) as caught:
        acquirer(folder, **options).fetch(wanted(source))
    assert [path.name for path in folder.iterdir()] == ["hosts"]
    return caught.value


def test_a_local_file_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "-a.mp4").write_bytes(SMALL)
    found = acquirer(tmp_path / "work", root=tmp_path / "videos").fetch(wanted("-a.mp4"))
    assert (found.path, found.temporary) == (tmp_path / "videos" / "-a.mp4", False)
    assert found.sha256 == hashlib.sha256(SMALL).hexdigest()
    assert found.stamp == (len(SMALL), (tmp_path / "videos" / "-a.mp4").stat().st_mtime_ns)


def test_a_part_of_a_local_archive_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(LARGE)
    found = acquirer(tmp_path / "work", root=tmp_path).fetch(wanted("a.tar", Part("x.mp4", 1000, 500)))
    assert (found.path.read_bytes(), found.temporary) == (LARGE[1000:1500], True)
    assert found.stamp == (len(LARGE), (tmp_path / "a.tar").stat().st_mtime_ns), "of the archive"
    with pytest.raises(AcquireError, match="truncated") as caught:
        acquirer(tmp_path / "work", root=tmp_path).fetch(wanted("a.tar", Part("y.mp4", len(LARGE) - 10, 20)))
    assert not caught.value.retryable


def test_local_files_that_cannot_be_used_are_told_apart(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    (tmp_path / "outside.mp4").write_bytes(SMALL)
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "empty.mp4").touch()
    classes = {name: failure(tmp_path / "work", name, root=root) for name in ("link.mp4", "empty.mp4", "none.mp4")}
    assert {name: error.reason for name, error in classes.items()} == {
        "link.mp4": "bad-path",
        "empty.mp4": "empty",
        "none.mp4": "missing",
    }
    assert not any(error.retryable for error in classes.values())


def test_a_file_comes_from_nginx_in_ranges_and_is_not_fetched_twice(tmp_path: Path, web: Site) -> None:
    before = len(web.answered())
    for _ in range(2):
        found = acquirer(tmp_path).fetch(wanted(f"{web.url}/large.mp4"))
        assert found.path.read_bytes() == LARGE
        assert (found.temporary, found.sha256) == (True, hashlib.sha256(LARGE).hexdigest())
    lines = [line.split() for line in web.answered()[before:]]
    assert [(line[0], line[2]) for line in lines] == [("GET", "206")] * 3


def test_a_relative_path_lies_below_a_root_on_the_web(tmp_path: Path, web: Site) -> None:
    found = acquirer(tmp_path, root=web.url).fetch(wanted("small.mp4", Part("x.mp4", 10, 20)))
    assert found.path.read_bytes() == SMALL[10:30]


def test_a_server_without_ranges_is_read_from_the_start(tmp_path: Path, web: Site) -> None:
    found = acquirer(tmp_path).fetch(wanted(f"{web.url}/no-ranges/large.mp4"))
    assert found.path.read_bytes() == LARGE


def test_a_throttled_host_is_asked_again_when_it_says(tmp_path: Path, web: Site) -> None:
    before = len(web.answered())
    # The first request is answered, the next one only three seconds later; three attempts would be over long before.
    for name in ("large", "small"):
        found = acquirer(tmp_path, attempts=3).fetch(wanted(f"{web.url}/throttled/{name}.mp4", Part("x", 0, 100)))
        assert found.path.read_bytes() == {"large": LARGE, "small": SMALL}[name][:100]
    assert "429" in [line.split()[2] for line in web.answered()[before:]]


def test_a_transfer_that_breaks_off_goes_on_where_it_broke(tmp_path: Path, web: Site) -> None:
    before = len(web.answered())
    found = acquirer(tmp_path).fetch(wanted(f"{web.url}/odd/cut-once/large.mp4"))
    assert found.path.read_bytes() == LARGE
    starts = [line.split("bytes=")[1].split("-")[0] for line in web.answered()[before:] if line.startswith("GET")]
    # The first block broke off, and came again.
    assert starts == ["0", "0", str(acquire.BLOCK), str(2 * acquire.BLOCK)]


def test_a_file_replaced_by_one_of_its_size_is_not_mixed_with_it(
    tmp_path: Path, web: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ask = web.files / "replaced.mp4", acquire.asked
    path.write_bytes(LARGE)

    def replacing(url: str, headers: dict[str, str], *how: object) -> object:
        if headers["Range"].startswith(f"bytes={acquire.BLOCK}-"):
            path.write_bytes(LARGE[::-1])
            os.utime(path, (1_000_000_000, 1_000_000_000))
        return ask(url, headers, *how)

    monkeypatch.setattr(acquire, "asked", replacing)
    error = failure(tmp_path, f"{web.url}/replaced.mp4")
    assert (error.reason, error.retryable) == ("changed", True)
    assert acquirer(tmp_path).fetch(wanted(f"{web.url}/replaced.mp4")).path.read_bytes() == LARGE[::-1]


@pytest.mark.parametrize("how", ["whole", "fickle"])
def test_a_transfer_without_ranges_that_breaks_off_begins_again(tmp_path: Path, web: Site, how: str) -> None:
    # A fickle server, as one of several behind an address, answers the second time with ranges.
    assert acquirer(tmp_path).fetch(wanted(f"{web.url}/odd/{how}-cut-once/large.mp4")).path.read_bytes() == LARGE


def test_a_short_fault_of_the_server_passes(tmp_path: Path, web: Site) -> None:
    assert acquirer(tmp_path).fetch(wanted(f"{web.url}/odd/busy-once/small.mp4")).path.read_bytes() == SMALL


@pytest.mark.parametrize(
    ("path", "reason", "retryable"),
    [
        ("none.mp4", "http-404", False),
        ("secret/a.mp4", "http-403", True),
        ("busy/a.mp4", "http-503", True),
        ("far/a.mp4", "http-429", True),
        ("odd/cut/small.mp4", "truncated", True),
        ("odd/whole-cut/small.mp4", "truncated", True),
        ("odd/less/small.mp4", "truncated", True),
        ("odd/later/small.mp4", "wrong-range", True),
        ("empty.mp4", "empty", False),
        ("odd/well/page.html.mp4", "not-a-video", False),
        # Pages: what has not the ending of a video.
        ("direct/none", "http-404", False),
        ("secret/a", "http-403", True),
        ("busy/a", "http-503", True),
        ("far/a", "http-429", True),
        ("page.html", "unsupported", False),
        ("two.html", "not-one-video", False),
    ],
)
def test_every_failure_has_its_class(tmp_path: Path, web: Site, path: str, reason: str, retryable: bool) -> None:
    error = failure(tmp_path, f"{web.url}/{path}", timeout=30.0)
    assert (error.reason, error.retryable) == (reason, retryable)
    assert error.detail


@pytest.mark.parametrize(
    ("path", "timeout", "deadline"),
    [("odd/hang/small.mp4", 0.5, 300.0), ("odd/hang/page.html", 0.5, 300.0), ("odd/trickle/small.mp4", 30.0, 1.0)],
)
def test_a_server_that_hangs_or_trickles_is_left(
    tmp_path: Path, web: Site, path: str, timeout: float, deadline: float
) -> None:
    start = time.monotonic()
    error = failure(tmp_path, f"{web.url}/{path}", timeout=timeout, deadline=deadline)
    assert (error.reason, error.retryable) == ("timeout", True)
    assert time.monotonic() - start < 200


def test_the_videos_of_a_page_with_several_are_not_fetched(tmp_path: Path, web: Site) -> None:
    before = len(web.answered())
    failure(tmp_path, f"{web.url}/two.html")
    assert {line.split()[1] for line in web.answered()[before:]} == {"/two.html"}


def test_an_answer_without_end_is_cut_off(tmp_path: Path, web: Site) -> None:
    error = failure(tmp_path, f"{web.url}/odd/endless/small.mp4", max_bytes=1_000_000)
    assert (error.reason, error.retryable) == ("wrong-range", True)


@pytest.mark.parametrize("path", ["large.mp4", "direct/large"])
def test_a_video_beyond_the_limit_is_not_fetched(tmp_path: Path, web: Site, path: str) -> None:
    error = failure(tmp_path, f"{web.url}/{path}", max_bytes=1_000_000)
    assert (error.reason, error.retryable) == ("too-large", False)


def test_a_host_that_nobody_listens_at_is_a_failure_of_the_connection(tmp_path: Path) -> None:
    for path in ("a.mp4", "page"):
        error = failure(tmp_path, f"http://127.0.0.1:{free_port()}/{path}")
        assert (error.reason, error.retryable) == ("connection", True)


def test_a_page_with_one_video_gives_that_video(tmp_path: Path, web: Site) -> None:
    assert acquirer(tmp_path).fetch(wanted(f"{web.url}/one.html")).path.read_bytes() == SMALL
    assert acquirer(tmp_path).fetch(wanted(f"{web.url}/direct/small")).path.read_bytes() == SMALL


def test_of_a_page_h264_is_preferred_and_the_height_is_capped(tmp_path: Path, web: Site) -> None:
    variants = {
        "high": ("1920x1080", "avc1.640028"),
        "low": ("854x480", "avc1.4d401e"),
        "other": ("1280x720", "vp09.00"),
    }
    lines = ["#EXTM3U"]
    for name, (size, codec) in variants.items():
        lines += [f'#EXT-X-STREAM-INF:BANDWIDTH=1000000,RESOLUTION={size},CODECS="{codec}"', f"{name}.m3u8"]
        media = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{name}.ts\n#EXT-X-ENDLIST\n"
        (web.files / f"{name}.m3u8").write_text(media)
        (web.files / f"{name}.ts").write_bytes(name.encode() * 100)
    (web.files / "master.m3u8").write_text("\n".join(lines) + "\n")
    found = {}
    for height in (720, 1080):
        request = wanted(f"{web.url}/master.m3u8")
        found[height] = acquirer(tmp_path / str(height), height=height).fetch(request).path.read_bytes()
    assert found == {720: b"low" * 100, 1080: b"high" * 100}


def test_of_a_page_the_sound_is_fetched_on_request(tmp_path: Path, web: Site) -> None:
    """As pages have them: picture and sound in streams of their own."""
    (tmp_path / "loud.mkv").write_bytes(with_sound(sweep()))
    streams = ["-map", "0:v", "-map", "0:a", "-c:v", "libx264", "-c:a", "aac", "-f", "hls", "-hls_list_size", "0"]
    grouped = ["-var_stream_map", "v:0,agroup:sound a:0,agroup:sound,default:yes", "-master_pl_name", "apart.m3u8"]
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(tmp_path / "loud.mkv"), *streams, *grouped]
    subprocess.run([*command, str(web.files / "apart_%v.m3u8")], check=True)
    kinds = {}
    for sound in (False, True):
        path = acquirer(tmp_path / str(sound), sound=sound).fetch(wanted(f"{web.url}/apart.m3u8")).path
        with av.open(str(path)) as container:
            kinds[sound] = sorted(stream.type for stream in container.streams)
    assert kinds == {False: ["video"], True: ["audio", "video"]}
    # A page whose only stream holds both, and one without sound, are fetched as they are.
    assert acquirer(tmp_path / "one", sound=True).fetch(wanted(f"{web.url}/one.html")).path.read_bytes() == SMALL


@pytest.mark.parametrize("path", ["small.mp4", "direct/small"])
def test_proxies_take_turns(tmp_path: Path, web: Site, path: str) -> None:
    # Nobody knows this host: nginx answers for it as the proxy.
    found = acquirer(tmp_path, proxies=[f"http://127.0.0.1:{free_port()}", web.url]).fetch(
        wanted(f"http://video.invalid/{path}")
    )
    assert found.path.read_bytes() == SMALL


def test_cookies_go_to_pages_and_their_file_is_not_written(tmp_path: Path, web: Site) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t4000000000\tkey\tsecret\n")
    text, before = cookies.read_text(), len(web.answered())
    acquirer(tmp_path / "work", cookies=cookies).fetch(wanted(f"{web.url}/direct/small"))
    assert all(line.endswith(" key=secret") for line in web.answered()[before:])
    assert cookies.read_text() == text


def test_cookies_that_cannot_be_read_are_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cookies: .*none\.txt cannot be read"):
        acquirer(tmp_path, cookies=tmp_path / "none.txt")
    (tmp_path / "cookies.txt").write_text('{"key": "secret"}')
    with pytest.raises(ValueError, match="expected the line '# Netscape HTTP Cookie File'"):
        acquirer(tmp_path, cookies=tmp_path / "cookies.txt")


def test_a_full_disk_is_no_failure_of_the_input(tmp_path: Path, web: Site) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left") as caught:
        acquirer(tmp_path)._from_web(f"{web.url}/small.mp4", None, full, time.monotonic() + 60)
    assert caught.value.errno == errno.ENOSPC
    wrapped = RuntimeError("download failed")
    wrapped.exc_info = (OSError, caught.value, None)
    with pytest.raises(OSError, match="No space left"):
        classify(wrapped)


def test_what_a_kill_left_behind_is_taken_away(tmp_path: Path, web: Site) -> None:
    request = wanted(f"{web.url}/small.mp4")
    path = acquirer(tmp_path).fetch(request).path
    path.unlink()
    (tmp_path / f".{path.name}.partial").mkdir()
    (tmp_path / f".{path.name}.partial" / "video").write_bytes(LARGE)
    assert acquirer(tmp_path).fetch(request).path.read_bytes() == SMALL
    assert {found.name for found in tmp_path.iterdir()} == {path.name, "hosts"}


@pytest.mark.parametrize(
    ("message", "reason", "retryable"),
    [
        ("Sign in to confirm you’re not a bot", "bot-check", True),
        ("Private video. Sign in if you've been granted access", "private", False),
        ("Sign in to confirm your age", "age-restricted", False),
        ("Video unavailable. This video has been removed by the uploader", "gone", False),
        ("Video unavailable. This content isn't available, try again later. The current session has", "busy", True),
        ("Video unavailable. YouTube is requiring a captcha challenge before playback", "bot-check", True),
        (
            "Video unavailable. X has blocked it in your country on copyright grounds",
            "geo-blocked",
            False,
        ),
        ("[Errno 11] Resource temporarily unavailable", "busy", True),
        ("Premieres in 3 hours", "not-yet", True),
        ("Requested format is not available", "no-format", False),
        ("Unable to extract player response", "unknown-RuntimeError", True),
    ],
)
def test_what_pages_say_becomes_a_class(message: str, reason: str, retryable: bool) -> None:
    failure = classify(RuntimeError(message))
    assert (failure.reason, failure.retryable, message in failure.detail) == (reason, retryable, True)


def test_a_status_says_whether_to_ask_again() -> None:
    again = {400: "never", 401: "later", 403: "later", 404: "never", 407: "later", 410: "never", 451: "never"}
    again |= dict.fromkeys((408, 425, 429, 500, 502, 503, 504), "now")
    for status, expected in again.items():
        error = RuntimeError("refused")
        error.status = status
        assert (classify(error).reason, classify(error).again) == (f"http-{status}", expected)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_nothing_is_no_failure_of_the_input(number: int) -> None:
    with pytest.raises(OSError, match="no room"):
        classify(OSError(number, "no room"))


def test_a_cause_that_says_nothing_is_not_what_is_told() -> None:
    failure = ConnectionError("found no route")
    failure.__cause__ = TimeoutError()
    assert classify(failure).detail == "ConnectionError: found no route"
    assert classify(TimeoutError()).detail == "TimeoutError"


def test_a_failure_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(AcquireError("timeout", "now", "found nothing", 3.0)))  # noqa: S301
    assert (str(error), error.retryable, error.wait) == ("timeout: found nothing", True, 3.0)


def test_retry_after_is_seconds_or_a_date() -> None:
    assert [retry_after(value) for value in ("120", None, "soon", "-1")] == [120.0, None, None, None]
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("Wed, 21 Oct 2099 07:28:00 GMT") > 1e9


def test_what_was_downloaded_before_is_not_fetched_and_no_id_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/abc.mp4").write_bytes(SMALL)
    (tmp_path / "secret.mp4").write_bytes(SMALL)
    nobody = f"http://127.0.0.1:{free_port()}/abc.mp4"
    shop = acquirer(tmp_path / "videos", local=f"{tmp_path}/kept/{{id}}.mp4", attempts=1)
    video = shop.fetch(ClipRequest(Place("list.jsonl", 1), nobody, parent="abc"))
    assert (video.path, video.temporary) == (tmp_path / "kept/abc.mp4", False)
    for parent in ("../secret", "other", ""):
        with pytest.raises(AcquireError, match="connection"):
            shop.fetch(ClipRequest(Place("list.jsonl", 1), nobody, parent=parent))


@pytest.mark.parametrize("option", [{"attempts": 0}, {"timeout": 0}, {"rate": 0}, {"height": 0}, {"local": "/videos"}])
def test_an_option_out_of_range_is_an_error(tmp_path: Path, option: dict) -> None:
    with pytest.raises(ValueError, match="found"):
        acquirer(tmp_path, **option)
