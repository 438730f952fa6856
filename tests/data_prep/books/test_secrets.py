"""What opens a URL is in the work folder alone, which is its owner's: nothing that is passed on or told has it."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_prep.books.ledger import Ledger
from data_prep.books.private import from_environment, without_values
from data_prep.books.work_folder import LEDGER
from data_prep.report.figures import figures
from data_prep.report.page import write_preparation
from data_prep.report.summary import Summary, format_summary
from tests.material.made_clips import encode
from tests.material.preparing import prep
from tests.material.scored_clips import panning
from videodiff.data.samples.manifest import Manifest

SECRETS = ("sEcReT1", "sEcReT2", "sEcReT3", "sEcReT4", "sEcReT5", "sEcReT6")


class Guarded(SimpleHTTPRequestHandler):
    """A server that gives a file only to who has the signature, or the password."""

    def do_GET(self) -> None:
        allowed = "sEcReT1" in self.path or "dTpzRWNSZVQy" in self.headers.get("Authorization", "")
        if allowed and "gone" not in self.path:
            super().do_GET()
        else:
            self.send_error(403)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


def test_secrets_of_urls_are_nowhere_but_in_the_work_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MY_PROXY", "http://user:sEcReT6@proxy:1")
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.mp4").write_bytes(encode(panning(12, height=32, width=48, speed=2), 8.0))
    (tmp_path / "web/b.mp4").write_bytes(encode(panning(12, height=32, width=48, speed=2, seed=5), 8.0))
    table, out = tmp_path / "list.jsonl", tmp_path / "out"
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=tmp_path / "web")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        urls = [
            f"http://{host}/a.mp4?v=1&X-Amz-Credential=x&X-Amz-Signature=sEcReT1",
            f"http://u:sEcReT2@{host}/b.mp4",
            f"http://{host}/gone.mp4?token=sEcReT3",
            f"http://u:sEcReT4@{host}/a b.mp4?sig=sEcReT5",
            f"ftp://u:sEcReT4@{host}/x.mp4?sig=sEcReT5",
        ]
        table.write_text("".join(json.dumps({"video": url}) + "\n" for url in urls))
        summary = prep(
            out,
            table,
            "table",
            reader={"columns": {"video": "video"}},
            acquire={"private": True, "attempts": 1, "rate": 1000.0},
            encode={"short_side": 32},
            score=False,
            workers=1,
            overrides=["acquire.proxies=[http://user:sEcReT6@proxy:1]", "acquire.storage={s3:{key:k,secret:sEcReT5}}"],
        )
        server.shutdown()
    assert (summary["ok"], summary["failed"]["http-403"]) == (2, {"retryable": 1})
    assert summary["failed"]["bad-url"] == {"permanent": 2}
    write_preparation(out, figures(out, {}))
    manifest = Manifest.load(out)
    assert sorted(manifest.row(n)["source"] for n in range(2)) == [f"http://{host}/a.mp4?v=1", f"http://{host}/b.mp4"]
    told = [
        format_summary(Summary.from_json(summary), out),
        *(row.detail for row in Ledger(out / ".work" / LEDGER).ended()),
    ]
    kept = [path for path in out.iterdir() if path.is_file()]
    kept += [path for path in (out / ".work").iterdir() if path.suffix in (".json", ".yaml", ".txt")]
    for secret in SECRETS:
        assert not any(secret in text for text in told)
        assert not [path.name for path in kept if secret.encode() in path.read_bytes()]
    # Where they have to be, nobody else can look.
    assert (out / ".work").stat().st_mode & 0o777 == 0o700
    files = [path for path in (out / ".work").iterdir() if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    # A source is taken down by its address with or without what opens it.
    (tmp_path / "gone.txt").write_text(urls[0].replace("sEcReT1", "another") + "\n")
    taken = prep(out, takedown=tmp_path / "gone.txt", score=False, encode={"short_side": 32}, workers=1)
    assert (taken["ok"], taken["filtered"]) == (1, {"takedown": 1})


def test_settings_name_variables_of_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("KEY", "k")
    given = {"storage": {"s3": {"key": "env:KEY", "x": 1}}, "proxies": ["env:KEY", "http://proxy"]}
    found = from_environment(given, "acquire")
    assert found == {"storage": {"s3": {"key": "k", "x": 1}}, "proxies": ["k", "http://proxy"]}
    with pytest.raises(ValueError, match=r"acquire\.storage\.s3\.key: found no environment variable 'NONE'"):
        from_environment({"storage": {"s3": {"key": "env:NONE"}}}, "acquire")


def test_overrides_are_kept_without_what_opens_something() -> None:
    given = {
        "acquire.proxies=[http://u:p@h:1,http://h:2]": "acquire.proxies=[http://h:1,http://h:2]",
        "+acquire.storage.s3.secret=abc": "+acquire.storage.s3.secret=...",
        "acquire.storage={s3: {key: 'abc', secret: env:S}}": "acquire.storage={s3: {key: ..., secret: env:S}}",
        "root=https://h/a?sig=abc": "root=https://h/a?sig=...",
        "caption.key=NAME": "caption.key=NAME",
        "prep.filter.motion.min=0.02": "prep.filter.motion.min=0.02",
    }
    assert without_values(given) == list(given.values())


def test_a_root_whose_secrets_were_not_kept_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match="root: found https://h/a"):
        prep(tmp_path / "out", tmp_path, root="https://h/a?sig=...")
