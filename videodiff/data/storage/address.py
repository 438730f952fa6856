"""Addresses: a URL is requested as it is given, but stored and printed without its secrets."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from urllib.parse import quote, urlsplit

# Parameters of a signed URL: signer, expiry and signature. They give access to a file, and do not name one.
SIGNED = re.compile(
    r"(?i)(?:x-(?:amz|goog|oss|cos|obs|tos|ms)-.*|.*signature|sig|hmac|hdnt[sl]|hdnea|__token__|expir(?:y|es?|ation)"
    r"|(?:aws|oss|google)accesskeyid|googleaccessid|key-pair-id|policy|verify)"
)
# Parameters that Azure puts beside `sig`.
AZURE = {"sv", "ss", "srt", "sp", "se", "st", "spr", "sr", "sip", "si", "sdd"}
# Other names of secrets: a word of the parameter's name, or a part of it.
WORDS = {"sig", "key", "cred", "creds", "pass", "pwd", "auth", "policy", "jwt", "sas", "session", "hmac"}
PARTS = re.compile(
    r"(?i)signature|token|secret|passw|credential|apikey|accesskey|secretkey|authkey|sessionid|authorization|bearer"
)
# A URL without a match here has no secrets; this saves the full parse.
MAYBE = re.compile(
    r"(?i)@|[?&#]x-|sig|hmac|hdn|expir|key|polic|verif|cred|pass|pwd|auth|jwt|sas|session|secret|token|bearer"
)
USER = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]*://)[^/\s?#'\"]*@")
PARAMETER = re.compile(r"(?<=[?&;#])([^=&;#?\s'\"/]+)=([^&#\s'\",;]*)")


def is_secret(name: str) -> bool:
    """Return whether a parameter of this name holds a secret."""
    if PARTS.search(name) or SIGNED.fullmatch(name):
        return True
    words = re.split(r"[^A-Za-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))
    return not WORDS.isdisjoint(word.lower() for word in words)


# The clips of one video come one after the other.
@functools.lru_cache(maxsize=256)
def bare_url(url: str) -> str:
    """Return a URL without user, password, signature and tokens, fit to be stored and shared."""
    return taken_apart(url)[0] if MAYBE.search(url) else url


def mark_of(url: str) -> str:
    """Return a digest of the secrets of a URL that may distinguish files, empty if there are none.

    A signature, or a token beside one, does not distinguish files. `?key=a.mp4` may be a secret or a file name.
    """
    _, secrets, signed = taken_apart(url)
    return "" if signed or not secrets else hashlib.sha256(json.dumps(secrets).encode()).hexdigest()[:16]


def taken_apart(url: str) -> tuple[str, list[str], bool]:
    """Return a URL without secrets, the parameters that were taken off, and whether it was signed."""
    head, hash, fragment = url.partition("#")
    path, _, query = head.partition("?")
    parts = query.split("&") if query else []
    names = {part.partition("=")[0].lower() for part in parts}
    azure = AZURE if "sig" in names else set()
    signed = any(SIGNED.fullmatch(name) for name in names)
    secrets = [part for part in parts if is_secret(name := part.partition("=")[0]) or name.lower() in azure]
    kept = "&".join(part for part in parts if part not in secrets)
    fragment = "" if any(is_secret(part.partition("=")[0]) for part in fragment.split("&")) else hash + fragment
    path = USER.sub(r"\1", path)
    return path + f"?{kept}" * bool(kept) + fragment, secrets, signed


def without_secrets(text: str) -> str:
    """Return a text whose URLs hold neither users nor passwords nor signatures nor tokens."""
    if "://" not in text and "?" not in text and "&" not in text:
        return text
    return PARAMETER.sub(lambda part: f"{part[1]}=..." if is_secret(part[1]) else part[0], USER.sub(r"\1", text))


def printable(text: str) -> str:
    """Return a text that is safe for a terminal: control characters, direction marks and invalid ones are escaped."""
    if text.isprintable():
        return text
    escape = lambda letter: letter if letter.isprintable() else ascii(letter)[1:-1]  # noqa: E731
    return "".join(map(escape, text))


def join_url(root: str, name: str) -> str:
    """Return the URL of a file below a root: the root as it is given, the name quoted, its query behind both.

    In an object store a name is a key, which is not quoted.
    """
    if urlsplit(root).scheme not in ("http", "https"):
        return f"{root.rstrip('/')}/{name}"
    head, mark, query = root.partition("#")[0].partition("?")
    return f"{head.rstrip('/')}/{quote(name, safe='/-._~', errors='surrogateescape')}{mark}{query}"
