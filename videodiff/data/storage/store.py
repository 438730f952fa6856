"""A folder in an object store (s3, gs, az, abfs, by fsspec): put, get, list and remove files, with retries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from videodiff.data.storage.address import without_secrets
from videodiff.data.storage.remote import CONNECT, CREDENTIALS, READ, Broken, Url, retrying
from videodiff.data.storage.web import innermost

T = TypeVar("T")
WRITABLE = ("s3", "gs", "az", "abfs")
ATTEMPTS, WAIT = 4, 1.0  # as in `remote`; WAIT: mean seconds before the second attempt


class StoreError(OSError):
    """Raised when a store does not do what it is asked for; `lasting` where another attempt would end alike."""

    def __init__(self, line: str, lasting: bool) -> None:
        super().__init__(line)
        self.lasting = lasting


class Store:
    """Files below a URL, by names with slashes. What is printed holds no credentials: these are in the environment."""

    def __init__(self, url: str) -> None:
        self.url, self.scheme = Url(url.rstrip("/")), urlsplit(url).scheme
        if self.scheme not in WRITABLE:
            raise ValueError(f"{self.url}: found {self.scheme}://, expected one of {', '.join(WRITABLE)}, to write to")
        # Listings that are kept would hide what others write; an attempt is not to be repeated within an attempt.
        settings: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if self.scheme == "s3":
            retries = {"total_max_attempts": 1}
            settings["config_kwargs"] = {"connect_timeout": CONNECT, "read_timeout": READ, "retries": retries}
        try:
            self.files = fsspec.filesystem(self.scheme, **settings)
        except ImportError as error:
            raise StoreError(f"{self.url}: {' '.join(str(error).split())}", lasting=True) from error

    def put(self, path: Path, name: str) -> None:
        """Write a file to the store; it is there whole, or not at all."""
        self.attempt(name, lambda place: self.files.put_file(str(path), place))
        self.attempt(name, lambda place: self.check_size(place, path.stat().st_size))

    def get(self, name: str, path: Path) -> None:
        """Bring a file here."""
        self.attempt(name, lambda place: self.files.get_file(place, str(path)))

    def write(self, name: str, data: bytes) -> None:
        """Write bytes to the store."""
        self.attempt(name, lambda place: self.files.pipe_file(place, data))

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return self.attempt(name, self.files.cat_file)

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all files, or of those in a folder and below it."""
        root = self.files._strip_protocol(self.url.text)
        found = self.attempt(folder, self.files.find)
        return sorted(name.removeprefix(root).lstrip("/") for name in found)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self.attempt(name, self.files.rm_file)

    def check_size(self, place: str, expected: int) -> None:
        """Raise where a file in the store has another size than the one that was put there."""
        if (found := self.files.info(place)["size"]) != expected:
            raise Broken(f"found {found} bytes, expected {expected}")

    def attempt(self, name: str, act: Callable[[str], T]) -> T:
        """Do something to a file of the store, again where it fails in a way that may pass."""
        place = f"{self.url.text}/{name}".rstrip("/")
        try:
            return retrying(ATTEMPTS, WAIT)(self.once, place, act)
        except Broken as error:
            shown = f"{self.url}/{name}".rstrip("/")
            raise StoreError(f"{shown}: found no answer in {ATTEMPTS} attempts: {error}", lasting=False) from error

    def once(self, place: str, act: Callable[[str], T]) -> T:
        """Do it once; Broken if another attempt may help, StoreError if not."""
        shown = without_secrets(place)
        try:
            return act(place)
        except FileNotFoundError as error:
            # Of the local file that is to be put.
            if error.filename is not None and "://" not in str(error.filename) and Path(error.filename).is_absolute():
                raise
            raise StoreError(f"{shown}: found no such file or bucket, expected one", lasting=True) from error
        except PermissionError as error:
            wanted = f"access to it: set {CREDENTIALS[self.scheme]}"
            raise StoreError(f"{shown}: found no permission, expected {wanted}", lasting=True) from error
        # Each store and each of its libraries fails in its own way: botocore, aiohttp, asyncio, ssl.
        except Exception as error:
            if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
                raise StoreError(
                    f"{shown}: found no credentials, expected some: set {CREDENTIALS[self.scheme]}", lasting=True
                ) from error
            raise Broken(without_secrets(innermost(error))) from error
