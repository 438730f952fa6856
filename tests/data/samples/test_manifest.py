import io
import json
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.material.made_clips import write_dataset
from videodiff.data.samples import manifest as manifest_module
from videodiff.data.samples.manifest import FIELDS, LATER, VERSION, Manifest, ManifestError


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "set")


def rewrite(root: Path, column: str, values: list, shards=None) -> None:
    """Put other values into a column of the manifest."""
    table = pq.read_table(root / "manifest.parquet")
    place = table.column_names.index(column)
    changed = table.set_column(place, column, [values])
    head = json.loads(table.schema.metadata[b"videodiff"])
    head["shards"] = head["shards"] if shards is None else shards(head["shards"])
    pq.write_table(changed.replace_schema_metadata({"videodiff": json.dumps(head)}), root / "manifest.parquet")


def values(root: Path, column: str) -> list:
    return pq.read_table(root / "manifest.parquet").column(column).to_pylist()


def test_a_manifest_has_one_typed_row_a_sample(root):
    manifest = Manifest.load(root)
    assert len(manifest) == 6
    assert {field.name: field.type for field in pq.read_schema(root / "manifest.parquet")} == FIELDS | LATER
    row = manifest.row(4)
    assert (row["key"], row["width"], row["height"], row["frames"], row["fps"]) == ("clip4", 32, 32, 8, 5.0)
    assert (row["duration"], row["captions"], row["source"], row["licence"]) == (1.6, 1, "made", "CC0-1.0")
    assert np.array_equal(manifest.column("frames"), [8] * 6)


def test_the_list_of_shards_states_their_size_and_content(root):
    import hashlib

    head = json.loads(pq.read_schema(root / "manifest.parquet").metadata[b"videodiff"])
    assert head["version"] == VERSION
    assert len(head["shards"]) > 1
    assert sum(shard["samples"] for shard in head["shards"]) == 6
    for shard in head["shards"]:
        data = (root / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])


def test_the_fingerprint_follows_the_content_and_not_the_place(root, tmp_path):
    same, other = write_dataset(tmp_path / "same"), write_dataset(tmp_path / "other", first=1)
    assert Manifest.load(same).fingerprint == Manifest.load(root).fingerprint
    assert Manifest.load(other).fingerprint != Manifest.load(root).fingerprint


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: found no such folder"):
        Manifest.load(tmp_path / "nowhere")


def test_a_folder_without_manifest_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no manifest\.parquet, .* by `videodiff pack` or `prep`$"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (["a.tar"], "`videodiff index` makes one for its tars"),
        ([".work/plan.sqlite", "shard-00000.tar"], "`videodiff prep` has not ended there: the same command goes on"),
        ([".work/plan.sqlite", "summary.json"], "by its summary.json `videodiff prep` kept no clip: other limits"),
    ],
)
def test_a_folder_without_manifest_is_answered_by_what_made_it(tmp_path, held, told):
    for name in held:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError) as found:
        Manifest.load(tmp_path)
    assert str(found.value).partition("`prep`; ")[2].startswith(told)


def test_a_manifest_without_samples_is_an_error(root):
    path = root / "manifest.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ManifestError, match="found no samples"):
        Manifest.load(root)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really PAR1"])
def test_a_broken_manifest_is_an_error(root, content):
    (root / "manifest.parquet").write_bytes(content)
    with pytest.raises(ManifestError, match="cannot be read as a manifest"):
        Manifest.load(root)


def test_a_parquet_of_someone_else_is_an_error(root):
    path = root / "manifest.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    with pytest.raises(ManifestError, match="cannot be read as a manifest"):
        Manifest.load(root)


def test_a_missing_shard_is_an_error(root):
    (root / "shard-00001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.tar: found no such file"):
        Manifest.load(root)


def test_a_shard_of_another_size_is_an_error(root):
    with (root / "shard-00000.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ManifestError, match=r"shard-00000\.tar: found \d+ bytes, expected \d+"):
        Manifest.load(root)


@pytest.mark.parametrize("offset", [-512, 10**9])
def test_a_sample_outside_its_shard_is_an_error(root, offset):
    rewrite(root, "offset", [*values(root, "offset")[:-1], offset])
    with pytest.raises(ManifestError, match=r"clip5: found .* expected .* inside the shard"):
        Manifest.load(root)


def test_a_row_of_a_shard_that_is_not_listed_is_an_error(root):
    rewrite(root, "shard", ["shard-00007.tar", *values(root, "shard")[1:]])
    with pytest.raises(ManifestError, match=r"found rows of 'shard-00007\.tar'"):
        Manifest.load(root)


@pytest.mark.parametrize("name", ["../shard-00000.tar", "/etc/passwd", "a/b.tar", "shard-00000.txt"])
def test_a_shard_name_that_leads_elsewhere_is_an_error(root, name):
    rewrite(root, "key", values(root, "key"), lambda shards: [{**shards[0], "name": name}])
    with pytest.raises(ManifestError, match="expected the plain name of a tar"):
        Manifest.load(root)


def test_a_column_of_another_type_is_an_error(root):
    rewrite(root, "frames", ["8"] * 6)
    with pytest.raises(ManifestError, match="column frames: found string, expected int32"):
        Manifest.load(root)


def test_a_gap_in_a_column_is_an_error(root):
    path = root / "manifest.parquet"
    table = pq.read_table(path)
    sizes = [None, *values(root, "fps")[1:]]
    pq.write_table(table.set_column(table.column_names.index("fps"), "fps", [sizes]), path)
    with pytest.raises(ManifestError, match=r"column fps: .* without any"):
        Manifest.load(root)


@pytest.mark.parametrize("group", [1, 4, 5, 100])
def test_rows_are_read_by_shard_however_the_row_groups_lie(root, group):
    whole = Manifest.load(root)
    rows = [whole.row(index) for index in range(6)]
    path = root / "manifest.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=group)
    manifest = Manifest.load(root)
    assert [manifest.row(index) for index in (5, 0, 3, 1, 4, 2, -1)] == [rows[i] for i in (5, 0, 3, 1, 4, 2, 5)]
    shards = [shard["name"] for shard in manifest.shards]
    assert [set(part[0]) for part in manifest.by_shard("shard")] == [{name} for name in shards]
    assert [len(frames) for _, frames in manifest.by_shard("key", "frames")] == manifest.counts.tolist()
    assert manifest.block(1).to_pylist() == [row for row in rows if row["shard"] == shards[1]]
    with pytest.raises(IndexError, match="found row 6, expected one of 6"):
        manifest.row(6)


def test_row_groups_are_whole_shards_and_few_rows_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "ROWS_A_GROUP", 3)
    monkeypatch.setattr(manifest_module, "ROWS_KEPT", 4)
    root = write_dataset(tmp_path, count=9)
    manifest, file = Manifest.load(root), pq.ParquetFile(root / "manifest.parquet")
    assert file.num_row_groups > 1
    assert set(manifest.groups) <= set(manifest.starts)
    for index in range(9):
        assert manifest.row(index)["key"] == f"clip{index}"
        assert sum(map(len, manifest.kept.values())) <= 4


def test_the_fingerprint_of_an_older_manifest_is_computed_from_its_rows(root):
    expected = Manifest.load(root).fingerprint
    path = root / "manifest.parquet"
    table = pq.read_table(path)
    head = json.loads(table.schema.metadata[b"videodiff"])
    assert head.pop("fingerprint") == expected
    pq.write_table(table.replace_schema_metadata({"videodiff": json.dumps(head)}), path)
    assert Manifest.load(root).fingerprint == expected


def test_rows_and_the_list_of_shards_must_agree_in_number(root):
    path = root / "manifest.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    with pytest.raises(ManifestError, match="found 5 rows, expected 6, the samples of its shards"):
        Manifest.load(root)


@pytest.mark.parametrize(("size", "message"), [(100_000, "texts of up to 100000 bytes"), (5000, "4096 on average")])
def test_texts_that_would_fill_the_memory_are_refused_before_they_are_unpacked(root, monkeypatch, size, message):
    monkeypatch.setattr(manifest_module, "FREE_BYTES", 0)
    rewrite(root, "source", ["x" * 4000] * 6)
    Manifest.load(root)
    rewrite(root, "source", ["x" * size] * 6)
    with pytest.raises(ManifestError, match=f"column source: found .*{message}"):
        Manifest.load(root)


def test_rows_without_content_are_no_manifest(root, monkeypatch):
    monkeypatch.setattr(manifest_module, "ROWS_KEPT", 1)
    monkeypatch.setattr(manifest_module, "LEAST_BYTES", 10_000)
    with pytest.raises(ManifestError, match=r"found 6 rows in \d+ bytes, expected at least 10000 each"):
        Manifest.load(root)


def test_no_thread_of_arrow_runs_python_to_read_a_manifest_on_disk(tmp_path, monkeypatch):
    """A thread that does so while the process ends aborts it: "terminate called without an active exception"."""
    root, threads = write_dataset(tmp_path), set()

    class Watched(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            threads.add(threading.current_thread())
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda path, mode="r": Watched(path, "r"))
    assert len(Manifest.load(root).column("frames")) > 0
    assert threads <= {threading.main_thread()}
