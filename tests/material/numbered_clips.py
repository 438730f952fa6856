"""Videos whose frames show their index as black and white bits, in every kind of container and coding."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np

from tests.material.made_clips import write_video

COUNT = 60
# In frames of 25 a second: some come late, some early.
UNEVEN = [number + number // 4 + (number % 7 == 3) * 0.5 for number in range(COUNT)]


def numbered(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Return uint8 `t 64 160 c`, frame n with the bits of n in ten blocks of 32 pixels, and the noise of a seed."""
    bits = (np.arange(count)[:, None] >> np.arange(10)) & 1
    blocks = np.repeat(np.repeat(bits.reshape(count, 2, 5), 32, 1), 32, 2)
    video = np.repeat(blocks[..., None] * 215, 3, -1).astype(np.uint8)
    return video + np.random.default_rng(seed).integers(0, 20, video.shape[1:], np.uint8) * np.uint8(seed > 0)


def read_number(image: np.ndarray) -> int:
    """Return the number in a frame, uint8 `h w c` of any size with these proportions."""
    height, width = image.shape[:2]
    rows, columns = (np.arange(2) + 0.5) / 2 * height, (np.arange(5) + 0.5) / 5 * width
    bits = image[rows.astype(int)][:, columns.astype(int)].mean(-1).ravel() > 120
    return int(bits @ (1 << np.arange(10)))


def remux(video: bytes, change: Callable[[av.Packet], None], container: str = "mp4") -> bytes:
    """Return the same packets with other timestamps."""
    file = io.BytesIO()
    with av.open(io.BytesIO(video)) as source:
        out = av.open(file, "w", format=container, options={"avoid_negative_ts": "disabled"})
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                change(packet)
                packet.stream = stream
                out.mux(packet)
        out.close()
    return file.getvalue()


def hide(frames: int) -> Callable[[av.Packet], None]:
    """Move the first frames before time 0, where an edit list hides them."""

    def earlier(packet: av.Packet) -> None:
        shift = round(frames / 25 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift

    return earlier


def stamp_by_decoding(packet: av.Packet) -> None:
    """Stamp a packet with its decoding time, from 0: the first frame is decoded two frames before it is shown."""
    packet.pts = packet.dts = packet.dts + round(2 / 25 / packet.time_base)


def make(kind: str, seed: int = 0) -> tuple[bytes, dict[int, float]]:
    """Return a video of this kind, and the time in seconds at which each frame is shown, by index."""
    frames, even = numbered(seed=seed), {number: number / 25 for number in range(COUNT)}
    if kind == "uneven":
        half = [round(2 * time) for time in UNEVEN]
        return write_video(frames, times=half, bf="3", g="20"), {number: time / 25 for number, time in enumerate(half)}
    if kind == "edit list":
        video = write_video(frames, g="20", bf="3")
        return remux(video, hide(27)), {number: (number - 27) / 25 for number in range(27, COUNT)}
    if kind == "avi":
        # It states no times of showing; ffmpeg adds a frame to those of decoding.
        avi = write_video(frames, g="20", bf="3", container="avi")
        return avi, {number: (number + 1) / 25 for number in range(COUNT)}
    if kind == "stamped by decoding":
        return remux(write_video(frames, g="20", bf="3"), stamp_by_decoding), even
    options = {
        "one keyframe": {"g": "250", "bf": "3"},
        "b-frames": {"g": "20", "bf": "3"},
        "open groups": {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0:b-adapt=0"},
        # In a transport stream each start of a refresh is marked as a keyframe, though it takes 20 frames to be one.
        "intra refresh": {"x264-params": "intra-refresh=1:keyint=20:scenecut=0:bframes=0", "container": "mpegts"},
        "only keyframes": {"g": "1"},
        "mkv": {"g": "20", "bf": "3", "container": "matroska"},
        "transport stream": {"g": "20", "bf": "3", "container": "mpegts"},
        "hevc": {"codec": "libx265", "x265-params": "keyint=12:open-gop=1:bframes=3:log-level=none"},
        "vp9": {"codec": "libvpx-vp9", "container": "webm", "g": "20"},
    }
    return write_video(frames, **options[kind]), even


KINDS = [
    "one keyframe",
    "b-frames",
    "open groups",
    "intra refresh",
    "only keyframes",
    "mkv",
    "transport stream",
    "hevc",
    "vp9",
    "uneven",
    "edit list",
    "stamped by decoding",
    "avi",
]
