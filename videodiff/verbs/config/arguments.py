"""The command line of a verb: Hydra's flags, and overrides with values as typed instead of Hydra's grammar."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from videodiff.verbs.config.groups import conf_dir, groups, options
from videodiff.verbs.config.kinds import Kind, choice, either, many
from videodiff.verbs.config.names import SAID, nearest, translated
from videodiff.verbs.config.schema import CLASSES, VERBS
from videodiff.verbs.config.stored import built_by_conf, key_of, original

# Each flag of Hydra: its short form, and its possible values (None: it takes none; empty: any value).
FLAGS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "--help": ("-h", None),
    "--cfg": ("-c", ("job", "hydra", "all")),
    "--resolve": ("", None),
    "--package": ("-p", ()),
    "--multirun": ("-m", None),
    "--run": ("-r", None),
    "--info": ("-i", ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
    "--config-dir": ("-cd", ()),
    "--hydra-help": ("", None),
}
REFUSED = {
    "--config-name": "the verb decides it",
    "--config-path": "add a folder of your own by --config-dir",
    "--experimental-rerun": "it would run code from a file; resume=<run> continues a run",
    "--shell-completion": "it does not know verbs",
    "--version": "videodiff --version",
}
SHORT = {short: name for name, (short, _) in FLAGS.items() if short} | {
    "-cn": "--config-name",
    "-cp": "--config-path",
    "-sc": "--shell-completion",
}
# The verbs whose first argument may be a bare path, and the key it stands for.
POSITIONAL = {
    "index": "tars",
    "cache": "root",
    "report": "run",
    "inspect": "folder",
    "evaluate": "run",
    "sample": "run",
    "convert": "checkpoint",
    "arrange": "source",
}

# Keys that take one text or a list of texts: a value that begins with [ is a list.
LISTS = ("prompts", "given", "tars", "text.vocabulary", "data.urls", "data.validation_urls")


class Arguments(NamedTuple):
    """Flags for Hydra with their values, and overrides."""

    flags: list[str]
    overrides: list[str]

    def has(self, flag: str) -> bool:
        """Return whether a flag is given."""
        return flag in self.flags


def split(arguments: Sequence[str], verb: str = "") -> Arguments:
    """Separate flags and overrides, which may come in any order; an unknown flag is answered by a key of the verb."""
    flags, overrides, left = [], [], list(arguments)
    while left:
        word = left.pop(0)
        if word == "--":
            overrides += left
            break
        if not re.match(r"-{1,2}[A-Za-z]", word):
            overrides.append(word)
            continue
        name, equals, value = word.partition("=")
        name = SHORT.get(name, name)
        if name in REFUSED:
            raise ValueError(f"{word}: this flag of Hydra is not taken: {REFUSED[name]}")
        if name not in FLAGS:
            following = next((word for word in left[:1] if not word.startswith("-")), "...")
            raise ValueError(
                f"found the flag {word!r}, expected key=value or one of {', '.join(FLAGS)}; "
                f"{no_flag(verb, name, value or following)}"
            )
        allowed = FLAGS[name][1]
        flags.append(name)
        if allowed is None:
            if equals:
                raise ValueError(f"{word}: found {value!r} behind {name}, expected nothing")
        elif equals or name != "--info" or (left and left[0] in allowed):
            value = value if equals else left.pop(0) if left else ""
            if (allowed and value not in allowed) or not value:
                raise ValueError(f"{name}: found {value!r}, expected {', '.join(allowed) or 'a value'}")
            flags.append(value)
    return Arguments(flags, overrides)


def no_flag(verb: str, flag: str, value: str) -> str:
    """Return what to say to a flag that there is not: the override of a verb, or the flag of Hydra, that is meant."""
    name = flag.lstrip("-").replace("-", "_")
    keys = bool(verb) and translated(name.lower(), lambda key: key in groups(verb) or bool(kinds_of(verb, key)))
    if not keys and name in SAID:
        return SAID[name]
    near = difflib.get_close_matches(flag, FLAGS, n=1)
    meant = near[0] if near and not keys else " ".join(f"{key}={value}" for key in keys or [name])
    return f"did you mean {meant!r}?"


def positional(verb: str, overrides: Sequence[str]) -> list[str]:
    """Turn a bare path in the first place into the override that it stands for."""
    if verb in POSITIONAL and overrides and is_path(overrides[0]):
        return [f"{POSITIONAL[verb]}={quoted(overrides[0])}", *overrides[1:]]
    return list(overrides)


def is_path(word: str) -> bool:
    """Return whether a word is a path, not an override: it has no =, no key before it, or is the name of a file."""
    key, equals, _ = word.partition("=")
    return not equals or os.path.lexists(word) or not re.fullmatch(r"[+~]*(hydra/)?\w+([.@:]\w+)*", key)


def spell(verb: str, override: str, sweeps: bool) -> str:
    """Return an override in Hydra's grammar; for a key that takes text, the value is the typed text.

    Quoted values are left unchanged. So are `null`, references `${}` and, with --multirun, sweeps, unless a file of
    this name exists.
    """
    head, equals, value = override.partition("=")
    kinds = kinds_of(verb, key_of(override))
    # The file of an option may be called 4090.yaml, and Hydra takes no other value than text for a group.
    if is_group(head.lstrip("+")) and (found := parsed_or_none(override)) and isinstance(found._value, (int, float)):
        return f"{head}={quoted(value)}"
    if not equals or not any(kind.literal for kind in kinds):
        return override
    if not (any(kind.names for kind in kinds) and value and os.path.lexists(value)):
        parsed = parsed_or_none(override)
        if value in ("", "null", "???") or is_quoted(value) or (parsed and is_meant(parsed, value, sweeps)):
            return override
        if parsed is None and ("${" in value or (value.startswith("[") and key_of(override) in LISTS)):
            parse(override, taken_by(verb, key_of(override)))
    return f"{head}={quoted(value)}"


def is_group(name: str) -> bool:
    """Return whether `conf/` has a group of this name, also one that a verb does not choose from."""
    return bool(options(name))


def replacing(verb: str, override: str) -> list[str]:
    """Return an override, preceded by one that clears its key if the typed mapping replaces the one of `conf/`.

    Hydra merges two mappings: `policies={shared: 1}` would keep the policies of the recipe beside the new one.
    """
    head, _, value = override.partition("=")
    sets_mapping = "{" in value and not head.startswith(("+", "~"))
    if sets_mapping and any(kind.whole for kind in kinds_of(verb, key_of(override))):
        return [f"{key_of(override)}=null", override]
    return [override]


def is_meant(override: Override, value: str, sweeps: bool) -> bool:
    """Return whether a value that looks like a reference or a sweep is meant as one."""
    return (
        "${" in value
        or (sweeps and override.is_sweep_override())
        or (isinstance(override._value, list) and override.key_or_group in LISTS)
    )


def kinds_of(verb: str, key: str) -> list[Kind]:
    """Return the kinds of a dotted key, by every class that `conf/` has at its place."""
    known, twins = built_by_conf(conf_dir())
    found, place = [VERBS[verb]], ()
    for name in key.split("."):
        place = (*place, name)
        inner = [kind.keys.get(name, kind.rest) for kind in found if kind.keys is not None]
        targets = [target.strip('"') for target in known.get((*original(place, twins), "_target_"), ())]
        found = [CLASSES[t] for t in targets if t in CLASSES] if targets else [kind for kind in inner if kind]
    return found


def taken_by(verb: str, key: str) -> list[Kind]:
    """Return the kinds of value that a key or a group takes on a command line; none if nothing is known of it."""
    if key in groups(verb):
        return [either(option := choice(*options(key)), many(option))]
    return kinds_of(verb, key)


def quoted(text: str) -> str:
    """Return text quoted for Hydra's grammar, so that no character in it has a meaning."""
    escaped = re.sub(r"(\\*)\$\{", lambda match: rf"{match[1] * 2}\${{", text)
    return QuotedString(escaped, Quote.single).with_quotes()


def in_quotes(value: str) -> str:
    """Return a value with the texts in quotes that Hydra's grammar cannot read, those in lists and mappings too."""
    if parsed_or_none(f"key={value}") is not None:
        return value
    if value[:1] + value[-1:] == "[]":
        return f"[{','.join(in_quotes(part) for part in listed(value[1:-1]))}]"
    if value[:1] + value[-1:] == "{}":
        pairs = [part.partition(":") for part in listed(value[1:-1])]
        return f"{{{','.join(f'{key}{colon}{in_quotes(part.strip())}' for key, colon, part in pairs)}}}"
    return quoted(value)


def listed(text: str) -> list[str]:
    """Return the parts between the commas of a text, apart from commas in quotes or brackets."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if sign == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += sign
        if quote or sign in "'\"":
            quote = sign if not quote else "" if sign == quote else quote
        else:
            depth += (sign in "[{(") - (sign in "]})")
    return [part.strip() for part in parts]


def is_quoted(value: str) -> bool:
    """Return whether a value is one quoted string of Hydra's grammar."""
    if len(value) < 2 or value[0] not in "'\"" or value[-1] != value[0]:
        return False
    parsed = parsed_or_none(f"key={value}")
    return parsed is not None and isinstance(parsed._value, QuotedString)


def closed(value: str) -> str:
    """Return a value with the brackets closed that are left open, and with square ones where round ones hold a list."""
    if value[:1] + value[-1:] == "()":
        return f"[{value[1:-1]}]"
    ends: list[str] = []
    for sign in value:
        if sign in "[{":
            ends.append("]" if sign == "[" else "}")
        elif ends and sign == ends[-1]:
            ends.pop()
    return value + "".join(reversed(ends))


def fitting(key: str, value: str, kinds: Sequence[Kind]) -> str | None:
    """Return the override that was meant where a value is refused: one that these kinds of value accept, if any does.

    Tried are quotes, brackets that are not closed, and a list of one value.
    """
    for way in (value, closed(value), f"[{value}]"):
        meant = f"{key}={in_quotes(way)}"
        parsed = parsed_or_none(meant)
        if parsed is None or parsed.is_sweep_override():
            continue
        if not kinds or any(not list(kind.check(key, parsed.value())) for kind in kinds):
            return meant
    return None


def parse(override: str, kinds: Sequence[Kind] = ()) -> Override:
    """Parse one override; the error says how to write it, if its key takes a value like that: `kinds` of value."""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: found no =, expected key=value{escape_hint(override)}") from error
        if "${" in value:
            raise ValueError(f"override {override!r}: found a broken reference ${{}}{escape_hint(value)}") from error
        where = re.sub(r"[:\s]+", " ", str(error).splitlines()[0]).strip()
        if meant := fitting(key, value, kinds):
            expected = f"text with such signs in quotes, lists in []: {meant}, in a shell {shell(meant)}"
        else:
            expected = ", or ".join({kind.expected: None for kind in kinds}) or "text with such signs in quotes"
        raise ValueError(
            f"override {override!r}: found a value that cannot be read ({where}), expected {expected}"
        ) from error
    if "{" in override:
        tree = OverrideParser(CommonTokenStream(OverrideLexer(InputStream(override)))).override()
        KeysOnce(create_functions()).visit(tree)
    return parsed


class KeysOnce(HydraOverrideVisitor):
    """Hydra's reader of an override, which refuses a mapping with one key twice: Hydra keeps the last value alone."""

    def visitDictContainer(self, ctx: OverrideParser.DictContainerContext) -> dict[Any, Any]:
        pairs = [ctx.getChild(i) for i in range(1, ctx.getChildCount() - 1, 2)]
        keys = [self.visitDictKey(pair.dictKey()) for pair in pairs]
        if twice := [pair.dictKey().getText() for pair, key in zip(pairs, keys, strict=True) if keys.count(key) > 1]:
            override = str(ctx.start.getInputStream())
            raise ValueError(f"override {override!r}: found the key {' and '.join(twice)}, expected each key once")
        return super().visitDictContainer(ctx)


def shell(text: str) -> str:
    """Return a word quoted for a shell."""
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'


def escape_hint(text: str) -> str:
    """Return the advice how to write a literal ${."""
    return r"; if it is plain text, write \${ for ${" if "${" in text else ""


def parsed_or_none(override: str) -> Override | None:
    """Return an override, None if it cannot be parsed."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def text_of(override: str) -> str | None:
    """Return the value of an override as text, None for null."""
    value = parse(override).value()
    return None if value is None else str(value)


def swept(override: Override) -> Iterator[str]:
    """Yield the plain overrides that a sweep stands for; of an endless range only the first thousand."""
    if not override.is_sweep_override():
        yield override.input_line
    elif override.is_discrete_sweep() and override._value is not None:
        head = override.get_key_element()
        for number, value in enumerate(override.sweep_string_iterator()):
            if number == 1000:
                return
            yield f"{head}={value}"


def chosen(value: Any) -> list[Any]:
    """Return the options that the value of a group names: one option or a list."""
    values = value if isinstance(value, list) else [value]
    return [name.text if isinstance(name, QuotedString) else name for name in values]


def option_exists(choice: str, folders: Sequence[str] = ()) -> bool:
    """Return whether group=option names files in conf/ or these folders; raise with the nearest option if not."""
    group, _, value = choice.partition("=")
    known, parsed = options(group, folders), parse(choice)._value
    wrong = [str(name) for name in chosen(parsed) if str(name) not in known]
    if not wrong or value == "null":
        return True
    option = wrong[0]
    near = nearest(option, known)
    raise ValueError(
        f"override {choice!r}: found no {group} {option!r}, expected one of {', '.join(known)}"
        + (f"; did you mean {near!r}?" if near else "")
    )
