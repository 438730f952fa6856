"""What a dashboard shows, read back from what its logger wrote; and a tracker that cannot be reached."""

from __future__ import annotations

import json
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import wandb
import yaml
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from tests.conftest import tiny
from videodiff.data.video.encode import encode
from videodiff.report.run import read_metrics
from videodiff.training.run import logging
from videodiff.training.run.logging import (
    Board,
    earlier_id,
    log_configuration,
    show_clips,
    usable_mode,
    wandb_logger,
)
from videodiff.training.state.mirror import is_record

FRAMES = np.zeros((5, 16, 16, 3), dtype=np.uint8)
KEY = "0123456789" * 4
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the home of somebody who has never used wandb."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_BASE_URL",
        "WANDB_PROJECT",
        "WANDB_NAME",
        "WANDB_RUN_ID",
        "WANDB_SILENT",
        "NETRC",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return host and port of a server of one's own, which knows the account and refuses every run."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            viewer = {"id": "x", "username": "u", "entity": "e", "flags": "{}", "teams": {"edges": []}}
            refusal = {"errors": [{"message": "permission denied"}], "data": None}
            self.answer(json.dumps({"data": {"viewer": viewer}} if b"viewer" in asked else refusal).encode())

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{found.server_port}")
        yield f"127.0.0.1:{found.server_port}"
        found.shutdown()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip_0.mp4"
    path.write_bytes(encode(FRAMES, 5.0))
    return path


def test_tensorboard_shows_every_frame(tmp_path: Path, video: Path) -> None:
    logger = Board(tmp_path, name="board")
    show_clips(logger, 7, [video], [FRAMES], ["a ball"])
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    (shown,) = events.Images("samples/clip_0")
    assert shown.step == 7
    assert (shown.height, shown.width) >= (16, 16)
    assert shown.height * shown.width >= len(FRAMES) * 16 * 16


def test_wandb_keeps_the_video(tmp_path: Path, video: Path) -> None:
    logger = wandb_logger("videodiff", "run", str(tmp_path))
    show_clips(logger, 7, [video], [FRAMES], ["a ball"])
    logger.experiment.finish()
    (kept,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/**/*.mp4")
    assert kept.read_bytes() == video.read_bytes()


def test_who_is_not_logged_in_is_told_where_the_run_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = wandb_logger("videodiff", "run", str(tmp_path))
    assert logger.experiment.offline
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("wandb: found no key")]
    assert len(said) == 1
    assert f"wandb sync {tmp_path}/wandb/offline-run-" in said[0]


@pytest.mark.parametrize("key", ["", "short"])
def test_a_key_that_is_none_does_not_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert wandb_logger("videodiff", "run", str(tmp_path)).experiment.offline


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_mode_of_the_environment_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = wandb_logger("videodiff", "run", str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finalize("success")
    assert bool(list(tmp_path.glob("wandb/offline-run-*"))) == (mode == "offline")


def test_a_server_of_ones_own_is_known_by_the_key_of_its_host(server: str, home: Path) -> None:
    assert usable_mode()[0] == "offline"
    (home / ".netrc").write_text(f"machine {server}\n  login user\n  password {KEY}\n")
    (home / ".netrc").chmod(0o600)
    wandb.teardown()
    assert usable_mode() == ("online", "")


def test_a_server_that_refuses_the_run_does_not_end_training(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(logging, "START_S", 3.0)
    logger = wandb_logger("videodiff", "run", str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, step=1)
    assert logger.experiment.offline
    assert "the run is kept offline" in capfd.readouterr().out


def test_a_server_that_is_not_there_does_not_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        url = f"http://127.0.0.1:{gone.server_port}"
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    mode, reason = usable_mode()
    assert mode == "offline"
    assert reason.startswith(f"{url} does not answer")


def test_a_resumed_run_goes_on_under_its_id_and_another_run_has_its_own(tmp_path: Path) -> None:
    ids = []
    for folder in ("one", "one", "two"):
        logger = wandb_logger("videodiff", "run", str(tmp_path / folder))
        logger.log_metrics({"train/loss": 1.0}, step=len(ids))
        ids.append(logger.experiment.id)
        logger.finalize("success")
    assert ids[0] == ids[1] != ids[2]
    assert len(list(tmp_path.glob("one/wandb/offline-run-*"))) == 2
    assert len(list(tmp_path.glob("two/wandb/offline-run-*"))) == 1


def test_a_run_keeps_its_id_where_wandbs_own_files_did_not_come_along(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"

    def begun(folder: Path) -> str:
        logger = wandb_logger("videodiff", "run", str(folder))
        begun = logger.experiment.id
        logger.finalize("success")
        return begun

    first = begun(here)
    elsewhere.mkdir()
    for path in here.iterdir():
        if is_record(path.name):
            shutil.copy(path, elsewhere)
    assert begun(elsewhere) == first


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": 7}', '{"id": ""}', '"id"'])
def test_a_file_without_an_id_is_named(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wandb.json").write_text(text)
    with pytest.raises(ValueError, match=r"wandb.json: found no id, expected"):
        earlier_id(tmp_path)
    wandb_logger("videodiff", "run", str(tmp_path)).log_metrics({"train/loss": 1.0}, step=0)
    assert "wandb.json: found no id" in capfd.readouterr().out


def test_wandbs_own_variables_name_the_run_where_no_argument_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MODE": "offline", "PROJECT": "theirs", "NAME": "night", "RUN_ID": "night-1"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    logger = wandb_logger(None, "run", str(tmp_path))
    assert (logger.experiment.project, logger.experiment.name, logger.experiment.id) == ("theirs", "night", "night-1")
    logger.finalize("success")
    for name in ("PROJECT", "NAME", "RUN_ID"):
        monkeypatch.delenv(f"WANDB_{name}")
    wandb.teardown()
    # Another time, another place: the id that the variable gave stays the id of the run.
    logger = wandb_logger(None, "run", str(tmp_path))
    assert (logger.experiment.project, logger.experiment.name, logger.experiment.id) == ("videodiff", "run", "night-1")


def test_an_argument_comes_before_wandbs_own_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODE": "online", "PROJECT": "theirs", "RUN_ID": "abc"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    logger = wandb_logger("mine", "run", str(tmp_path), id="one", mode="offline", tags=["night"])
    run = logger.experiment
    assert (run.project, run.id, run.tags, run.offline) == ("mine", "one", ("night",), True)


@pytest.mark.parametrize("asked", [{"mode": "offline"}, {"offline": True}, {"mode": "disabled"}])
def test_a_run_that_is_to_stay_here_asks_no_server(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict, capfd: pytest.CaptureFixture[str]
) -> None:
    # Lightning sets it for `offline`.
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    logger = wandb_logger(None, "run", str(tmp_path), **asked)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finalize("success")
    assert bool(list(tmp_path.glob("wandb/offline-run-*"))) == (asked != {"mode": "disabled"})
    assert "permission denied" not in capfd.readouterr().out


def test_settings_of_wandb_are_those_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = wandb_logger(None, "run", str(tmp_path), settings={"console": "off", "init_timeout": 7})
    found = logger.experiment.settings
    assert (found.console, found.init_timeout, found.finish_timeout, found.silent) == ("off", 7, logging.UPLOAD_S, True)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"entty": "team"}, "found no argument 'entty' of wandb; did you mean 'entity'"),
        ({"log_model": True}, "log_model: found True, which would have no effect: callbacks.checkpoints.mirror="),
        ({"settings": {"consle": "off"}}, "settings.consle: Extra inputs are not permitted"),
        ({"settings": {"mode": "offline"}}, "settings.mode: found 'offline', expected it as mode="),
        ({"settings": {"run_id": "a"}}, "settings.run_id: found 'a', expected it as id="),
        ({"mode": "ofline"}, "settings.mode: Input should be 'online', 'offline'"),
    ],
)
def test_an_argument_that_wandb_does_not_have_is_an_error_before_training(
    tmp_path: Path, options: dict, error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        wandb_logger(None, "run", str(tmp_path), **options)


def test_an_argument_that_tensorboard_does_not_have_is_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no argument 'flush_sec' of tensorboard; did you mean 'flush_secs'"):
        Board(tmp_path, flush_sec=5)
    assert Board(tmp_path, flush_secs=5, version="one").version == "one"


def test_every_logger_has_the_configuration(tmp_path: Path) -> None:
    config = {"optimizer": {"lr": 1e-3}, "data": {"root": "https://host/set"}}
    loggers = [
        CSVLogger(tmp_path / "csv"),
        Board(tmp_path / "board", default_hp_metric=False),
        wandb_logger("videodiff", "run", str(tmp_path)),
    ]
    log_configuration(loggers, config)
    assert loggers[2].experiment.config["data"] == config["data"]
    for logger in loggers:
        logger.save()
        logger.finalize("success")
    for logger in loggers[:2]:
        assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == config


def test_a_table_shows_no_clips(tmp_path: Path, video: Path) -> None:
    show_clips(CSVLogger(tmp_path), 7, [video], [FRAMES], ["a ball"])
    assert list(tmp_path.iterdir()) == [video]


def test_a_tracker_that_fails_is_said_once_and_ends_nothing(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = wandb_logger("videodiff", "run", str(tmp_path))
    monkeypatch.setattr(type(logger.experiment), "log", lambda *_, **__: 1 / 0)
    for step in (1, 2):
        logger.log_metrics({"train/loss": 1.0}, step=step)
        show_clips(logger, step, [video], [FRAMES], ["a ball"])
    logger.finalize("success")
    said = [line for line in capfd.readouterr().out.splitlines() if "goes on without it" in line]
    assert said == ["wandb: ZeroDivisionError: division by zero; training goes on without it"]


def test_a_tracker_that_cannot_start_is_said_once_and_ends_nothing(
    call: Call, world_dataset: Path, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Where its folder should be.
    Path("run").mkdir()
    Path("run/wandb").touch()
    samples = ["callbacks.samples.every=1", "callbacks.samples.clips=1", "sampler.steps=1"]
    status, out, err = call("train", *tiny(world_dataset), *samples, "run=run", "logger=wandb", "trainer.max_steps=1")
    assert status == 0, err
    (said,) = [line for line in out.splitlines() if "goes on without it" in line]
    assert said.startswith("wandb: NotADirectoryError: ")


def records(folder: Path) -> list[Record]:
    """Return what an offline run of wandb holds, once the process that writes it has written its end."""
    (file,) = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 60
    while True:
        found = whole_records(file.read_bytes())
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, f"{file}: {len(found)} records without an end"
        time.sleep(0.1)


def whole_records(data: bytes) -> list[Record]:
    """Return the whole records of LevelDB's log: parts of records in blocks of 32 KiB."""
    place, found, parts = 7, [], b""
    while place + 7 <= len(data):
        if place % 2**15 > 2**15 - 7:
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if place + 7 + length > len(data):
            break
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(parts))
            parts = b""
    return found


def items_of(found: list[Record]) -> dict[str, list[str]]:
    """Return the values of each key that was logged."""
    values: dict[str, list[str]] = {}
    for record in found:
        for item in record.history.item:
            values.setdefault(item.key or "/".join(item.nested_key), []).append(item.value_json)
    return values


def test_a_run_with_two_loggers_and_its_resume_tell_both_the_same(
    call: Call, world_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    own = ["callbacks.samples.every=2", "callbacks.samples.clips=1", "callbacks.checkpoints.every=2", "sampler.steps=1"]
    how = [*tiny(world_dataset), *own, f"run={run}", "logger=[csv,wandb]", "trainer.log_every_n_steps=1"]
    status, _, err = call("train", *how, "trainer.max_steps=2")
    assert status == 0, err
    status, _, err = call("train", f"resume={run}", "trainer.max_steps=4")
    assert status == 0, err
    folders = sorted(run.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime)
    assert len(folders) == 2
    assert len({file.name for folder in folders for file in folder.glob("run-*.wandb")}) == 1
    curves = read_metrics(*sorted(run.glob("metrics/version_*/metrics.csv")))
    steps, losses = curves["train/loss"]
    assert steps.tolist() == [1, 2, 3, 4]
    kept = []
    for folder in folders:
        found = records(folder)
        config = {u.key: json.loads(u.value_json) for r in found for c in (r.config, r.run.config) for u in c.update}
        assert config["optimizer"]["lr"] == yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"]
        kept += [float(value) for value in items_of(found)["train/loss"]]
        (clip,) = folder.glob("files/media/videos/**/*.mp4")
        assert clip.read_bytes() in {path.read_bytes() for path in run.glob("samples/step_*/*.mp4")}
    np.testing.assert_allclose(kept, losses, rtol=1e-6)


def test_the_curves_of_an_earlier_attempt_are_not_deleted(call: Call, world_dataset: Path, tmp_path: Path) -> None:
    run, own = tmp_path / "run", ["logger=csv", "+logger.csv.version=one", "trainer.log_every_n_steps=1"]
    status, _, err = call("train", *tiny(world_dataset), f"run={run}", *own, "trainer.max_steps=1")
    assert status == 0, err
    before = (run / "metrics/one/metrics.csv").read_bytes()
    status, _, err = call("train", f"resume={run}", *own, "trainer.max_steps=2")
    assert status == 1
    assert "found the curves of an earlier attempt, which this one would delete, expected another logger.csv.ver" in err
    assert (run / "metrics/one/metrics.csv").read_bytes() == before
    # What a run holds may have any version: it is only read.
    assert call("inspect", str(run))[0] == 0


def test_without_loggers_a_run_trains_and_its_report_says_there_are_no_curves(
    call: Call, world_dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    status, _, err = call("train", *tiny(world_dataset), f"run={run}", "logger=[]", "trainer.max_steps=1")
    assert status == 0, err
    assert not (run / "metrics").exists()
    assert call("report", str(run))[0] == 0
    assert "Nothing logged yet" in (run / "report.html").read_text()
