"""Existing WebDataset tars: samples of `<key>.mp4`, `<key>.txt` and `<key>.json`, read in place and never unpacked."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from data_prep.books.request import BadInput, ClipRequest, InputError, Part, Place, checked_path, show
from data_prep.sources.folder import parse_video
from data_prep.sources.metadata.rows import UNREADABLE, Items, files_of, open_binary, unreadable
from videodiff.data.samples.members import (
    BAD_PATH,
    STILLS,
    BoundedHeader,
    MemberFault,
    compression_of,
    fault_of,
    is_noise,
    one_video,
    split_name,
)
from videodiff.data.samples.sidecars import SIDECARS
from videodiff.data.storage.listing import COMPRESSED, MOVING, PACKED_TARS, Fault, Passed, Scan, ending_of


class Member(NamedTuple):
    """A file of a tar: its sample's key, its extension, where its bytes lie, and these bytes if it is a sidecar.

    `fault` tells why it can belong to no sample.
    """

    key: str
    extension: str
    part: Part
    data: bytes
    fault: MemberFault | None = None


def read_webdataset(source: str | Path, licence: str = "", passed: Passed | None = None) -> Items:
    """Yield the videos of a tar, or of the tars below a folder, each whole; `part` says where in the tar it lies.

    Members that share a key but do not lie side by side are joined; their samples come last. If several members have
    the same name, the first is used. A truncated tar yields one BadInput, and the samples before the
    one that the cut may have touched. `passed` counts the files and tars that were skipped.
    """
    passed = Passed() if passed is None else passed
    for name, path in tars_of(source, passed):
        if COMPRESSED.fullmatch(ending_of(name)):
            yield BadInput(
                Place(name), "unreadable-file", "found a compressed tar, expected a plain one: uncompress it"
            )
            continue
        if isinstance(path, Fault):
            yield BadInput(Place(name), "unreadable-file", path.detail)
            continue
        yield from read_tar(name, path, licence, passed)


def tars_of(source: str | Path, passed: Passed) -> Iterator[tuple[str, str | Fault]]:
    """Yield name and path of a tar, or of those below a folder, compressed ones among them."""
    if not Path(source).is_dir():
        yield from files_of(source, ".tar")
        return
    found = False
    for item in Scan(Path(source), {".tar", *PACKED_TARS}, passed):
        found = True
        yield item.name, item if isinstance(item, Fault) else str(item.path)
    if not found:
        beside = f"; there are {passed}" if passed else ""
        raise ValueError(f"source: found no .tar below {source}, expected at least one{beside}")


def read_tar(name: str, path: str, licence: str, passed: Passed) -> Items:
    """Yield the samples of a tar."""
    waiting: dict[str, tuple[int, list[Member]]] = {}
    try:
        with open_binary(path) as file:
            apart = keys_apart(file)
            groups = groupby(read_members(file, passed), key=lambda member: (member.fault, member.key))
            for item, ((fault, key), members) in enumerate(groups, 1):
                if fault:
                    reason = "bad-path" if fault.kind == BAD_PATH else "bad-member"
                    yield BadInput(Place(name, item=item), reason, fault.reason)
                elif key in apart:
                    waiting.setdefault(key, (item, []))[1].extend(members)
                else:
                    yield from parse_sample(Place(name, item=item), list(members), licence)
        for item, members in waiting.values():
            yield from parse_sample(Place(name, item=item), members, licence)
    # A bad number in a header raises ValueError.
    except (*UNREADABLE, tarfile.TarError, ValueError) as error:
        bad = unreadable(error)
        yield BadInput(Place(name), bad.reason, bad.detail)
        for key, (item, _) in waiting.items():
            detail = f"found files of {show(key)} apart from each other in a damaged tar, expected them side by side"
            yield BadInput(Place(name, item=item), bad.reason, detail)


def keys_apart(file: BinaryIO) -> set[str]:
    """Return the keys whose members do not lie side by side; memory: some bytes a sample.

    Faults of the tar are ignored here: the later reading reports them.
    """
    seen, apart, last = set(), set(), None
    with contextlib.suppress(*UNREADABLE, tarfile.TarError, ValueError):
        for info in headers(file):
            key = None if fault_of(info) else split_name(plain_path(info.name))[0]
            if is_noise(info) or key == last:
                continue
            last = key
            if key is not None and hash(key) in seen:
                apart.add(key)
            seen.add(hash(key))
    return apart


def headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar; a TarError if its end mark is missing."""
    file.seek(0)
    if how := compression_of(file.read(8)):
        raise tarfile.ReadError(f"compressed by {how}: uncompress it")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedHeader) as tar:
        while info := tar.next():
            tar.members.clear()  # tarfile keeps every member it has seen
            yield info
        # tarfile mistakes a truncated or overwritten header for the end.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end of archive at byte {tar.offset}")


def read_members(file: BinaryIO, passed: Passed) -> Iterator[Member]:
    """Yield the files of a tar; folders are skipped, and hidden files are only counted."""
    for info in headers(file):
        if is_noise(info):
            if not info.isdir():
                passed["hidden in a tar"] += 1
            continue
        key, extension = split_name(plain_path(info.name))
        part, fault = Part(info.name, info.offset_data, info.size), fault_of(info)
        if fault:
            yield Member(key, extension, part, b"", fault._replace(reason=f"{show(info.name)}: {fault.reason}"))
            continue
        data = b""
        if extension in SIDECARS:
            file.seek(info.offset_data)
            data = file.read(info.size)
            if len(data) < info.size:
                raise tarfile.ReadError(f"found {len(data)} bytes of {show(info.name)}, expected {info.size}")
        yield Member(key, extension, part, data)


def plain_path(name: str) -> str:
    """Return the name of a member in its shortest form: `tar -C folder .` puts ./ before all of them."""
    return PurePosixPath(name).as_posix()


def parse_sample(place: Place, members: list[Member], licence: str) -> Iterator[ClipRequest | BadInput]:
    """Yield the request of one sample; if members share a name, the first is used and the others are reported."""
    files: dict[str, Member] = {}
    again = [member.part.name for member in members if files.setdefault(member.extension, member) is not member]
    try:
        yield parse_files(place, members[0].key, files, licence)
    except InputError as error:
        yield BadInput(place, error.reason, error.detail)
    if again:
        detail = f"found {show(' and '.join(again))} again, expected each name once in a tar: the first is used"
        # The request already has the place of the sample.
        yield BadInput(Place(f"{place.file}/{again[0]}"), "repeated-name", detail, place.name)


def parse_files(place: Place, key: str, files: dict[str, Member], licence: str) -> ClipRequest:
    """Return the request of a sample of these files, by extension; an InputError where it has no video."""
    try:
        video = files[one_video(files)]
    except ValueError as error:
        raise InputError("no-video", f"{show(key)}: {error}") from error
    if video.extension in STILLS and f".{video.extension}" not in MOVING:
        raise InputError("no-video", f"{show(key)}: found {video.extension}, expected a video: pack takes pictures")
    sidecars = {extension: member.data for extension, member in files.items() if extension in SIDECARS}
    request = parse_video(plain_path(video.part.name), sidecars, licence, followed=True)
    return replace(request, place=place, source=checked_path(place.file), name=key, part=video.part)
