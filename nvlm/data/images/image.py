"""Image files to pixels: which files are read, how, and what is done to unusual ones.

Every image is opened by Pillow, which decides what it is, and its header is checked before any
pixel is decoded. JPEG and 8-bit RGB PNG are then decoded by libjpeg-turbo (simplejpeg) and libspng
(pyspng), bit for bit as Pillow does but faster; whatever those refuse is Pillow's to judge.

- EXIF rotation is applied: the sides that `read_image_size` gives are those of the upright image.
- The first frame of an animation is taken.
- Alpha and palette transparency are dropped, colour profiles ignored, as `convert("RGB")` does.
- 16-bit gray keeps its upper byte (`convert` would clip it to white).
- Pixels of 32 bits (no set range) and of LAB colours (no conversion) are refused.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from importlib.util import find_spec

import numpy as np
import pyspng
import simplejpeg
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image

from nvlm.data.samples.image_formats import FORMATS, is_avif, is_heif
from nvlm.data.samples.repairs import note_repair
from nvlm.data.samples.sample import SampleError

# Enough for the headers of nearly all images; the rest are read whole.
HEADER_BYTES = 1 << 16
_BY_PILLOW = tuple(name for name in FORMATS if name != "HEIF")
_COMMON = "JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, JPEG2000, PPM, ICO, TGA and more"
# What Pillow raises for broken files, `SyntaxError` in its PNG reader, the last three in its TIFF
# reader. Caught around calls of Pillow alone.
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    TypeError,
    KeyError,
    IndexError,
)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ICON_SIGNATURE = b"\0\0\1\0"
# 32-bit integers and floats have no set range; Pillow does not convert LAB to RGB.
_UNUSABLE_MODES = ("I", "F", "LAB")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_UPRIGHT = 1
_SIDES_SWAPPED = (5, 6, 7, 8)

# Processes that decode are as many as there are cores for them.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Its own limit warns at 89 and raises at 179 megapixels, whatever ours is; ours replaces it.
Image.MAX_IMAGE_PIXELS = None


def read_image_size(data: bytes, max_megapixels: float | None = None) -> tuple[int, int]:
    """(width, height) of the upright image, from an image's first bytes; decodes nothing.

    Raises:
        SampleError: the bytes do not tell, or the image has over `max_megapixels` (None: no limit).
    """
    with warnings.catch_warnings(action="ignore"):  # of Pillow, about what the rules cover
        image = _open(data, max_megapixels)
        orientation = _orientation(image)
    width, height = image.size
    return (height, width) if orientation in _SIDES_SWAPPED else (width, height)


def readable_formats() -> list[str]:
    """The formats that are read here: HEIC only where its library is installed."""
    return [name for name in FORMATS if name != "HEIF" or find_spec("pillow_heif") is not None]


def image_type(data: bytes) -> str:
    """The extension that fits an image's content, such as jpg; the first one of `FORMATS`.

    Args:
        data: at least the image's first bytes.

    Raises:
        SampleError: the bytes are no image of one of `FORMATS`, or do not tell.
    """
    if data.startswith(_ICON_SIGNATURE):
        _check_icon(data, None)
        return "ico"  # Pillow would decode it
    with warnings.catch_warnings(action="ignore"):
        name = str(_open(data, None).format)
    return FORMATS["JPEG" if name == "MPO" else name][0]


def decode_image(data: bytes, max_megapixels: float | None = None) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB, upright; the array is contiguous.

    Raises:
        SampleError: no image of one of `FORMATS`, cut short, damaged, of `_UNUSABLE_MODES`,
            or with over `max_megapixels` (None: no limit).
    """
    with warnings.catch_warnings(action="ignore"):
        image = _open(data, max_megapixels)
        orientation = _orientation(image)
        size = image.size
        _note_repairs(image, data)
        pixels = _decode_quickly(image, data)
        if pixels is None:
            try:
                image.load()
            except _DECODING_ERRORS as error:
                raise _unreadable(error) from None
            pixels = to_pixels(image)
    width, height = size
    if pixels.shape[:2] != (height, width):
        raise SampleError(
            "image",
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels, its header says {width} x {height}",
        )
    return _turn_upright(pixels, orientation)


def to_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """[height, width, 3] uint8 RGB of a Pillow image, by the rules above, as it lies.

    Raises:
        SampleError: pixels of `_UNUSABLE_MODES`.
    """
    if _is_16_bit_pgm(image):
        return _gray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in _UNUSABLE_MODES:
        raise SampleError(
            "image_pixels", f"pixels of mode {image.mode} have no sure RGB value; store 8-bit RGB"
        )
    if image.mode.startswith("I;16"):
        return _gray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))  # a writable copy, which torch asks for


def _gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(pixels[..., None], 3, axis=2)


def _is_16_bit_pgm(image: Image.Image) -> bool:
    return image.format == "PPM" and image.mode == "I"  # Pillow brings them to 0 to 65535


def _open(data: bytes, max_megapixels: float | None) -> Image.Image:
    """The image with its header read and its size checked."""
    if data.startswith(_ICON_SIGNATURE):
        _check_icon(data, max_megapixels)
    try:
        image = Image.open(io.BytesIO(data), formats=_BY_PILLOW)
    except Image.UnidentifiedImageError:
        if is_heif(data):
            return _check_size(_open_heif(data), max_megapixels)
        kind = _describe(data)
        if kind is None:
            raise SampleError("image", "not readable as an image: damaged header") from None
        raise SampleError("image_format", f"{kind}; readable are {_COMMON}") from None
    except _DECODING_ERRORS as error:
        raise _unreadable(error) from None
    return _check_size(image, max_megapixels)


def _open_heif(data: bytes) -> Image.Image:
    try:
        # An optional extra.
        from pillow_heif import HeifImageFile, options  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise SampleError(
            "image_format",
            "a HEIC image, which needs the library pillow-heif: pip install 'nvlm[heif]', or "
            "convert it to JPEG",
        ) from None
    options.DECODE_THREADS = 1
    try:
        return HeifImageFile(io.BytesIO(data))
    except (RuntimeError, *_DECODING_ERRORS) as error:
        raise _unreadable(error) from None


def _check_icon(data: bytes, max_megapixels: float | None) -> None:
    """Raise `SampleError` for an icon with too large an image: Pillow decodes it as it opens it."""
    num_entries = int.from_bytes(data[4:6], "little")
    for start in range(6, 6 + 16 * num_entries, 16):
        offset = int.from_bytes(data[start + 12 : start + 16], "little")
        head = data[offset : offset + 24]
        if start + 16 > len(data) or len(head) < 24:
            raise SampleError("image", "not readable as an image: an icon that is cut short")
        if head.startswith(_PNG_SIGNATURE):
            width, height = struct.unpack(">II", head[16:])
        else:  # a bitmap, over one of its mask
            width, height = struct.unpack("<ii", head[4:12])
            height //= 2
        _check_sides(width, height, max_megapixels)


def _check_size(image: Image.Image, max_megapixels: float | None) -> Image.Image:
    _check_sides(*image.size, max_megapixels)
    return image


def _check_sides(width: int, height: int, max_megapixels: float | None) -> None:
    if width < 1 or height < 1:
        raise SampleError("image", f"{width} x {height} pixels")
    if max_megapixels is not None and width * height > max_megapixels * 1e6:
        raise SampleError(
            "image_too_large",
            f"{width} x {height} pixels, over data.max_image_megapixels {max_megapixels:g}",
        )


def _unreadable(error: Exception) -> SampleError:
    return SampleError("image", f"not readable as an image: {error or type(error).__name__}")


def _describe(data: bytes) -> str | None:
    """What bytes are that are no image of `FORMATS`; None: a damaged one."""
    start = data[:256].lstrip().lower()
    if not data:
        return "an empty file"
    if is_avif(data):
        return None
    if data[4:8] == b"ftyp":
        return f"a file of type {data[8:12].decode('latin-1')!r}, such as videos are"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in data[:4096].lower()):
        return "an SVG drawing"
    if start.startswith(b"%pdf"):
        return "a PDF"
    if start.startswith(b"%!ps") or data.startswith(b"\xc5\xd0\xd3\xc6"):
        return "a PostScript drawing"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "a JPEG XL image"
    known = (_PNG_SIGNATURE, b"\xff\xd8", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
    if data.startswith(known):
        return None
    if all(byte >= 32 or byte in b"\t\r\n" for byte in data[:256]):
        return f"text ({data[:32].decode('utf-8', 'replace')!r})"
    return f"a file that starts with {data[:8].hex(' ')}"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 to 8."""
    if image.format == "TIFF":
        return _UPRIGHT  # Pillow turns these itself, the size included
    # EXIF data that cannot be read turns nothing.
    orientation = _stored_orientation(image)
    return _UPRIGHT if orientation is None or orientation not in range(1, 9) else orientation


def _stored_orientation(image: Image.Image) -> int | None:
    """What the file says; None: its EXIF data cannot be read."""
    try:
        # Not the PNG class's own `getexif`, which would decode the image.
        exif = Image.Image.getexif(image)
    except _DECODING_ERRORS:
        return None
    # Of some damage Pillow says nothing: it finds no entry.
    if not exif and image.info.get("exif"):
        return None
    return exif.get(ExifTags.Base.Orientation, _UPRIGHT)


def _note_repairs(image: Image.Image, data: bytes) -> None:
    """What the rules above do to this image, for those who count."""
    orientation = _stored_orientation(image)
    if orientation is None:
        note_repair("exif_ignored")
    elif orientation in range(2, 9):
        note_repair("rotated")
    if _has_frames(image, data):
        note_repair("first_frame")
    if "icc_profile" in image.info:
        note_repair("profile_ignored")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        note_repair("alpha_dropped")
    elif image.mode.startswith("I;16") or _is_16_bit_pgm(image) or _is_16_bit_png(image, data):
        note_repair("upper_byte")
    elif image.mode != "RGB":
        note_repair("converted_to_rgb")


def _has_frames(image: Image.Image, data: bytes) -> bool:
    try:
        if image.format in ("GIF", "TIFF"):
            # Their frames are counted by going through them: not with the image to be decoded.
            image = _open(data, None)
        return getattr(image, "n_frames", 1) > 1
    except (SampleError, *_DECODING_ERRORS):
        return False


def _is_16_bit_png(image: Image.Image, data: bytes) -> bool:
    # The header's bit depth: Pillow says RGB of both depths.
    return image.format == "PNG" and data[24] == 16


def _turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation in _SIDES_SWAPPED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _decode_quickly(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """The pixels as Pillow would decode them; None: Pillow has to."""
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError:
            return None
    if image.format == "PNG" and _is_plain_rgb_png(data):
        try:
            return pyspng.load(data, format="RGB")
        except RuntimeError:
            return None
    return None


def _is_plain_rgb_png(data: bytes) -> bool:
    """Whether a PNG is 8-bit RGB, not interlaced, and its pixel data's checksums hold.

    libspng is told to ignore checksums, and would decode damaged data to wrong pixels.
    """
    _, kind, _, _, depth, colour, _, _, interlaced = struct.unpack_from(">I4sIIBBBBB", data, 8)
    if (kind, depth, colour, interlaced) != (b"IHDR", 8, 2, 0):
        return False
    view = memoryview(data)
    position = len(_PNG_SIGNATURE)
    found = False
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if kind == b"IDAT":
            if end + 4 > len(data):
                return False
            if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
                return False
            found = True
        elif found:
            return True
        position = end + 4
    return False
