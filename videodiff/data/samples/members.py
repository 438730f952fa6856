"""Members of tars that others wrote: their keys and extensions, and which members no sample can use."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Collection
from typing import Any, NamedTuple

from videodiff.data.samples.sidecars import ROW_LIMIT, SIDECARS, TEXT_LIMIT
from videodiff.data.storage.listing import PICTURES, VIDEOS

# Bytes of an extension of a header, and extensions of one header: a pax record, a long name and a long link are three.
HEADER_LIMIT, CHAIN_LIMIT = 2**20, 16
EXTENSIONS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
EXTENSIONS += (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
VIDEO_LIMIT = 2**31
# Bytes of any file in a tar.
MEMBER_LIMIT = 2**36
MOVIES = tuple(ending[1:] for ending in VIDEOS)
STILLS = tuple(ending[1:] for ending in PICTURES)
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip"}
BAD_PATH = "bad path"
APART = (
    "found its members apart from each other in the tar, expected them side by side: sort the tar by name, as "
    "`tar --sort=name -cf` does"
)


class BoundedHeader(tarfile.TarInfo):
    """A tar header that refuses what would fill the memory or never end.

    tarfile reads an extension (a long name, a pax record) whole into memory, and calls itself for what follows it.
    After a file of a size below 0 it reads the same header again. In a stream it reads up to the end of a file as large
    as the header says, also beyond the end of the tar.
    """

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extends = self.type in EXTENSIONS
        tar.chain = getattr(tar, "chain", 0) + 1 if extends else 0
        if extends and self.size > HEADER_LIMIT:
            raise tarfile.ReadError(f"found a header of {self.size} bytes, expected at most {HEADER_LIMIT}")
        if tar.chain > CHAIN_LIMIT:
            raise tarfile.ReadError(f"found over {CHAIN_LIMIT} headers for one member, expected fewer")
        return super()._proc_member(tar)

    def _block(self, count: int) -> int:
        if not 0 <= count <= MEMBER_LIMIT:
            raise tarfile.ReadError(f"found a file of {count} bytes, expected 0 to {MEMBER_LIMIT}")
        return super()._block(count)


class Watched:
    """A file that is read from start to end; it keeps the first bytes and the end of the last byte that is not 0."""

    def __init__(self, file: Any) -> None:
        self.file, self.size, self.filled, self.head = file, 0, 0, b""

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.head = self.head or data[:8]
        if content := len(data.rstrip(b"\0")):
            self.filled = self.size + content
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read to the end of the file."""
        while self.read(2**20):
            pass


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension: the name splits at the first dot of its last part, as in webdataset."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def is_hidden(member: tarfile.TarInfo) -> bool:
    """Return whether a member may lie between the files of a sample: a folder, or a hidden file as macOS writes."""
    return member.isdir() or member.name.rpartition("/")[2].startswith(".")


def is_noise(member: tarfile.TarInfo) -> bool:
    """Return whether a member is only counted, not reported: a folder, or a metadata file of macOS."""
    return member.isdir() or bool(re.fullmatch(r"\._.*|\.DS_Store", member.name.rpartition("/")[2], re.DOTALL))


class MemberFault(NamedTuple):
    """Why a member of a tar cannot be used: the kind under which it is counted, and what was found in this one."""

    kind: str
    reason: str


def fault_of(member: tarfile.TarInfo) -> MemberFault | None:
    """Return why a member cannot be used, None if it can."""
    key, extension = split_name(member.name)
    limit = TEXT_LIMIT if extension in SIDECARS else VIDEO_LIMIT
    if (
        member.name.startswith("/")
        or ".." in member.name.split("/")
        or re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]", member.name)
    ):
        found = "found a path that leads out of its folder, is not UTF-8 or has control characters"
        return MemberFault(BAD_PATH, found)
    if (length := len(member.name.encode())) > ROW_LIMIT:
        return MemberFault(BAD_PATH, f"found a name of {length} bytes, expected at most {ROW_LIMIT}")
    if not member.isreg() or member.issparse():
        return MemberFault("not a plain file", "found a link, folder or special file, expected a plain one")
    if not extension or not key.rpartition("/")[2]:
        return MemberFault("no key and extension", "found no key and extension, expected <key>.<extension>")
    if member.size > limit:
        return MemberFault("too large", f"found {member.size} bytes, expected at most {limit}")
    return None


def video_of(extensions: Collection[str]) -> str | None:
    """Return the extension of a sample's video, or else of its picture; None if it has neither."""
    return next((name for name in (*MOVIES, *STILLS) if name in extensions), None)


def one_video(extensions: Collection[str]) -> str:
    """Return the extension of a sample's only video, or else of its only picture; ValueError if there is none.

    Pictures beside a video are previews.
    """
    for kind in (MOVIES, STILLS):
        found = [name for name in extensions if name in kind]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"found {' and '.join(found)}, expected one video in a sample")
    dots = any(name.rpartition(".")[2] in (*MOVIES, *STILLS) for name in extensions)
    more = "; the extension begins at the first dot of a name" * dots
    raise ValueError(f"found {', '.join(extensions)}, expected one of {', '.join(MOVIES[:5])}, ...{more}")


def compression_of(head: bytes) -> str | None:
    """Return the compression that the first bytes of a file show, None if there is none."""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
