import io
import itertools
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from tests.data.storage.test_remote import s3  # noqa: F401
from tests.material.made_clips import write_dataset
from tests.material.plain_tars import add, by_library, by_tarfile, clip, write_tars
from tests.material.servers.loopback import site
from videodiff.data.loader.workers import forkserver
from videodiff.data.samples.members import Watched
from videodiff.data.tars import source as module
from videodiff.data.tars.source import End, Fault, Raw, Source, find_tars, read_tars


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_tars(tmp_path_factory.mktemp("tars"), (4, 3, 5))


def raws(items, of=None):
    return [item for item in items if isinstance(item, Raw) and of in (None, item.epoch)]


def faults(items):
    return [item for item in items if isinstance(item, Fault)]


def everything(tars):
    return list(read_tars(tars, range(len(tars))))


def test_tars_of_tarfile_and_of_webdataset_give_their_samples_in_order(tars):
    items = everything(tars)
    assert [item.key for item in raws(items)] == [f"clip{number}" for number in range(12)]
    assert [(item.tar, item.index) for item in raws(items)][3:5] == [(0, 3), (1, 0)]
    assert [item for item in items if isinstance(item, End)] == [End(0, 0, 4), End(0, 1, 3), End(0, 2, 5)]
    assert raws(items)[7].members == clip(7)
    assert not faults(items)


def test_a_folder_braces_a_pattern_and_a_list_mean_the_same_tars(tars):
    folder = os.path.dirname(tars[0])
    for urls in (folder, f"{folder}/s-{{0..2}}.tar", f"{folder}/*.tar", tars, [tars[0], f"{folder}/s-{{1,2}}.tar"]):
        assert find_tars(urls) == tars


def test_a_tar_whose_name_looks_like_a_url_or_a_pattern_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.tar", "{1}.tar", "-.tar", "x[1].tar"):
        by_tarfile(tmp_path / name, {"clip0": clip(0)})
        assert [item.key for item in raws(everything(find_tars(name)))] == ["clip0"]


@pytest.mark.parametrize("how", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_read(tmp_path, how):
    path = by_tarfile(tmp_path / f"a.tar.{how}", {"clip0": clip(0), "clip1": clip(1)}, f"w:{how}")
    items = everything(find_tars(str(path)))
    assert [item.key for item in raws(items)] == ["clip0", "clip1"]
    assert not faults(items)


def test_tars_of_a_web_server_are_read_and_one_that_is_missing_is_named(tmp_path):
    with site(tmp_path) as here:
        write_tars(here.files, (2, 2))
        tars = find_tars([f"{here.url}/s-{{0..2}}.tar", f"{here.url}/direct/s-1.tar?token=abc"])
        items = everything(tars)
    assert [item.key for item in raws(items)] == ["clip0", "clip1", "clip2", "clip3", "clip2", "clip3"]
    (fault,) = faults(items)
    assert fault.tar == f"{here.url}/s-2.tar"
    assert "cannot be opened" in fault.reason
    assert "found no such file" in fault.reason
    assert module.shown(tars[-1]) == f"{here.url}/direct/s-1.tar"


def test_tars_in_s3_are_read(s3, tmp_path):  # noqa: F811
    (tar,) = write_tars(tmp_path, (3,))
    s3.create_bucket(Bucket="clips")
    with open(tar, "rb") as file:
        s3.put_object(Bucket="clips", Key="a/s-0.tar", Body=file.read())
    items = everything(find_tars("s3://clips/a/s-0.tar"))
    assert [item.key for item in raws(items)] == ["clip0", "clip1", "clip2"]


def test_a_command_runs_only_where_it_may(tars, tmp_path):
    folder = os.path.dirname(tars[0])
    urls = f"pipe:cat {folder}/s-{{0..1}}.tar"
    with pytest.raises(ValueError, match=r"found 'pipe:cat .*expected data.pipes=true on this command line"):
        find_tars(urls)
    found = find_tars(urls, pipes=True)
    assert found == [f"pipe:cat {folder}/s-{number}.tar" for number in range(2)]
    assert [item.key for item in raws(everything(found))] == [f"clip{number}" for number in range(7)]


@pytest.mark.parametrize("command", ["cat {tar}; exit 3", "head -c 5000 {tar}; kill -9 $$", "exit 1"])
def test_a_command_that_fails_is_named_and_the_next_tar_is_read(tars, command):
    items = everything([f"pipe:{command.format(tar=tars[0])}", tars[1]])
    assert [item.key for item in raws(items)][-3:] == ["clip4", "clip5", "clip6"]
    (fault,) = faults(items)
    assert fault.tar.startswith("pipe:")
    assert "cannot be read from here on" in fault.reason


def test_only_the_first_samples_of_a_command_may_be_taken(tars):
    items = read_tars([f"pipe:cat {tars[0]} /dev/zero"], [0])
    assert next(items).key == "clip0"
    items.close()


def test_a_folder_with_a_manifest_a_url_of_a_folder_and_what_is_no_tar_are_refused(tmp_path):
    dataset = write_dataset(tmp_path / "dataset")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"")
    for urls, said in (
        (dataset, "a dataset with a manifest, expected tars without one: data=folder"),
        (tmp_path / "empty", "found no tar in it"),
        (tmp_path / "none.tar", "found no such file or folder"),
        (tmp_path / "a.mp4", "found another extension"),
        ("http://127.0.0.1:9/dataset/", "found the folder"),
        ("ftp://host/a.tar", "expected s3://, http://, https://"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            find_tars(str(urls))


def test_a_damaged_header_costs_the_rest_of_its_tar_and_is_named(tars, tmp_path):
    data = bytearray(Path(tars[0]).read_bytes())
    with tarfile.open(tars[0]) as tar:
        offset = next(member.offset for member in tar if member.name == "clip2.mp4")
    data[offset + 148 : offset + 156] = b"7777777\0"  # its checksum
    (tmp_path / "broken.tar").write_bytes(data)
    items = everything([str(tmp_path / "broken.tar"), tars[1]])
    assert [item.key for item in raws(items)] == ["clip0", "clip1", "clip4", "clip5", "clip6"]
    (fault,) = faults(items)
    assert fault.tar == str(tmp_path / "broken.tar")
    assert "other bytes than a tar's header" in fault.reason


def test_a_tar_that_was_cut_gives_the_samples_before_the_cut(tars, tmp_path):
    data = Path(tars[0]).read_bytes()
    with tarfile.open(tars[0]) as tar:
        middle = next(member.offset_data + 100 for member in tar if member.name == "clip3.mp4")
    (tmp_path / "cut.tar").write_bytes(data[:middle])
    items = everything([str(tmp_path / "cut.tar"), tars[1]])
    assert [item.key for item in raws(items)][:3] == ["clip0", "clip1", "clip2"]
    assert {"clip4", "clip5", "clip6"} < {item.key for item in raws(items)}
    (fault,) = faults(items)
    assert "unexpected end of data" in fault.reason


def test_what_a_header_only_claims_takes_no_memory(tmp_path):
    path = tmp_path / "sparse.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("huge.mp4")
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"%011o\0%011o\0" % (0, 0)
        header[483:495] = b"%011o\0" % (2**33 - 1)  # eight gigabytes of nothing
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        tar.fileobj.write(header)
        tar.offset += len(header)
        for name, data in clip(0).items():
            add(tar, f"clip0.{name}", data)
    items = everything([str(path)])
    assert [item.key for item in raws(items)] == ["clip0"]
    assert [(fault.key, fault.kind) for fault in faults(items)] == [("huge.mp4", "not a plain file")]


def test_members_that_belong_to_no_sample_are_named_and_cost_themselves(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "README", b"x")
        add(tar, "../clip9.mp4", b"x")
        add(tar, "clip0.__key__", b"x")
        for name, data in clip(0).items():
            add(tar, f"clip0.{name}", data)
        add(tar, "clip0.mp4", b"another")
        for name, data in clip(1).items():
            add(tar, f"clip1.{name}", data)
    items = everything([str(path)])
    assert [(item.key, item.members["mp4"]) for item in raws(items)] == [(f"clip{i}", clip(i)["mp4"]) for i in (0, 1)]
    assert [(fault.key, fault.kind) for fault in faults(items)] == [
        ("README", "no key and extension"), ("../clip9.mp4", "bad path"), ("clip0.__key__", "reserved extension"),
            ("clip0", "name again"),
    ]  # fmt: skip


def test_a_sample_whose_files_are_apart_is_named(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("mp4", "txt"):
            for number in range(2):
                add(tar, f"clip{number}.{name}", clip(number)[name])
    named = [fault for fault in faults(everything([str(path)])) if fault.kind is None]
    assert [fault.key for fault in named] == ["clip0", "clip1"]
    assert "sort the tar by name" in named[0].reason


def test_each_sample_comes_once_an_epoch_over_all_ranks_and_readers(tars):
    context, seen = forkserver(module.__name__), {}
    for rank in range(2):
        source = Source(tuple(tars), seed=5, shuffle=3, rank=rank, world=2)
        items = source.items(readers=2, wait=60, context=context)
        # Of three tars a rank has at most two, of twelve samples at most nine.
        seen[rank] = [(item.epoch, item.key) for item in raws(itertools.islice(items, 60))]
        items.close()
    for epoch in range(3):
        counts = Counter(key for both in seen.values() for number, key in both if number == epoch)
        assert counts == dict.fromkeys((f"clip{number}" for number in range(12)), 1)
    assert {key for epoch, key in seen[0] if epoch == 0} != {key for epoch, key in seen[0] if epoch == 1}, "dealt anew"


def test_samples_are_mixed_and_the_seed_decides_how(tars):
    def order(seed):
        items = Source(tuple(tars), seed=seed, shuffle=20).items()
        return [item.key for item in itertools.islice(raws(itertools.islice(items, 15)), 12)]

    assert sorted(order(0)) == sorted(f"clip{number}" for number in range(12))
    assert order(0) == order(0) != order(1)


def test_resampled_tars_come_at_random_and_each_rank_has_others(tars):
    drawn = {}
    for rank in range(2):
        items = Source(tuple(tars), seed=0, resampled=True, rank=rank, world=2).items()
        drawn[rank] = [item for item in itertools.islice(items, 200) if isinstance(item, End)]
        assert {item.tar for item in drawn[rank]} == {0, 1, 2}
        assert len({item.epoch for item in drawn[rank]}) == len(drawn[rank]), "windows of their own"
    assert [item.tar for item in drawn[0]] != [item.tar for item in drawn[1]]
    assert not {item.epoch for item in drawn[0]} & {item.epoch for item in drawn[1]}


def test_tars_that_are_done_are_left_out_of_their_epoch_only(tars):
    items = Source(tuple(tars), start=4, done=((4, frozenset({0, 2})),)).items()
    ends = [item for item in itertools.islice(items, 40) if isinstance(item, End)]
    assert ends[0] == End(4, 1, 3)
    assert sorted(end.tar for end in ends[1:4]) == [0, 1, 2]
    assert {end.epoch for end in ends[1:4]} == {5}


def test_tars_without_any_sample_end_the_stream(tmp_path):
    path = by_library(tmp_path / "a.tar", {})
    with pytest.raises(ValueError, match=r"found no sample in 6 tars, expected some; the last fault: .*gone.tar: can"):
        list(Source((str(path), str(tmp_path / "gone.tar")), seed=1).items())


def test_a_source_that_says_nothing_ends_in_time():
    context = forkserver(module.__name__)
    items = Source(("pipe:sleep 30",)).items(readers=1, wait=1, context=context)
    with pytest.raises(TimeoutError, match=r"no sample within 1 s, expected one \(data.wait\); .* is pipe:sleep"):
        next(items)


def test_a_tar_is_read_as_a_stream():
    class OneWay(io.BytesIO):
        def seek(self, *_):
            raise io.UnsupportedOperation("seek")

    # What a pipe or a socket gives.
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in clip(0).items():
            add(tar, f"clip0.{name}", content)
    stream = Watched(OneWay(data.getvalue()))
    members = module.Members(module.Notes())
    assert [member["fname"] for member in members.members("a", stream)] == [f"clip0.{name}" for name in clip(0)]
