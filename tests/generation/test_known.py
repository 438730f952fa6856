"""Which frames may be given: any of a codec by frames, of a causal one the first 1 + k ft."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from videodiff.generation.known import check_given, find_known, first_frames, known_latents, mixed, usual_given

BY_FRAMES = SimpleNamespace(causal=False, compression=(1, 8, 8), name="by frames")


def causal(ft: int) -> SimpleNamespace:
    return SimpleNamespace(
        causal=True, compression=(ft, 8, 8), name=f"causal {ft}", latent_frames=lambda t: 1 + (t - 1) // ft
    )


def test_any_frames_of_a_codec_by_frames_may_be_given() -> None:
    assert find_known([0, -1], BY_FRAMES, 8) == (0, 7)
    assert find_known([2, 0, 1, -8], BY_FRAMES, 8) == (0, 1, 2)
    assert known_latents(BY_FRAMES, (0, 7)) == [0, 7]
    assert list(first_frames(BY_FRAMES, 4)) == [1, 2, 3]


@pytest.mark.parametrize(("frames", "ft", "fits"), [(9, 4, [1, 5]), (17, 8, [1, 9]), (5, 4, [1]), (5, 1, [1, 2, 3, 4])])
def test_of_a_causal_codec_the_first_frames_that_make_whole_latents(frames: int, ft: int, fits: list[int]) -> None:
    assert list(first_frames(causal(ft), frames)) == fits
    for number in fits:
        assert find_known(range(number), causal(ft), frames) == tuple(range(number))
        assert known_latents(causal(ft), range(number)) == list(range(1 + (number - 1) // ft))


@pytest.mark.parametrize(
    ("patch", "clean", "shared"),
    [
        (1, [0, 2], False),
        (2, [0, 1, 6, 7], False),
        (2, [], False),
        (2, [0], True),
        (2, [1, 2], True),
        (3, [0, 5], True),
    ],
)
def test_latents_that_share_a_patch_with_others_are_told(patch: int, clean: list[int], shared: bool) -> None:
    network = SimpleNamespace(patch=(patch, 4, 4))
    lines = mixed({"known": clean, "sampler.lead": range(patch)}, network)
    assert mixed({"given": clean, "known": clean}, network) == [line.replace("known", "given, known") for line in lines]
    start = f"known: frames of different noise levels share patches of {patch} (model.patch[0])"
    assert [line.startswith(start) for line in lines] == [True] * shared
    # A network of the user's own does not say what its patches are.
    assert mixed({"known": clean}, object()) == []


@pytest.mark.parametrize("known", [[0, -1], [0, 1, 2], [0, 1], [1], [0, 4], [0, 1, 2, 3, 5]])
def test_frames_that_make_no_whole_latents_are_an_error_that_names_what_fits(known: list[int]) -> None:
    with pytest.raises(ValueError, match=r"known: found .*, expected the first 1, 5, 9, \.\.\., 77 of the clip's 81"):
        find_known(known, causal(4), 81)


@pytest.mark.parametrize("codec", [BY_FRAMES, causal(4)], ids=lambda codec: codec.name)
def test_a_clip_that_is_given_whole_leaves_nothing_to_make(codec: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="found all 5 frames of the clip"):
        find_known(range(5), codec, 5)
    with pytest.raises(ValueError, match=r"callbacks\.samples\.given: found 5"):
        check_given("callbacks.samples.given", 5, codec, 5)


@pytest.mark.parametrize("known", [[], [8], [-9], [0, 8]])
def test_frames_that_the_clip_does_not_have_are_an_error(known: list[int]) -> None:
    with pytest.raises(ValueError, match="expected frame numbers from -8 to 7"):
        find_known(known, BY_FRAMES, 8)


def test_the_usual_number_of_given_frames_is_the_nearest_to_three_that_fits() -> None:
    # A network of the user's own does not say what its patches are.
    assert [usual_given(codec, 9, object()) for codec in (BY_FRAMES, causal(2), causal(4), causal(8))] == [3, 3, 1, 1]
    assert [usual_given(BY_FRAMES, frames, object()) for frames in (1, 2, 3, 4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("codec", [BY_FRAMES, causal(4)], ids=lambda codec: codec.name)
def test_a_window_of_any_length_costs_no_time(codec: SimpleNamespace) -> None:
    # A list of these numbers would not fit into the memory.
    frames = 10**12 + 1
    assert usual_given(codec, frames, SimpleNamespace(patch=(2, 4, 4))) == (5 if codec.causal else 2)
    with pytest.raises(ValueError, match=r"here: found 0, expected .*the clip's 1,000,000,000,001 frames"):
        check_given("here", 0, codec, frames)


@pytest.mark.parametrize("codec", [BY_FRAMES, causal(2), causal(4)], ids=lambda codec: codec.name)
@pytest.mark.parametrize("patch", [1, 2, 3, 4])
def test_the_usual_given_frames_fill_whole_patches_where_a_clip_has_several(codec: SimpleNamespace, patch: int) -> None:
    network = SimpleNamespace(patch=(patch, 4, 4))
    latents = 2 * patch
    frames = 1 + (latents - 1) * codec.compression[0] if codec.causal else latents
    given = usual_given(codec, frames, network)
    assert 0 < given < frames
    assert mixed({"given": known_latents(codec, range(given))}, network) == []
    # Half of a clip of one patch is known, or nothing is.
    alone = 1 + (patch - 1) * codec.compression[0] if codec.causal else patch
    assert usual_given(codec, alone, network) == usual_given(codec, alone, object())
