"""The weights that a metric needs: files that the user names by path. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videodiff.extras import extra_of


@dataclass(frozen=True)
class Weights:
    """What a metric needs: a network (`what`), where it comes from (`source`), and packages (`modules`).

    script: a TorchScript file is accepted. folder: a folder written by save_pretrained of transformers is accepted.
    """

    what: str = ""
    source: str = ""
    script: bool = False
    folder: bool = False
    modules: tuple[str, ...] = ()

    def lack(self, settings: Mapping[str, Any]) -> str:
        """Return why a metric with these settings cannot run, empty if it can; no file is opened."""
        # The file decides which library reads it: a script needs only torch.
        path = settings.get("path")
        scripted = self.script and path is not None and Path(path).is_file()
        absent = [name for name in self.modules if not scripted and importlib.util.find_spec(name) is None]
        if self.what and path is None:
            return f"path: found null, expected {self.expected()}"
        if self.what and not scripted and not (self.folder and Path(path, "config.json").is_file()):
            found = "a folder without config.json" if Path(path).is_dir() and self.folder else "none"
            return f"path: found {found} at {path}, expected {self.expected()}"
        if absent:
            return f"found no package {absent[0]}, expected it: pip install 'videodiff[{extra_of(absent[0])}]'"
        return ""

    def fault(self, settings: Mapping[str, Any], attempt: Callable[[], object]) -> str:
        """Return in one line why an attempt to use the network failed, empty if it works.

        The libraries raise errors of any class for a damaged file, even bare `Exception`.
        """
        try:
            attempt()
        except ValueError as error:
            return reason_of(error)
        except Exception as error:
            return f"path: found {settings.get('path')}, which fails ({said(error)}), expected {self.expected()}"
        return ""

    def expected(self) -> str:
        """Return the text that says what the path must name, and where to get it."""
        forms = ["a TorchScript file"] * self.script + ["a folder of transformers with config.json"] * self.folder
        return f"{' or '.join(forms)} of {self.what}, from {self.source}"


NOTHING = Weights()


def reason_of(error: Exception) -> str:
    """Return in one line what an error says; its class is told if it is no ValueError, whose message is a sentence."""
    return (isinstance(error, ValueError) and str(error).partition("\n")[0]) or said(error)


def said(error: Exception) -> str:
    """Return the class of an error of a library, and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
