import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image

from dass.data.decode import Encoded, decode, decode_all, to_rgb
from dass.errors import DataError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def sixteen_bit_png(values: npt.NDArray[np.uint16]) -> bytes:
    """A 16-bit grey PNG, written out by hand."""
    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def noise(height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def colours(image: Image.Image | bytes) -> list[tuple[int, ...]]:
    """The colour of each pixel in RGB, row by row."""
    if isinstance(image, Image.Image):
        return [tuple(pixel) for pixel in np.asarray(to_rgb(image)).reshape(-1, 3).tolist()]
    with Image.open(io.BytesIO(image)) as opened:
        return colours(opened)


def test_rgb_of_the_right_size_is_kept_bit_by_bit() -> None:
    pixels = noise(8, 8)
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), 8), pixels)


def test_grey_and_one_bit_become_three_equal_channels() -> None:
    assert colours(encoded(Image.new("L", (1, 1), 77))) == [(77, 77, 77)]
    assert colours(encoded(Image.new("1", (1, 1), 1))) == [(255, 255, 255)]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 128, 129, 32896, 65535]], dtype=np.uint16)
    assert [pixel[0] for pixel in colours(sixteen_bit_png(values))] == [0, 1, 0, 1, 128, 255]
    assert [pixel[0] for pixel in colours(Image.fromarray(values))] == [0, 1, 0, 1, 128, 255]
    assert [pixel[0] for pixel in colours(Image.fromarray(values.astype(np.int32)))] == [0, 1, 0, 1, 128, 255]


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="no defined range"):
        to_rgb(Image.fromarray(np.zeros((2, 2), dtype=np.float32)))


def test_transparent_pixels_lie_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 255, 51)):
        image.putpixel((x, 0), (0, 0, 0, alpha))
    assert colours(encoded(image)) == [(255,) * 3, (0,) * 3, (204,) * 3]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert colours(encoded(grey)) == [(255,) * 3]


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_palettes_are_looked_up_and_their_transparent_colour_is_white(form: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert colours(encoded(image, form)) == [RED, GREEN, (0, 0, 255)]
    assert colours(encoded(image, form, transparency=1)) == [RED, (255, 255, 255), (0, 0, 255)]


def test_a_transparent_colour_of_an_rgb_image_is_white() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert colours(encoded(image, transparency=RED)) == [(255, 255, 255), GREEN]


def test_cmyk_becomes_rgb() -> None:
    (pixel,) = colours(Image.new("CMYK", (1, 1), (0, 255, 255, 0)))
    assert pixel == RED
    jpeg = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(np.array(colours(jpeg)) - np.array(RED)).max() <= 8


def test_exif_orientation_turns_the_image_upright() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    assert colours(encoded(image, exif=exif)) == [GREEN, RED]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (65, 33), (7, 100)])
def test_resizing_is_bilinear_with_antialiasing(height: int, width: int) -> None:
    pixels = noise(height, width)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
    expected = F.interpolate(planes, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    result = torch.tensor(decode(encoded(Image.fromarray(pixels)), 16)).permute(2, 0, 1)
    assert result.shape == (3, 16, 16)
    assert (result - expected[0]).abs().max() <= 1.01  # two roundings to whole numbers


def test_all_images_come_in_order_and_progress_counts_them(tmp_path: Path) -> None:
    images = [Image.new("RGB", (5, 4), (i % 256, i // 256, 0)) for i in range(1100)]
    (tmp_path / "one.png").write_bytes(encoded(images[1]))
    mixed: list[Encoded] = [encoded(images[0]), tmp_path / "one.png", *images[2:]]
    seen: list[tuple[int, int]] = []
    pixels = decode_all(iter(mixed), [str(i) for i in range(1100)], 8, lambda done, total: seen.append((done, total)))
    assert pixels.shape == (1100, 3, 8, 8)
    assert [(int(r) + 256 * int(g)) for r, g in pixels[:, :2, 0, 0]] == list(range(1100))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (1100, 1100)


def test_every_bad_image_is_counted_and_ten_are_named(tmp_path: Path) -> None:
    good = encoded(Image.fromarray(noise(32, 32)))
    bad = [b"", None, b"not an image", good[: len(good) // 2], tmp_path / "absent.png", *[b"noise"] * 8]
    with pytest.raises(DataError) as caught:
        decode_all([good, *bad, good], [f"place {i}" for i in range(15)], 8)
    message = str(caught.value)
    assert "got 13 of 15 that do not" in message
    assert "place 1 (no bytes), place 2 (no bytes), place 3 (not an image that Pillow can read), place 4 (" in message
    assert "truncated" in message
    assert "place 5 (No such file or directory)" in message
    assert "place 10 (" in message
    assert "place 11" not in message
    assert message.endswith("and 3 more; replace or remove them")
    assert "0x" not in message


def test_a_truncated_jpeg_is_bad() -> None:
    whole = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    with pytest.raises(DataError, match=r"photo.jpg \(.*truncated"):
        decode_all([whole[: len(whole) * 2 // 3]], ["photo.jpg"], 8)
