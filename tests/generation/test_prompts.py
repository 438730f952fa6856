"""Prompts that an encoder does not take are an error before anything is sampled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from videodiff.generation.prompts import check_prompts, find_prompts
from videodiff.text.words import Words

TEXT = Words(["a", "red", "ball"], 8, 4)


def test_prompts_of_known_words_pass_without_a_remark() -> None:
    assert check_prompts("prompts", ["a red ball", "", "ball"], TEXT) == []


@pytest.mark.parametrize(("prompts", "match"), [(["a ball", 3], r"here\[1\]: found 3, expected text"),
                                                (["a\ud800 ball"], r"here\[0\]: found half a character, '.ud800'"),
                                                (["a green ball"], r"here\[0\]: .*green")])  # fmt: skip
def test_a_prompt_that_is_not_taken_is_named_by_setting_and_number(prompts: list[object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_prompts("here", prompts, TEXT)


def test_a_prompt_that_is_cut_is_told() -> None:
    class Tokens:
        unit, max_length = "tokens", 3

        def tokens(self, prompts: list[str]) -> list[int]:
            return [len(prompt.split()) for prompt in prompts]

        def cut(self, prompt: str) -> str:
            return " ".join(prompt.split()[3:])

    assert check_prompts("prompts", ["a b c", "a b c d"], Tokens()) == [
        "prompts[1]: found 4 tokens, expected at most text.max_length = 3; the encoder does not see 'd'"
    ]
    (remark,) = check_prompts("here", ["a ball", "a red ball"], Words(["a", "red", "ball"], 8, 3, long="cut"))
    assert remark.startswith("here[1]: ")
    assert remark.endswith("; what is left is 'a red'")


LISTS = {
    "lines.txt": "a red ball\n\n  a blue ball \n",
    "list.json": '["a red ball", "a blue ball"]',
    "records.jsonl": '{"prompt": "a red ball"}\n{"text": "a blue ball"}\n',
    "VBench_full_info.json": '[{"prompt_en": "a red ball", "dimension": ["color"], "auxiliary_info": {"color": "red"}},'
    ' {"prompt_en": "a blue ball", "dimension": ["scene", "color"]}]',
    "PhyGenBench.json": '[{"caption": "a red ball", "physical_laws": "x", "sub_category": "Gravity"},'
    ' {"caption": "a blue ball"}]',
}


@pytest.mark.parametrize("name", LISTS)
def test_prompts_are_read_from_files_and_the_lists_of_benchmarks(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LISTS[name])
    assert find_prompts(str(tmp_path / name)) == ["a red ball", "a blue ball"]


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_only_ends_of_lines_part_prompts(sign: str, tmp_path: Path) -> None:
    text, prompt = tmp_path / "a.txt", f"a red{sign}ball"
    text.write_bytes(f"{prompt}\r\na kite\ra moon\n\n".encode())
    assert find_prompts(str(text)) == [prompt, "a kite", "a moon"]
    lines = tmp_path / "a.jsonl"
    # JSON text may hold these two as they are.
    if sign in "\u2028\x85":
        lines.write_text(json.dumps({"prompt": prompt}, ensure_ascii=False))
        assert find_prompts(str(lines)) == [prompt]


def test_of_a_list_of_vbench_dimensions_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(LISTS["VBench_full_info.json"])
    assert find_prompts(str(tmp_path / "a.json"), ["scene"]) == ["a blue ball"]
    # One that is known does not hide another that is not.
    with pytest.raises(ValueError, match=r"a\.json: found none of human_action, expected some of color, scene$"):
        find_prompts(str(tmp_path / "a.json"), ["scene", "human_action"])
    mixed = [{"prompt_en": "a kite", "dimension": "color"}, {"dimension": ["scene"]}]
    (tmp_path / "b.json").write_text(json.dumps(mixed))
    with pytest.raises(ValueError, match=r"b\.json: record 1: found no prompt"):
        find_prompts(str(tmp_path / "b.json"), ["scene"])


def test_a_prompt_of_the_command_line_is_a_prompt() -> None:
    assert find_prompts("a red ball.") == ["a red ball."]
    assert find_prompts(["a.txt", 3]) == ["a.txt", 3]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "a.json: Expecting"),
        ("a.json", '{"a": 1}', "found a dict, expected a list"),
        ("a.json", '[{"name": "x"}]', "record 0: found no prompt"),
        ("a.json", '["a ball", {"dimension": ["scene"], "prompt": 3}]', "record 1: found no prompt"),
        ("a.jsonl", '"a ball"\r\n\r\n{"prompt": 3}', "line 3: found no prompt"),
        ("a.jsonl", '"a ball"\n\n{"prompt"', "line 3: Expecting ':' delimiter at letter 10"),
        ("a.txt", "\n \n", "found none, expected prompts"),
        ("a.json", "[" * 100_000, "a.json"),
    ],
)
def test_a_file_without_prompts_is_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"prompts: .*{message}"):
        find_prompts(str(tmp_path / name))


def test_a_text_that_may_be_a_file_is_told_how_it_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "list.TXT").write_text("a red ball")
    (tmp_path / "list.csv").write_text("a red ball")
    assert find_prompts(str(tmp_path / "list.TXT")) == ["a red ball"]
    # The second one is longer than the name of a file can be.
    for name in ("a ball.txt", f"{'a ball ' * 50}.json"):
        with pytest.raises(FileNotFoundError, match=rf"found no file {name}, .* as prompts=\[\"{name}\"\]"):
            find_prompts(name)
    with pytest.raises(FileNotFoundError, match=r"prompts: found the file .*list\.csv, expected .* ends in \.txt, "):
        find_prompts(str(tmp_path / "list.csv"))
    with pytest.raises(FileNotFoundError, match=f"prompts: found the folder {tmp_path}, expected .* as prompts="):
        find_prompts(str(tmp_path))
    assert find_prompts(" ") == []


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    # Its first page is no memory: reading it is an error of the device, as of a disk that fails.
    (tmp_path / "broken.txt").symlink_to("/proc/self/mem")
    with pytest.raises(ValueError, match=r"prompts: .*broken\.txt: \[Errno 5\] Input/output error"):
        find_prompts(str(tmp_path / "broken.txt"))


def test_a_list_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.txt").open("wb") as file:
        # A file with a hole, which takes no room.
        file.truncate(65 * 2**20)
    with pytest.raises(ValueError, match=r"prompts: .*large\.txt: found 65 MiB, expected at most 64"):
        find_prompts(str(tmp_path / "large.txt"))


def test_bytes_that_are_no_text_and_dimensions_without_a_list_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("a ball\nein Bär".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts: .*latin\.txt: found bytes that are no UTF-8 at 12, expected text"):
        find_prompts(str(tmp_path / "latin.txt"))
    (tmp_path / "lines.txt").write_text("a ball")
    with pytest.raises(ValueError, match=r"lines\.txt: found lines of text, expected VBench's list in JSON"):
        find_prompts(str(tmp_path / "lines.txt"), ["color"])
    for given in (["a ball"], "a ball"):
        with pytest.raises(ValueError, match=r"dimensions: found \['color'\], expected none, or VBench's list"):
            find_prompts(given, ["color"])
