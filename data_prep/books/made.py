"""What was made of a request: records of its clips, as a JSON file of the work folder holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.books.work_folder import clip_file, publish
from videodiff.data.video.info import VideoInfo

# Counts up when a reader of the version before would misread the file. Files without a version are of version 1.
VERSION = 1


@dataclass(frozen=True)
class Sound:
    """The sound of a clip: hash and size of its file, or why it has none."""

    sha256: str = ""
    bytes: int = 0
    lost: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that say something."""
        return {"lost": self.lost} if self.lost else {"sha256": self.sha256, "bytes": self.bytes}


@dataclass(frozen=True)
class MadeClip:
    """A clip of which the mp4 lies in the work folder.

    span: seconds in the source; times: when each of its frames is shown in the source, in microseconds; box: top, left,
    height and width of what was left of the source's frame; color: see `screen.color_notes`; perceptual: a hash of its
    pictures, empty where none was taken; sha256, bytes: of the mp4; audio: None where no sound was wanted.
    """

    id: str
    span: tuple[float, float]
    info: VideoInfo
    times: list[int]
    box: tuple[int, int, int, int]
    codec: str
    scores: dict[str, float]
    sha256: str
    deinterlaced: bool = False
    color: dict[str, str] = field(default_factory=dict)
    perceptual: bytes = b""
    bytes: int = 0
    audio: Sound | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON can hold it."""
        sound = {} if self.audio is None else {"audio": self.audio.to_json()}
        return {
            "id": self.id,
            "span": list(self.span),
            "info": asdict(self.info),
            "times": self.times,
            "box": list(self.box),
            "deinterlaced": self.deinterlaced,
            "codec": self.codec,
            "color": self.color,
            "scores": self.scores,
            "perceptual": self.perceptual.hex(),
            "sha256": self.sha256,
            "bytes": self.bytes,
        } | sound

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> MadeClip:
        """Return the record of what `to_json` gave, of earlier versions too: they lack fields that have a default."""
        read = dict(fields)
        read |= {"span": tuple(read["span"]), "box": tuple(read["box"]), "info": VideoInfo(**read["info"])}
        read["perceptual"] = bytes.fromhex(read.get("perceptual", ""))
        if "audio" in read:
            read["audio"] = Sound(**read["audio"])
        return cls(**read)


@dataclass(frozen=True)
class Made:
    """What was made of a request.

    lost: why spans of it gave no clip; video_sha256: of the source file; parameters: how its clips were made, as the
    json of each clip in the shards says it.
    """

    clips: tuple[MadeClip, ...]
    lost: tuple[str, ...]
    video_sha256: str
    parameters: dict[str, Any]

    def write(self, work: Path, request: str) -> None:
        """Write the record of a request of this id; the files of its clips must be on disk."""
        clips = [clip.to_json() for clip in self.clips]
        fields = {"version": VERSION, "clips": clips, "lost": list(self.lost), "video_sha256": self.video_sha256}
        publish(clip_file(work, request, "json"), json.dumps(fields | {"parameters": self.parameters}).encode())

    @classmethod
    def read(cls, work: Path, request: str) -> Made:
        """Return the record of a request of this id; ValueError where a newer version wrote it."""
        path = clip_file(work, request, "json")
        fields = json.loads(path.read_bytes())
        if (version := fields.get("version", VERSION)) > VERSION:
            raise ValueError(f"{path}: found version {version}, expected at most {VERSION}: use a newer videodiff")
        clips = tuple(map(MadeClip.from_json, fields["clips"]))
        return cls(clips, tuple(fields["lost"]), fields["video_sha256"], fields["parameters"])
