"""Existing WebDataset tars: samples of `<key>.mp4`, `<key>.txt` and `<key>.json`, read in place and never unpacked."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from fsspec.utils import infer_compression

from data_prep.request import BadInput, ClipRequest, InputError, Part, Place, checked_path, show
from data_prep.sources.folder import VIDEOS, parse_video
from data_prep.sources.rows import UNREADABLE, Items, files_of, open_binary, unreadable

SIDECARS = (".txt", ".json")
MAX_SIDECAR = 2**20


class Member(NamedTuple):
    """A file of a tar: its sample's key, its extension, where its bytes lie, and these bytes if it is a sidecar."""

    key: str
    extension: str
    part: Part
    data: bytes


def read_webdataset(source: str | Path, licence: str = "") -> Items:
    """Yield the videos of a tar, or of the tars of a folder, each whole; `part` says where in the tar it lies.

    A tar that was cut gives one BadInput and the samples before the one that the cut may have touched.
    """
    for name, path in files_of(source, ".tar"):
        if infer_compression(name):
            yield BadInput(Place(name), "unreadable-file", "found a compressed tar, expected a plain one")
            continue
        try:
            with open_binary(path) as file:
                samples = groupby(read_members(file), key=lambda member: member.key)
                for item, (_, members) in enumerate(samples, 1):
                    yield parse_sample(Place(name, item=item), list(members), licence)
        except (*UNREADABLE, tarfile.TarError) as error:
            bad = unreadable(error)
            yield BadInput(Place(name), bad.reason, bad.detail)


def read_members(file: BinaryIO) -> Iterator[Member]:
    """Yield the plain files of a tar; a TarError where it does not end as a tar does."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while info := tar.next():
            tar.members.clear()  # tarfile keeps every member it has seen
            path = PurePosixPath(info.name)
            stem, _, ending = path.name.partition(".")
            extension = f".{ending}".lower()
            if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                read = extension in SIDECARS and info.size <= MAX_SIDECAR
                data = tar.extractfile(info).read() if read else b""
                part = Part(info.name, info.offset_data, info.size)
                yield Member((path.parent / stem).as_posix(), extension, part, data)
        # tarfile takes a header that was cut or overwritten for the end.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end of archive at byte {tar.offset}")


def parse_sample(place: Place, members: list[Member], licence: str) -> ClipRequest | BadInput:
    """Return the request of one sample."""
    try:
        files = {member.extension: member for member in members}
        key, videos = members[0].key, [extension for extension in VIDEOS if extension in files]
        if len(videos) != 1:
            found = show(", ".join(files))
            raise InputError("no-video", f"found {found} of {show(key)}, expected one of {', '.join(VIDEOS)}")
        part = files[videos[0]].part
        text, notes = (files[extension].data if extension in files else b"" for extension in SIDECARS)
        request = parse_video(part.name, text.decode("utf-8-sig"), json.loads(notes or b"{}"), licence)
        return replace(request, place=place, source=checked_path(place.file), name=key, part=part)
    except InputError as error:
        return BadInput(place, error.reason, error.detail)
    except (ValueError, RecursionError) as error:
        return BadInput(place, "bad-sidecar", f"found {show(str(error))}, expected text and JSON")
