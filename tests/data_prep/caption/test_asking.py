"""Captions by a server, end to end: every clip ends in its class, whatever the server does."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_prep.caption.endpoint import read_reply
from data_prep.caption.policy import CaptionPolicy
from data_prep.caption.reply import Reply
from tests.material.preparing import prep
from tests.material.scored_clips import panning
from tests.material.servers.chat_server import Server, chat_server, name_of, well
from tests.material.servers.loopback import free_port
from videodiff.data.samples.manifest import Manifest
from videodiff.data.samples.shards import Text, read_notes, read_sample, read_texts
from videodiff.data.video.encode import encode

CLIPS = 6
HOW = {"by": "endpoint", "model": "tiny", "frames": 3, "pause": 0.02, "timeout": 20.0}


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    """Return a folder of clips, the first with a caption of its own, the last too short for the rules."""
    folder = tmp_path_factory.mktemp("caption") / "footage"
    folder.mkdir()
    for number in range(CLIPS + 1):
        frames = panning(4 if number == CLIPS else 10, 64, 96, speed=2 + number, seed=number)
        (folder / f"{number}.mp4").write_bytes(encode(frames, 8.0))
    (folder / "0.txt").write_text("by hand")
    return folder


@pytest.fixture(scope="module")
def made(footage) -> Path:
    """Return what prep makes of the footage without captions."""
    out = footage.parent / "made"
    prep(out, footage, encode={"short_side": 48}, filter={"duration": {"min": 1.0}}, workers=1)
    return out


@pytest.fixture
def out(made, tmp_path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def caption(out: Path, server: Server | None = None, retry: str | None = None, require: bool = False, **how) -> dict:
    """Caption what is in a work folder, and return the summary."""
    url = {"url": server.url} if server else {}
    rules = {"filter": {"duration": {"min": 1.0}}, "require_caption": require}
    making = {"encode": {"short_side": 48}} if retry else {}
    return prep(out, retry=retry, caption={**HOW, **url, **how}, **rules, **making)


def texts(out: Path) -> list[list[Text]]:
    manifest = Manifest.load(out)
    return [read_texts(read_sample(out, manifest.row(number))) for number in range(len(manifest))]


def dataset(out: Path) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}
    return {name: data for name, data in files.items() if name != "summary.json"}


def sums(summary: dict) -> bool:
    """Tell whether all inputs and all clips are accounted for."""
    found = summary["captions"]
    failed = [count for kinds in found["failed"].values() for count in kinds.values()]
    ends = found["captioned"] + sum(found["refused"].values()) + sum(failed) + found["open"]
    lost = sum(count for kinds in summary["failed"].values() for count in kinds.values())
    whole = summary["ok"] + sum(summary["filtered"].values()) + lost + summary["open"]
    return ends == found["clips"] and whole == summary["inputs"]


def test_the_clips_that_are_kept_are_captioned_and_no_others(out):
    with chat_server() as server:
        summary = caption(out, server)
    assert sums(summary)
    assert (summary["captions"]["clips"], summary["captions"]["captioned"]) == (CLIPS, CLIPS)
    assert len(server.requests) == CLIPS
    found = texts(out)
    assert [len(each) for each in found] == [2] + [1] * (CLIPS - 1)
    assert found[0][0] == Text("by hand", "sidecar")
    assert all(each[-1].text.startswith("Clip ") and each[-1].origin == "tiny" for each in found)
    assert sorted(each[-1].text[5:-1] for each in found) == sorted(server.asked())
    assert Manifest.load(out).caption_origins == ["sidecar", "tiny"]
    assert Manifest.load(out).column("captions").tolist() == [2] + [1] * (CLIPS - 1)


def test_a_request_holds_the_frames_the_prompt_and_the_fields_asked_for(out):
    with chat_server() as server:
        caption(out, server, prompt="What is seen?", max_tokens=77, side=24, body={"seed": 5, "temperature": None})
    path, _, request = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (request["model"], request["max_tokens"], request["seed"]) == ("tiny", 77, 5)
    assert "temperature" not in request
    assert request["messages"][0]["content"][-1] == {"type": "text", "text": "What is seen?"}
    from tests.material.servers.chat_server import images_in

    assert [image.shape for image in images_in(request)] == [(24, 36, 3)] * 3


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_shards_do_not_depend_on_concurrency_or_on_the_order_of_the_answers(concurrency, out, made, tmp_path):
    def late(number, request):
        time.sleep(0.15 * (number % 3))
        return well(number, request)

    other = Path(shutil.copytree(made, tmp_path / "other"))
    with chat_server(late) as slow, chat_server() as quick:
        caption(out, slow, concurrency=concurrency)
        caption(other, quick, concurrency=2)
        assert slow.most == concurrency
    assert dataset(out) == dataset(other)


PASSING = {
    "too many requests": ("status", 429, {"Retry-After": "0"}),
    "server error": ("status", 500),
    "overloaded": ("status", 503),
    "hangs": ("hang",),
    "hangs up": ("drop",),
    "malformed": ("send", b'{"choices": [{"mess'),
    "no choices": ("send", b'{"choices": []}'),
    "a list": ("send", b"[]"),
    "number": ("say", {"content": 5}),
}


@pytest.mark.parametrize("trouble", PASSING)
def test_a_trouble_that_passes_costs_an_attempt_and_no_caption(trouble, out):
    def act(number, request):
        return PASSING[trouble] if number == 1 else well(number, request)

    with chat_server(act) as server:
        summary = caption(out, server, concurrency=1, timeout=1.0 if trouble == "hangs" else 20.0)
    assert summary["captions"]["captioned"] == CLIPS
    assert len(server.requests) == CLIPS + 1
    assert server.asked()[1] == server.asked()[2]


def test_a_busy_server_gives_everybody_a_pause(out):
    times = []

    def act(number, request):
        times.append(time.monotonic())
        return ("status", 429, {"Retry-After": "1"}) if number == 0 else well(number, request)

    with chat_server(act) as server:
        assert caption(out, server, concurrency=1)["captions"]["captioned"] == CLIPS
    assert times[1] - times[0] >= 1.0


LASTING = {
    "server error": (("status", 500), {"failed": {"http-500": {"retryable": 1}}}),
    "bad request": (("status", 400), {"failed": {"http-400": {"permanent": 1}}}),
    "too long a wait": (("status", 429, {"Retry-After": "9999"}), {"failed": {"http-429": {"retryable": 1}}}),
    "malformed": (("send", b"<html>"), {"failed": {"bad-reply": {"retryable": 1}}}),
    "nothing": (("say", ""), {"refused": {"empty": 1}}),
    "null": (("say", None), {"refused": {"empty": 1}}),
    "refusal": (("say", "I'm sorry, I can't help with that."), {"refused": {"refusal": 1}}),
    "withheld": (("say", {"content": None, "refusal": "no"}), {"refused": {"refusal": 1}}),
    "too long": (("say", "word " * 201), {"refused": {"too long": 1}}),
    "cut off": (("say", "A cat sits on", {"finish": "length"}), {"refused": {"cut off": 1}}),
}


@pytest.mark.parametrize("trouble", LASTING)
def test_a_trouble_with_one_clip_ends_in_its_class_and_costs_no_other_one(trouble, out):
    how, expected = LASTING[trouble]
    bad = []

    def act(number, request):
        bad[:] = bad or [name_of(request)]
        return how if bad == [name_of(request)] else well(number, request)

    with chat_server(act) as server:
        summary = caption(out, server, concurrency=1, attempts=2)
        found = summary["captions"]
        assert sums(summary)
        assert {"refused": found["refused"], "failed": found["failed"]} == {"refused": {}, "failed": {}, **expected}
        assert found["captioned"] == CLIPS - 1
        assert "stopped" not in found
        assert [len(each) for each in texts(out)] == [1] * CLIPS
        # Nothing is asked twice but on request, and then only what may pass.
        asked = len(server.requests)
        caption(out, server)
        assert len(server.requests) == asked
        bad[:] = ["none"]
        again = caption(out, server, retry="failed")
        assert len(server.requests) == asked + ("retryable" in str(expected))
        assert again["captions"]["captioned"] == CLIPS - 1 + ("retryable" in str(expected))


def test_a_clip_that_has_no_caption_in_the_end_is_left_out_where_one_is_required(out):
    def act(number, request):
        return ("say", "") if number in (0, 3) else well(number, request)

    with chat_server(act) as server:
        summary = caption(out, server, require=True, concurrency=1)
    assert sums(summary)
    # The first one is without a reply but has its own caption.
    assert summary["filtered"] == {"duration below 1": 1, "no caption": 1}
    assert len(texts(out)) == CLIPS - 1


def test_a_server_that_is_down_ends_in_one_line_and_all_else_is_done(out, call):
    """Return code, line, summary; then the same command goes on from there."""
    port = free_port()
    how = [
        f"out={out}",
        "prep=all",
        "caption.by=endpoint",
        "caption.model=tiny",
        f"caption.url=http://127.0.0.1:{port}/v1",
    ]
    status, printed, errors = call("prep", *how, "caption.pause=0.01", "caption.attempts=2")
    assert status == 1
    (line,) = [line for line in errors.splitlines() if "error" in line]
    assert f"caption: http://127.0.0.1:{port}/v1, model tiny: found no answer to 5 requests in a row" in line
    assert "for connection: " in line
    assert "7 of 7 clips not captioned" in line
    assert "Traceback" not in errors
    summary = json.loads((out / "summary.json").read_text())
    assert sums(summary)
    assert (summary["ok"], summary["captions"]["open"]) == (7, 7)
    assert "7 captions not asked for yet" in printed
    server = Server(well, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # Settings are those of the last call, but where frames are sent is said on each command line.
    status, printed, errors = call("prep", f"out={out}", f"caption.url=http://127.0.0.1:{port}/v1")
    server.shutdown(), server.server_close()
    assert status == 0, errors
    assert "7 of 7 clips captioned by tiny" in printed


def test_a_server_that_goes_down_on_the_way_keeps_what_is_done_and_is_not_hammered(out):
    def act(number, request):
        return well(number, request) if number < 2 else ("drop",)

    with chat_server(act) as server:
        summary = caption(out, server, concurrency=1, attempts=3, give_up=2)
        assert len(server.requests) == 2 + 2 * 3
        assert "found no answer to 2 requests in a row" in summary["captions"]["stopped"]
        assert sums(summary)
        assert (summary["captions"]["captioned"], summary["captions"]["open"]) == (2, CLIPS - 2)
        assert sum(len(each) for each in texts(out)) == 3
        server.act = well
        summary = caption(out, server)
        assert (summary["captions"]["captioned"], len(server.requests)) == (CLIPS, 8 + CLIPS - 2)
    assert "stopped" not in summary["captions"]


def test_few_clips_are_enough_to_see_that_a_server_is_down(out):
    with chat_server(lambda *_: ("status", 401)) as server:
        summary = caption(out, server, concurrency=1, give_up=100)
    assert "for http-401: " in summary["captions"]["stopped"]
    assert summary["captions"]["open"] == CLIPS
    assert len(server.requests) == CLIPS


def test_a_server_that_hangs_is_told_by_the_limit_that_it_broke(out):
    with chat_server(lambda *_: ("hang",)) as server:
        summary = caption(out, server, attempts=1, timeout=0.5)
    assert "for timeout: found no whole answer within 0.5 s" in summary["captions"]["stopped"]


def test_a_server_that_takes_no_clip_as_it_is_ends_each_for_good(out):
    with chat_server(lambda *_: ("status", 413)) as server:
        found = caption(out, server, concurrency=1, give_up=100)["captions"]
    assert found["failed"] == {"http-413": {"permanent": CLIPS}}
    assert "stopped" not in found


def test_a_damaged_clip_says_nothing_about_the_server(out):
    damaged = Manifest.load(out).column("key")[1]
    (path,) = out.glob(f".work/clips/*/{damaged}.mp4")
    whole = path.read_bytes()
    path.write_bytes(b"nothing")
    with chat_server(lambda *_: ("status", 500)) as server:
        with pytest.raises(ValueError, match=f"{damaged}.mp4: found other bytes than were written"):
            caption(out, server, concurrency=1, attempts=1, give_up=2)
        assert len(server.requests) == 2
        path.write_bytes(whole)
        server.act = well
        found = caption(out, server)["captions"]
        assert found["failed"] == {"undecodable": {"permanent": 1}}
        assert found["captioned"] == CLIPS - 1


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_shards(out, made, tmp_path):
    other = Path(shutil.copytree(made, tmp_path / "other"))

    def slow(number, request):
        time.sleep(0.1)
        return well(number, request)

    with chat_server(slow) as server:
        how = [f"out={out}", "prep=all", "caption.by=endpoint", "caption.model=tiny", f"caption.url={server.url}"]
        command = [sys.executable, "-m", "videodiff", "prep", *how, "caption.concurrency=1", "caption.frames=3"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while process.poll() is None and len(server.requests) < 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = sqlite3.connect(out / ".work/replies.sqlite").execute("SELECT count(*) FROM replies").fetchone()[0]
        assert kept >= 2
        before = len(server.requests)
        prep(out, caption={**HOW, "url": server.url, "frames": 3})
        assert len(server.requests) - before == 7 - kept
        prep(other, caption={**HOW, "url": server.url, "frames": 3})
    assert dataset(out) == dataset(other)
    assert not [path for path in out.rglob("*") if ".partial" in path.name]


def test_captions_of_several_models_are_kept_and_a_new_prompt_replaces_the_old_one(out):
    def say(words):
        return lambda *_: ("say", words)

    with chat_server(say("One.")) as server:
        caption(out, server, origin="short", prompt="one word")
        server.act = say("Two.")
        caption(out, server, origin="long")
        server.act = say("Three.")
        caption(out, server, origin="short", prompt="another word", missing=True)
        assert len(server.requests) == 3 * CLIPS - 1
    found = texts(out)
    # `missing`: not the one with a caption by hand.
    assert found[0] == [Text("by hand", "sidecar"), Text("Two.", "long")]
    assert found[1] == [Text("Two.", "long"), Text("Three.", "short")]
    assert set(read_notes(read_sample(out, Manifest.load(out).row(1)))["captioners"]) == {"short", "long"}
    prep(out, caption={"use": ["short", "sidecar"]})
    assert [text for each in texts(out)[:2] for text in each] == [Text("by hand", "sidecar"), Text("Three.", "short")]
    with pytest.raises(ValueError, match=r"caption\.use: found 'shrt', expected .* long, short, sidecar"):
        prep(out, caption={"use": ["shrt"]})


def test_words_of_camera_and_scores_are_added_on_request(out):
    rules = [{"score": "motion", "min": 0.0, "text": "it moves"}, {"score": "motion", "min": 99, "text": "it flies"}]
    prep(out, caption={"camera": True, "words": rules})
    assert texts(out)[0][0].text == "By hand. It moves. Camera motion: pan right."
    with pytest.raises(ValueError, match="caption: found no score motoin, expected one of aspect"):
        prep(out, caption={"words": [{"score": "motoin", "min": 0, "text": "x"}]})


def test_a_takedown_removes_what_was_said_of_a_clip(out, tmp_path):
    with chat_server() as server:
        caption(out, server)
    (tmp_path / "gone.txt").write_text("2.mp4\n")
    prep(out, takedown=tmp_path / "gone.txt")
    replies = sqlite3.connect(out / ".work/replies.sqlite").execute("SELECT count(*) FROM replies").fetchone()[0]
    assert replies == CLIPS - 1


def test_the_key_comes_from_the_environment_and_goes_nowhere_but_to_the_server(out, monkeypatch, call):
    monkeypatch.setenv("CHAT_KEY", "sk-very-secret")

    def act(number, request):
        return ("status", 401) if number == 0 else well(number, request)

    with chat_server(act) as server:
        how = ["caption.by=endpoint", "caption.model=tiny", f"caption.url={server.url}", "caption.concurrency=1"]
        status, printed, errors = call("prep", f"out={out}", *how, "caption.key=CHAT_KEY", "prep=all")
        assert status == 0, errors
        assert {headers["Authorization"] for _, headers, _ in server.requests} == {"Bearer sk-very-secret"}
    assert "very-secret" not in printed + errors
    assert not [path for path in out.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]


MISTAKES = {
    "by": ({"by": "magic"}, "caption.by: found 'magic', expected none, endpoint or model"),
    "model": ({"model": None}, "caption.model: found none"),
    "url": ({"url": "localhost:8000"}, "caption.url: found 'localhost:8000', expected one such as http://"),
    "secret url": ({"url": "http://me:pass@host/v1"}, "caption.url: found a user or password"),
    "unset key": ({"key": "NO_SUCH_KEY"}, "caption.key: found no environment variable NO_SUCH_KEY"),
    "key itself": ({"key": "sk-live-1"}, "caption.key: found something else, expected the name"),
    "frames": ({"frames": 0}, "frames=0"),
    "concurrency": ({"concurrency": 0}, "concurrency=0"),
    "words": ({"words": [{"score": "motion"}]}, "caption.words: found"),
    "folder": ({"by": "model", "model": "no/such/folder"}, "caption.model: found no no/such/folder/config.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_made(mistake, footage, tmp_path):
    how, message = MISTAKES[mistake]
    with pytest.raises(ValueError) as error:  # noqa: PT011
        prep(tmp_path / "out", footage, caption={**HOW, **how})
    assert message in str(error.value)
    assert "sk-live" not in str(error.value)
    assert "pass@" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_follows_what_the_replies_follow_from(monkeypatch):
    monkeypatch.setenv("K", "a key")
    base = CaptionPolicy(**HOW).fingerprint
    same = [{"url": "http://elsewhere/v1"}, {"concurrency": 99}, {"origin": "x"}, {"timeout": 1.0}, {"key": "K"}]
    other = [{"model": "m"}, {"prompt": "p"}, {"frames": 4}, {"side": 9}, {"max_tokens": 9}, {"body": {"seed": 1}}]
    assert {CaptionPolicy(**{**HOW, **how}).fingerprint for how in same} == {base}
    assert base not in {CaptionPolicy(**{**HOW, **how}).fingerprint for how in other}


def test_a_reply_with_the_content_left_out_is_an_empty_one():
    assert read_reply(b'{"choices": [{"message": {}}]}') == Reply("")
