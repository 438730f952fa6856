"""What is typed behind a key of text is that text, and flags of Hydra stand where they like."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from videodiff import printing
from videodiff.cli import understand
from videodiff.printing import in_line, printable
from videodiff.training.run import logging
from videodiff.verbs.config.arguments import parse, positional, quoted, replacing, spell, split
from videodiff.verbs.config.checking import composed
from videodiff.verbs.config.expand import expand
from videodiff.verbs.config.groups import conf_dir

POLICIES = "objective.levels.policies"
# As people name folders and files; none of these exists here.
NAMES = [
    *(
        "日本語",
        "My Clips (2024)",
        "date=2024-01-01",
        "a,b",
        "[raw]",
        "2024",
        "1e5",
        "true",
        "~x",
        "a b:",
        "x:",
        "{a: b}",
    ),
    *(
        "it's",
        'say "hi"',
        "back\\slash",
        "end\\",
        "a\\'b",
        "'",
        "''a",
        "$",
        "a;b",
        "*",
        "-x",
        "#x",
        "@x",
        " a ",
        "a\nb",
    ),
    *(
        "range(1,3)",
        "int(3)",
        "choices(a,b)",
        "0x10",
        "1_000",
        "nan",
        ".5",
        "NULL",
        "caf\u0065\u0301",
        "\udcff",
        "a,",
        "a]",
    ),
]


def value(override: str) -> Any:
    """Return the value that a configuration has by an override."""
    plain = OverridesParser.create().parse_override(override).value()
    return OmegaConf.to_container(OmegaConf.create({"x": plain}), resolve=True)["x"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_as_it_is_typed(name: str) -> None:
    for verb, key in (("pack", "source"), ("index", "tars"), ("train", "data.root"), ("sample", "mask")):
        if (key, name[:1]) != ("tars", "["):
            assert value(spell(verb, f"{key}={name}", sweeps=False)) == name
            assert value(spell(verb, f"+{key}={name}", sweeps=False)) == name
    for verb in ("sample", "inspect", "cache"):
        assert value(positional(verb, [name])[0]) == name or name == "date=2024-01-01"


@pytest.mark.parametrize(
    "name", ["null", "${HOME}", "a${b}c", r"\${x}", r"\\${x}", "'q'", "${a", "[raw]", "a,b", "x\\${"]
)
def test_a_file_of_this_very_name_always_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    assert value(spell("index", f"tars={name}", sweeps=True)) == name
    assert value(positional("index", [name])[0]) == name


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("\\'\"${}:,[]() "), max_size=12))
@settings(max_examples=300, deadline=None)
def test_quoting_is_undone_by_hydra(text: str) -> None:
    if text != "???":
        assert value(f"x={quoted(text)}") == text


def test_what_means_more_than_text_stays() -> None:
    same = [
        *(
            ("index", "tars=[a,b]"),
            ("train", "resume=null"),
            ("train", "name=lr_${optimizer.lr}"),
            ("pack", "source='a b'"),
        ),
        *(
            ("train", "optimizer.lr=1e-3"),
            ("train", "data.more=[{root: a}]"),
            ("sample", 'prompts=["a b", c]'),
            ("pack", "out="),
        ),
    ]
    for verb, override in same:
        assert spell(verb, override, sweeps=False) == override
    assert spell("train", "name=a,b", sweeps=True) == "name=a,b"
    assert value(spell("train", "name=a,b", sweeps=False)) == "a,b"


def test_a_text_for_a_list_of_prompts_is_one_prompt() -> None:
    assert value(spell("sample", "prompts=a red ball (small), left: slowly", sweeps=False)) == (
        "a red ball (small), left: slowly"
    )


@pytest.mark.parametrize(
    ("verb", "override", "said"),
    [
        ("sample", "prompts=[a (b]", "in quotes, lists in []: prompts=['a (b'], in a shell"),
        ("sample", "prompts=a ${b", r"write \${ for ${"),
        ("train", "trainer.max_steps=[3", "in quotes"),
        ("train", "trainer.max_steps", "found no =, expected key=value"),
    ],
)
def test_what_cannot_be_read_is_answered_with_how_to_write_it(verb: str, override: str, said: str) -> None:
    with pytest.raises(ValueError, match="override") as error:
        parse(spell(verb, override, sweeps=False))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("freeze=[denoiser.blocks.[0-3].*]", ["denoiser.blocks.[0-3].*"]),
        ("freeze=[text.*, denoiser.blocks.[0,3].*]", ["text.*", "denoiser.blocks.[0,3].*"]),
        ("freeze=[text.*,'denoiser.[ab]',$HOME [x]]", ["text.*", "denoiser.[ab]", "$HOME [x]"]),
        ("name=a(b", "a(b"),
        ("a={b: c[d], e: [1, f g(]}", {"b": "c[d]", "e": [1, "f g("]}),
    ],
)
def test_what_a_refusal_suggests_is_what_was_meant(override: str, value: object) -> None:
    with pytest.raises(ValueError, match="cannot be read") as error:
        parse(override)
    plain, shell = str(error.value).partition("lists in []: ")[2].split(", in a shell ")
    pasted = subprocess.run(["bash", "-c", f"printf %s {shell}"], capture_output=True, text=True, check=True).stdout
    assert pasted == plain
    assert parse(pasted).value() == value


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("freeze=denoiser.[0-3].*", "freeze=['denoiser.[0-3].*']"),
        ("freeze=(text.*)", "freeze=[text.*]"),
        ("freeze=[text.*", "freeze=[text.*]"),
        ("freeze=text.*", "freeze=[text.*]"),
        ("freeze=text.*,denoiser.*", "freeze=[text.*,denoiser.*]"),
        ("optimizer.betas=0.9,0.95", "optimizer.betas=[0.9,0.95]"),
        ("model.patch=(1,4,4)", "model.patch=[1,4,4]"),
        ("callbacks.samples.prompts=a ball [x", "callbacks.samples.prompts=['a ball [x']"),
        ("logger=[csv", "logger=[csv]"),
        ("targets={count: 1", "targets={count: 1}"),
        ("targets.count=1", "+targets.count=1"),
    ],
)
def test_what_a_refusal_suggests_is_accepted(override: str, meant: str) -> None:
    with pytest.raises(ValueError, match="override") as error:
        understand("train", ["data.root=.", override])
    assert meant in str(error.value)
    understand("train", ["data.root=.", meant])


def test_nothing_is_suggested_that_the_key_does_not_take() -> None:
    for override, expected in (
        ("trainer.max_steps=[3", "expected a whole number of at least 1"),
        ("objective.levels.policies={shared=1}", "expected {key: a number of at least 0}, or null"),
        ("optimizer.lr=1,2", "expected one, or --multirun for a sweep"),
    ):
        with pytest.raises(ValueError, match="override") as error:
            understand("train", ["data.root=.", override])
        assert str(error.value).endswith(expected)


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("captions={1: a, 1.0: b}", "1 and 1.0"),
        ("captions={10: a, 2: b, 1_0: c}", "10 and 1_0"),
        ("+a=[{b: 1, c: 2, b: 3}]", "b and b"),
        ("a={b: {c: 1, c: 1}}", "c and c"),
    ],
)
def test_a_key_that_stands_twice_in_a_mapping_is_refused(override: str, keys: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"override {override!r}: found the key {keys}, expected each key")):
        parse(override)


def test_a_key_may_stand_in_two_mappings_and_in_text() -> None:
    assert parse("a={b: {c: 1}, c: {c: '{d: 1, d: 2}'}}").value()["b"] == {"c": 1}
    assert [one.get("b") for one in parse("a=[{b: 1}, {b: 2}]").value()] == [1, 2]


def test_a_dataset_may_be_named_as_data() -> None:
    assert [value(o) for o in expand("inspect", ["data=My Clips (2)"])] == ["My Clips (2)"]
    assert expand("inspect", ["data=folder"]) == ["data=folder"]
    assert [value(o) for o in expand("cache", ["data=a,b"])] == ["a,b"]


def test_flags_and_overrides_are_taken_apart() -> None:
    found = split(["a=1", "--cfg", "job", "b=2", "-m", "--info", "c=3", "-p=optimizer", "--", "-d=4"])
    assert found.flags == ["--cfg", "job", "--multirun", "--info", "--package", "optimizer"]
    assert found.overrides == ["a=1", "b=2", "c=3", "-d=4"]
    assert split(["--info", "defaults"]).flags == ["--info", "defaults"]


def test_a_terminal_is_not_steered() -> None:
    hostile = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202eb\r\x00\udcff"
    assert printable(hostile) == r"a\x1b[2J\x1b]0;owned\x07\x9b31m\u202eb\r\x00\udcff"
    assert in_line("one\ntwo\x1b[0m") == r"one two\x1b[0m"
    assert printable("日本語 a\tb\nc é") == "日本語 a\tb\nc é"


@pytest.mark.parametrize("say", [printing.say, logging.say], ids=["verbs", "training"])
def test_a_text_from_outside_does_not_go_on_with_a_line_of_ours(
    say: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    say("a prompt: a red\nball\x1b[2J\r\u2028moves")
    assert "".join(capfd.readouterr()) == "a prompt: a red\\nball\\x1b[2J\\r\\u2028moves\n"


@pytest.mark.parametrize(
    ("verb", "typed", "key", "found"),
    [
        ("train", [f"{POLICIES}={{prefix_3: 1}}"], POLICIES, {"prefix_3": 1}),
        ("train", [f"{POLICIES}.shared=0.3"], f"{POLICIES}.shared", 0.3),
        ("simulate", ["world=bouncing", "out=x", "world.balls={2: 1}"], "world.balls", {2: 1}),
        # Other mappings keep the keys that are not typed.
        ("train", ["data={frames: 4}"], "data.frames", 4),
    ],
)
def test_typed_shares_replace_those_of_the_recipe(verb: str, typed: list[str], key: str, found: object) -> None:
    recipe = ["experiment=bouncing_cpu", "data.root=."] * (verb == "train")
    lines = [line for override in [*recipe, *typed] for line in replacing(verb, override)]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        cfg = composed(verb, lines)
    assert OmegaConf.select(cfg, key) == found
    assert verb != "train" or cfg.data.height == 20
