"""Batched maps against the plain path: build the student, remap the teacher's weights, run it alone."""

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dass.embed import Embedder, cut, draw_noise, noise_sha
from dass.errors import ConfigError
from dass.networks import build
from dass.precision import full_float32
from dass.records import Init, Student
from dass.remap import remap
from dass.seeding import generator
from dass.spaces import PRESETS, get_space
from dass.threads import one_thread

RESOLUTION = 16


def trained_like(student: Student, seed: int) -> Mapping[str, torch.Tensor]:
    """Weights and batch-norm statistics as training leaves them: nothing is 0 or 1."""
    rng = generator("test teacher", seed)
    state = build(student, 5, rng).state_dict()
    for name, tensor in state.items():
        if "bn" in name and tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=rng))
    return state


def plain_map(
    state: Mapping[str, torch.Tensor], teacher: Student, student: Student, mode: Init, resolution: int = RESOLUTION
) -> torch.Tensor:
    network = build(student, 5)
    network.load_state_dict(remap(state, teacher, student, mode))
    with torch.inference_mode():
        return network.eval().features(draw_noise(resolution))[0]


def test_chunks_are_of_neighbours_and_of_one_size() -> None:
    space = get_space("paper5")
    students = space.sample(101, generator("test", "cut"))
    chunks = cut(students, 25)
    assert sorted(index for indices in chunks for index in indices) == list(range(101))
    assert {len(indices) for indices in chunks} == {20, 21}
    ends = [[students[i].widths for i in (indices[0], indices[-1])] for indices in chunks]
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ends))
    assert cut([], 25) == []


def test_so_many_students_go_together_as_their_maps_have_room() -> None:
    space = get_space("paper5_w8")
    state = trained_like(space.largest, 0)

    def embedder(num: int, side: int) -> Embedder:
        return Embedder(state, space.largest, torch.zeros(num, 3, side, side))

    image = 32 * 32 * 8 * 4  # bytes of its map after the stem
    assert embedder(64, 32).chunk == 2 * embedder(64, 32).stream_chunk == 2**27 // (64 * image)
    assert embedder(1, 32).chunk == embedder(1, 32).stream_chunk == 250
    assert embedder(2**9, 32).chunk == 16  # and images in parts


@pytest.mark.parametrize("piece", [1, 3 * 16 * 16 * 8 * 4, 1 << 30])  # one map at a time, some, and all
def test_maps_do_not_depend_on_how_many_go_through_a_block_together(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = get_space("paper5_w8")
    state = trained_like(space.largest, 0)
    students = space.sample(40, generator("test", "pieces"))
    monkeypatch.setattr("dass.embed.PIECE_BYTES", piece)
    maps = Embedder(state, space.largest, draw_noise(RESOLUTION)).maps(students)
    for student, found in zip(students, maps, strict=True):
        expected = plain_map(state, space.largest, student, "copy_paste_first")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_maps_equal_those_of_each_student_run_alone(preset: str) -> None:
    space = get_space(preset)
    state = trained_like(space.largest, 0)
    students = space.sample(24, generator("test", preset))
    maps = Embedder(state, space.largest, draw_noise(RESOLUTION)).maps(students, chunk=10)
    for student, found in zip(students, maps, strict=True):
        expected = plain_map(state, space.largest, student, "copy_paste_first")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("room", [1, 1 << 20, 1 << 30])  # one image at a time, some, and all
def test_features_of_images_are_what_each_students_classifier_sees(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dass.embed.CHUNK_BYTES", room)
    space = get_space("paper5_w8")
    state = trained_like(space.largest, 0)
    students = [space.largest, *space.sample(12, generator("test", "images"))]
    images = torch.randn(5, 3, RESOLUTION, RESOLUTION, generator=generator("images"))
    features = Embedder(state, space.largest, images).features(students, chunk=8)
    assert features.shape == (13, 5, space.num_channels)
    for student, found in zip(students, features, strict=True):
        network = build(student, 5)
        network.load_state_dict(remap(state, space.largest, student))
        with torch.inference_mode():
            logits = network.eval()(images)
            expected = network.head(found)
        torch.testing.assert_close(expected, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


def test_several_threads_fill_what_was_made_in_inference_mode() -> None:
    space = get_space("paper5_w8")
    embedder = Embedder(trained_like(space.largest, 0), space.largest, draw_noise(RESOLUTION))
    students = space.sample(20, generator("test", "modes"))
    with torch.inference_mode():
        inside = embedder.maps(students, chunk=4)
    torch.testing.assert_close(inside.clone(), embedder.maps(students, chunk=4))


def test_maps_in_bfloat16_are_those_of_each_student_run_alone_in_it() -> None:
    """Both round to 7 bits, at other places: the shortcut of one is added before, that of the other after rounding."""
    space = get_space("paper5")
    state = trained_like(space.largest, 0)
    students = space.sample(24, generator("test", "bfloat16"))
    rounded = Embedder(state, space.largest, draw_noise(RESOLUTION), precision="bfloat16").maps(students, chunk=10)
    exact = Embedder(state, space.largest, draw_noise(RESOLUTION)).maps(students, chunk=10)
    assert rounded.dtype == torch.float32
    for student, found, unrounded in zip(students, rounded, exact, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            expected = plain_map(state, space.largest, student, "copy_paste_first").float()
        far = (expected - unrounded).norm()
        assert 0 < (found - unrounded).norm() < 2 * far
        assert far < 0.03 * unrounded.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_of_a_gpu_are_those_of_a_cpu_up_to_a_thousandth_of_the_largest() -> None:
    space = get_space("paper5")
    students = space.sample(40, generator("test", "gpu"))
    embedder = Embedder(trained_like(space.largest, 0), space.largest, draw_noise(RESOLUTION))
    with full_float32():
        found = embedder.to(torch.device("cuda")).maps(students).cpu()
    expected = embedder.maps(students)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("resolution", [8, 24, 64])
def test_maps_equal_those_of_each_student_run_alone_at_any_resolution(resolution: int) -> None:
    """Sides of stages that are tiles of Winograd's filtering many times, once, and no whole number of times."""
    space = get_space("paper5")
    state = trained_like(space.largest, 6)
    students = [space.largest, space.smallest, *space.sample(6, generator("test resolution"))]
    maps = Embedder(state, space.largest, draw_noise(resolution)).maps(students)
    for student, found in zip(students, maps, strict=True):
        expected = plain_map(state, space.largest, student, "copy_paste_first", resolution)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("mode", ["copy_paste_last", "copy_paste_uniform", "copy_paste_uniform_last"])
def test_maps_equal_the_plain_path_in_every_mode(mode: Init) -> None:
    space = get_space("paper5_w8")
    state = trained_like(space.largest, 1)
    students = space.sample(24, generator("test modes"))
    maps = Embedder(state, space.largest, draw_noise(RESOLUTION), mode).maps(students)
    for student, found in zip(students, maps, strict=True):
        expected = plain_map(state, space.largest, student, mode)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_teachers_own_map_is_that_of_the_teacher() -> None:
    space = get_space("paper5_w8")
    state = trained_like(space.largest, 2)
    teacher = build(space.largest, 5)
    teacher.load_state_dict(dict(state))
    with torch.inference_mode():
        expected = teacher.eval().features(draw_noise(RESOLUTION))
    maps = Embedder(state, space.largest, draw_noise(RESOLUTION)).maps([space.largest])
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_maps_do_not_depend_on_order_company_or_chunks() -> None:
    space = get_space("paper5_w8")
    embedder = Embedder(trained_like(space.largest, 3), space.largest, draw_noise(RESOLUTION))
    students = space.sample(40, generator("test order"))
    maps = embedder.maps(students)
    shuffled = torch.randperm(40, generator=generator("shuffle")).tolist()
    again = embedder.maps([students[i] for i in shuffled], chunk=7)
    torch.testing.assert_close(again, maps[shuffled], rtol=1e-5, atol=1e-5 * float(maps.abs().max()))
    alone = embedder.maps([students[0]])
    torch.testing.assert_close(alone[0], maps[0], rtol=1e-5, atol=1e-5 * float(maps.abs().max()))


def test_memory_that_is_used_again_leaves_no_trace() -> None:
    space = get_space("paper5")
    state, students = trained_like(space.largest, 3), space.sample(60, generator("test memory"))
    embedder = Embedder(state, space.largest, draw_noise(RESOLUTION))
    unused = len(pickle.dumps(embedder))
    first = embedder.maps(students[:40])
    kept = first.clone()
    with one_thread(), ThreadPoolExecutor(4, "worker", torch.set_num_threads, (1,)) as pool:
        rest = list(pool.map(lambda _: embedder.maps(students[40:], chunk=9), range(8)))
    assert torch.equal(first, kept)
    fresh = Embedder(state, space.largest, draw_noise(RESOLUTION)).maps(students[40:], chunk=9)
    assert all(torch.equal(maps, fresh) for maps in rest)
    assert len(pickle.dumps(embedder)) == unused  # a worker elsewhere is sent filters, not used memory


def test_equal_students_get_equal_maps() -> None:
    space = get_space("smoke")
    embedder = Embedder(trained_like(space.largest, 4), space.largest, draw_noise(RESOLUTION))
    student = space.sample(1, generator("twin"))[0]
    maps = embedder.maps([student, space.largest, student])
    assert torch.equal(maps[0], maps[2])


def test_the_noise_is_fixed_and_its_hash_is_golden() -> None:
    assert draw_noise(64).shape == (1, 3, 64, 64)
    assert {side: noise_sha(draw_noise(side)) for side in (16, 64)} == {
        16: "080be003c261380af02464c27bd162245503573fd985555000ba2d04ec172d52",
        64: "6af57eb31f5b1d612718ddf3a321fb8a9d83d09cba66475c7da904896ce4cbf0",
    }
    assert noise_sha(draw_noise(64)) != noise_sha(draw_noise(64, seed=1))


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_the_kept_noise_is_what_is_drawn_but_for_its_last_bits(side: int) -> None:
    drawn = torch.randn(1, 3, side, side, generator=generator("noise", 0, side))
    torch.testing.assert_close(draw_noise(side), drawn, rtol=0, atol=1e-5)


def test_a_cpu_of_another_kind_has_the_same_noise() -> None:
    """One without AVX2, which draws other last bits."""
    code = "from dass.embed import draw_noise, noise_sha; print(noise_sha(draw_noise(32)))"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == noise_sha(draw_noise(32))


def test_scratch_has_no_map() -> None:
    space = get_space("smoke")
    with pytest.raises(ConfigError, match="copy_paste"):
        Embedder(trained_like(space.largest, 5), space.largest, draw_noise(16), "scratch")
