"""Find prompts on the command line, in a file or in a benchmark's list, and check that the text encoder takes them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videodiff.data.loader.wording import fit_captions
from videodiff.data.storage.files import no_file
from videodiff.text.protocol import TextEncoder
from videodiff.words import count_text

LISTS = (".txt", ".json", ".jsonl")
# The keys of a prompt in benchmarks' records: VBench prompt_en, PhyGenBench caption.
NAMES = ("prompt_en", "prompt", "caption", "text")
MOST_BYTES = 64 * 2**20


def find_prompts(given: str | Sequence[Any], dimensions: Sequence[str] = ()) -> list[Any]:
    """Return the prompts of a list or of a named file, or the one given prompt.

    dimensions: keep only the prompts of these dimensions of VBench's full list.
    """
    if not isinstance(given, str):
        check_dimensions(dimensions)
        return list(given)
    path, there = Path(given), os.path.exists(given)
    listed = path.suffix.lower() in LISTS
    if not listed and not there:
        check_dimensions(dimensions)
        return [given] if given.strip() else []
    if not (listed and os.path.isfile(given)):
        found = f"the file {path}" if os.path.isfile(given) else no_file(given)
        raise FileNotFoundError(
            f"prompts: found {found}, expected a file that ends in {', '.join(LISTS)}; this text is a prompt as "
            f"prompts=[{json.dumps(given, ensure_ascii=False)}]"
        )
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"prompts: {path}: found {size >> 20} MiB, expected at most {MOST_BYTES >> 20}")
    try:
        found = parse_prompts(path.read_bytes().decode("utf-8-sig"), path.suffix.lower(), dimensions)
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path}: found bytes that are no UTF-8 at {error.start}, expected text") from error
    # An error of reading an open file names no file.
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"prompts: {path}: {error}") from error
    if not found:
        raise ValueError(f"prompts: {path}: found none, expected prompts, one a line, or a list in JSON")
    return found


def check_dimensions(dimensions: Sequence[str]) -> None:
    """Raise if dimensions are asked for and there is no list to choose from."""
    if dimensions:
        raise ValueError(
            f"dimensions: found {list(dimensions)}, expected none, or VBench's list in JSON as prompts=<file>"
        )


def parse_prompts(text: str, suffix: str, dimensions: Sequence[str] = ()) -> list[str]:
    """Return the prompts in a text: lines, JSON lines, or a JSON list of texts or of records with a prompt."""
    # `str.splitlines` would also end lines at signs that a prompt, or a text in JSON, may hold.
    lines = enumerate(re.split(r"\r\n|[\r\n]", text), 1)
    lines = {number: line.strip() for number, line in lines if line.strip()}
    if suffix == ".txt":
        if dimensions:
            raise ValueError("found lines of text, expected VBench's list in JSON for dimensions=")
        return list(lines.values())
    if suffix == ".jsonl":
        records = {f"line {number}": parse_line(number, line) for number, line in lines.items()}
    elif isinstance(found := json.loads(text), list):
        records = {f"record {number}": record for number, record in enumerate(found)}
    else:
        raise ValueError(f"found a {type(found).__name__}, expected a list")
    known = sorted(set().union(*map(dimensions_of, records.values())))
    if unknown := [one for one in dimensions if one not in known]:
        expected = f"some of {', '.join(known)}" if known else "records with dimensions, as in VBench's list"
        raise ValueError(f"found none of {unknown[0]}, expected {expected}")
    chosen = {place: one for place, one in records.items() if not dimensions or set(dimensions) & dimensions_of(one)}
    return [prompt_of(one, place) for place, one in chosen.items()]


def parse_line(number: int, line: str) -> Any:
    """Return the record of a line of JSON lines."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg} at letter {error.colno}") from error


def dimensions_of(record: Any) -> set[str]:
    """Return the VBench dimensions that a record tests."""
    found = record.get("dimension", []) if isinstance(record, dict) else []
    return {found} if isinstance(found, str) else {one for one in found if isinstance(one, str)}


def prompt_of(record: Any, place: str) -> str:
    """Return the prompt of one record; `place` is where it is in its list."""
    found = record
    if isinstance(record, dict):
        found = next((record[name] for name in NAMES if name in record), None)
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{place}: found no prompt, expected a text, or one of the keys {', '.join(NAMES)}")
    return found.strip()


def check_prompts(name: str, prompts: Sequence[Any], text: TextEncoder) -> list[str]:
    """Return a remark for each truncated prompt; raise if one is not text, or has words that `text` does not know.

    `name` is the configuration key of the prompts.
    """
    remarks = []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"{name}[{number}]: found {prompt!r}, expected text")
        if half := re.search(r"[\ud800-\udfff]", prompt):
            raise ValueError(f"{name}[{number}]: found half a character, {half[0]!r}, expected text: {prompt!r:.120}")
        if text.unit == "words" and (fault := text.fault(prompt)):
            raise ValueError(f"{name}[{number}]: {fault.reason}")
        if left_out := fit_captions([prompt], text)[1]:
            remarks.append(f"{name}[{number}]: {left_out}; what is left is {text.fit(prompt)!r}")
    if text.unit == "tokens":
        for number, tokens in enumerate(text.tokens(prompts)):
            if tokens > text.max_length:
                cut = text.cut(prompts[number])
                remarks.append(
                    f"{name}[{number}]: found {count_text(tokens, 'token')}, expected at most text.max_length = "
                    f"{text.max_length}; the encoder does not see {cut!r}"
                )
    return remarks
