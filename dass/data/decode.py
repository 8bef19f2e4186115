"""Encoded images of every kind as RGB pixels of one resolution, decoded by all cores."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from dass.errors import DataError

Encoded = bytes | Path | Image.Image | None
"""An encoded image, a file of one, or one that is open already; None where a table has no value."""

Progress = Callable[[int, int], None]
"""Called in the caller's thread with the number of images done and of all."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take bytes for: it knows more formats, some of which run other programs (EPS: Ghostscript)."""

_ALPHA_MODES = ("RGBA", "RGBa", "LA", "PA")
_BACKGROUND = (255, 255, 255, 255)
_CHUNK = 512  # images handed to the pool at a time: bounds the encoded bytes in memory
_MAX_NAMED = 10


def decode_all(
    images: Iterable[Encoded], places: Sequence[str], resolution: int, progress: Progress | None = None
) -> torch.Tensor:
    """All images as uint8 (N, 3, R, R), in order.

    places: where each image comes from, to be named in the error; `images` is read lazily and has the same length.

    Raises:
        DataError: images that cannot be decoded; all are tried first, and up to ten are named with the reason.
    """
    pixels = torch.empty(len(places), 3, resolution, resolution, dtype=torch.uint8)
    targets = zip(iter(pixels.numpy()), images, strict=True)
    bad: list[str] = []
    done = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        while chunk := list(islice(targets, _CHUNK)):
            for reason in pool.map(_decode_into, *zip(*chunk, strict=True)):
                if reason:
                    bad.append(f"{places[done]} ({reason})")
                done += 1
            if progress:
                progress(done, len(places))
    if bad:
        raise DataError(_bad_images(bad, len(places)))
    return pixels


def decode(image: Encoded, resolution: int) -> npt.NDArray[np.uint8]:
    """One image as uint8 (R, R, 3), resized bilinearly with antialiasing; the aspect ratio is not kept.

    Raises:
        Exception: whatever Pillow raises on bytes that it cannot decode.
    """
    if isinstance(image, Image.Image):
        return _pixels(image, resolution)
    if not image:
        raise ValueError("no bytes")
    with Image.open(image if isinstance(image, Path) else io.BytesIO(image), formats=FORMATS) as opened:
        return _pixels(opened, resolution)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, turned upright as its EXIF orientation says.

    Transparent pixels (of an alpha channel, or of a transparent colour) lie over white. Integer modes of more than 8
    bits hold 0..65535. An animation gives its first frame.

    Raises:
        ValueError: the pixels are floating point, whose range no file declares.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, _BACKGROUND), over).convert("RGB")
    return image.convert("RGB")


def _pixels(image: Image.Image, resolution: int) -> npt.NDArray[np.uint8]:
    return np.asarray(to_rgb(image).resize((resolution, resolution), Image.Resampling.BILINEAR))


def _decode_into(target: npt.NDArray[np.uint8], image: Encoded) -> str:
    """Write the pixels into `target`, (3, R, R); returns why that failed, or nothing."""
    try:
        target[:] = decode(image, target.shape[-1]).transpose(2, 0, 1)
    except UnidentifiedImageError:  # its own message shows a memory address
        return "not an image that Pillow can read"
    except Exception as error:  # noqa: BLE001 - damaged bytes make decoders raise anything; all of it is reported
        return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return ""


def _bad_images(bad: Sequence[str], num_images: int) -> str:
    more = f" and {len(bad) - _MAX_NAMED} more" if len(bad) > _MAX_NAMED else ""
    return (
        f"every image must decode, got {len(bad)} of {num_images} that do not: {', '.join(bad[:_MAX_NAMED])}{more}; "
        "replace or remove them"
    )
