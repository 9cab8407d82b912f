"""Unusual and hostile image files, and the rule that each falls under.

`outcome` is `read` (used as it is), `repaired` (used after the change that `rule` names) or the
reason that the sample is skipped by.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from helpers.shard_writing import draw_image

WIDTH, HEIGHT = 131, 97


@dataclass(frozen=True)
class Case:
    name: str
    rule: str
    outcome: str
    make: Callable[[], bytes]

    @property
    def is_used(self) -> bool:
        return self.outcome in ("read", "repaired")


def picture(mode: str = "RGB", width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    return Image.open(io.BytesIO(draw_image(width, height, seed=4))).convert(mode)


def _save(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _gray16() -> Image.Image:
    steps = np.linspace(0, 65535, WIDTH * HEIGHT).astype(np.uint16)
    return Image.fromarray(steps.reshape(HEIGHT, WIDTH))


def _animated(kind: str) -> bytes:
    frames = [picture().rotate(90), picture().rotate(180)]
    return _save(picture(), kind, save_all=True, append_images=frames, duration=100)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, interlaced: int = 0):
    """A PNG by hand: Pillow writes no 16-bit colour and no interlaced ones."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = _chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + pixels + _chunk(b"IEND", b"")


def _interlaced_png() -> bytes:
    pixels = np.asarray(picture())
    rows = bytearray()
    # Adam7: the first pixel and the step of each pass, by column and row.
    for x, y, step_x, step_y in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):  # fmt: skip
        for row in pixels[y::step_y, x::step_x]:
            rows += b"\0" + row.tobytes()
    return _png(WIDTH, HEIGHT, 8, 2, bytes(rows), interlaced=1)


def _rgb16_png() -> bytes:
    wide = np.asarray(picture()).astype(">u2") * 257 - 5 * (np.asarray(picture()) > 4)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    return _png(WIDTH, HEIGHT, 16, 2, rows)


def _changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _wrong_pixel_checksum() -> bytes:
    """The compressed pixels are whole; the chunk's checksum is not theirs."""
    data = _save(picture(), "PNG")
    end = data.index(b"IEND") - 4
    return _changed(data, end - 4, b"\0\0\0\0")


def _damaged_pixels() -> bytes:
    data = _save(picture(), "PNG")
    middle = (data.index(b"IDAT") + len(data)) // 2
    return _changed(data, middle, bytes([data[middle] ^ 0x55]))


def _text_bomb() -> bytes:
    """A PNG whose comment unpacks to 256 MiB."""
    data = _save(picture(), "PNG")
    comment = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**28), 9))
    return data[:33] + comment + data[33:]


def _jpeg_with_comments() -> bytes:
    """More than 64 KiB stand in front of the sides."""
    data = _save(picture(), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 65535) + bytes(65533)
    return data[:2] + comment * 3 + data[2:]


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(200)
PDF = b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _icon_bomb() -> bytes:
    """An icon of 16 x 16 pixels by its directory, whose PNG has 3000 x 2000."""
    inside = _save(Image.new("1", (3000, 2000)), "PNG")
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + inside


def _icon_of_bitmap() -> bytes:
    return _save(picture("RGB", 48, 48), "ICO", sizes=[(48, 48)], bitmap_format="bmp")


def _cursor() -> bytes:
    icon = _icon_of_bitmap()
    return icon[:2] + b"\2" + icon[3:]


def _jp2_with_other_sides() -> bytes:
    """The box around the code stream says 7 x 5 pixels."""
    data = _save(picture(), "JPEG2000")
    return _changed(data, data.index(b"ihdr") + 4, struct.pack(">II", 5, 7))


def _short_tga() -> bytes:
    return bytes([0, 0, 2, *[0] * 9, 8, 0, 8, 0, 24, 0]) + bytes(10)


def _pfm() -> bytes:
    return b"Pf\n4 4\n-1.0\n" + np.ones(16, "<f4").tobytes()


def _pgm16() -> bytes:
    return b"P5 256 256 65535\n" + np.arange(65536).astype(">u2").tobytes()


def _half_seen() -> Image.Image:
    image = picture("RGBA")
    image.putalpha(100)
    return image


def _psd() -> bytes:
    pixels = np.asarray(picture()).transpose(2, 0, 1).tobytes()
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, HEIGHT, WIDTH, 8, 3)
    return head + bytes(12) + b"\0\0" + pixels


CONVERT = "converted to RGB"
ALPHA = "alpha is dropped; colours stay as stored"
TURNED = "EXIF rotation is applied to pixels and sides"
FIRST = "first frame"
CUT = "cut short: skipped"
HEIC_RULE = "read with `nvlm[heif]`, which Pillow needs for it; otherwise skipped"
NO_FORMAT = "not one of the formats read: skipped"
TOO_LARGE = "over data.max_image_megapixels by its header: skipped before decoding"

CASES = [
    # As they are.
    Case("RGB PNG", "as it is", "read", lambda: _save(picture(), "PNG")),
    Case("RGB JPEG", "as it is", "read", lambda: _save(picture(), "JPEG")),
    Case(
        "progressive JPEG", "as it is", "read", lambda: _save(picture(), "JPEG", progressive=True)
    ),
    Case("interlaced PNG", "as it is", "read", _interlaced_png),
    Case("BMP", "as it is", "read", lambda: _save(picture(), "BMP")),
    Case("TIFF", "as it is", "read", lambda: _save(picture(), "TIFF")),
    Case("TIFF, LZW", "as it is", "read", lambda: _save(picture(), "TIFF", compression="tiff_lzw")),
    Case("WebP", "as it is", "read", lambda: _save(picture(), "WEBP")),
    Case("1 x N", "as it is", "read", lambda: _save(picture(width=1), "PNG")),
    Case("N x 1", "as it is", "read", lambda: _save(picture(height=1), "JPEG")),
    Case("1 x 1", "as it is", "read", lambda: _save(picture("RGB", 1, 1), "PNG")),
    Case("1 x 5000", "as it is", "read", lambda: _save(picture("RGB", 1, 5000), "PNG")),
    Case(
        "PNG named .jpg", "content decides, not the name", "read", lambda: _save(picture(), "PNG")
    ),
    Case("header over 64 KiB", "as it is", "read", _jpeg_with_comments),
    Case("AVIF", "as it is", "read", lambda: _save(picture(), "AVIF")),
    Case("JPEG 2000", "as it is", "read", lambda: _save(picture(), "JPEG2000")),
    Case(
        "JPEG 2000 code stream",
        "as it is",
        "read",
        lambda: _save(picture(), "JPEG2000", no_jp2=True),
    ),
    Case("PPM", "as it is", "read", lambda: _save(picture(), "PPM")),
    Case("TGA", "as it is", "read", lambda: _save(picture(), "TGA")),
    Case(
        "TGA, run lengths",
        "as it is",
        "read",
        lambda: _save(picture(), "TGA", compression="tga_rle"),
    ),
    Case("DDS", "as it is", "read", lambda: _save(picture(), "DDS")),
    Case("PCX", "as it is", "read", lambda: _save(picture(), "PCX")),
    Case("SGI", "as it is", "read", lambda: _save(picture(), "SGI")),
    Case("QOI", "as it is", "read", lambda: _save(picture(), "QOI")),
    Case("PSD", "as it is", "read", _psd),
    Case("DIB", "as it is", "read", lambda: _save(picture(), "DIB")),
    # Converted by a rule.
    Case("AVIF with alpha", ALPHA, "repaired", lambda: _save(_half_seen(), "AVIF")),
    Case(
        "AVIF that is turned", TURNED, "repaired", lambda: _save(picture(), "AVIF", exif=_exif(6))
    ),
    Case("animated AVIF", FIRST, "repaired", lambda: _animated("AVIF")),
    Case("16-bit gray JPEG 2000", "upper byte", "repaired", lambda: _save(_gray16(), "JPEG2000")),
    Case("PGM", CONVERT, "repaired", lambda: _save(picture("L"), "PPM")),
    Case("PBM", CONVERT, "repaired", lambda: _save(picture("1"), "PPM")),
    Case("16-bit PGM", "upper byte", "repaired", _pgm16),
    Case("ICO", f"largest picture; {ALPHA}", "repaired", lambda: _save(picture("RGBA"), "ICO")),
    Case("ICO of bitmaps", f"largest picture; {ALPHA}", "repaired", _icon_of_bitmap),
    Case("CUR", "as it is", "read", _cursor),
    Case("XBM", CONVERT, "repaired", lambda: _save(picture("1"), "XBM")),
    Case("MSP", CONVERT, "repaired", lambda: _save(picture("1"), "MSP")),
    Case("gray JPEG", CONVERT, "repaired", lambda: _save(picture("L"), "JPEG")),
    Case("gray PNG", CONVERT, "repaired", lambda: _save(picture("L"), "PNG")),
    Case("1-bit PNG", CONVERT, "repaired", lambda: _save(picture("1"), "PNG")),
    Case("palette PNG", CONVERT, "repaired", lambda: _save(picture("P"), "PNG")),
    Case("CMYK JPEG", CONVERT, "repaired", lambda: _save(picture("CMYK"), "JPEG")),
    Case("CMYK TIFF", CONVERT, "repaired", lambda: _save(picture("CMYK"), "TIFF")),
    Case("RGBA PNG", ALPHA, "repaired", lambda: _save(picture("RGBA"), "PNG")),
    Case("gray and alpha PNG", ALPHA, "repaired", lambda: _save(picture("LA"), "PNG")),
    Case(
        "palette and transparent colour",
        ALPHA,
        "repaired",
        lambda: _save(picture("P"), "PNG", transparency=7),
    ),
    Case(
        "palette and transparency table",
        ALPHA,
        "repaired",
        lambda: _save(picture("P"), "PNG", transparency=bytes(range(256))),
    ),
    Case(
        "RGB and transparent colour",
        ALPHA,
        "repaired",
        lambda: _save(picture(), "PNG", transparency=(255, 255, 255)),
    ),
    Case("16-bit gray PNG", "upper byte", "repaired", lambda: _save(_gray16(), "PNG")),
    Case("16-bit gray TIFF", "upper byte", "repaired", lambda: _save(_gray16(), "TIFF")),
    Case("16-bit RGB PNG", "upper byte", "repaired", _rgb16_png),
    Case(
        "EXIF rotation, JPEG", TURNED, "repaired", lambda: _save(picture(), "JPEG", exif=_exif(6))
    ),
    Case("EXIF rotation, PNG", TURNED, "repaired", lambda: _save(picture(), "PNG", exif=_exif(3))),
    Case(
        "EXIF rotation, TIFF", TURNED, "repaired", lambda: _save(picture(), "TIFF", exif=_exif(8))
    ),
    Case(
        "damaged EXIF",
        "EXIF data that cannot be read turns nothing",
        "repaired",
        lambda: _save(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"),
    ),
    Case("animated GIF", FIRST, "repaired", lambda: _animated("GIF")),
    Case("animated WebP", FIRST, "repaired", lambda: _animated("WEBP")),
    Case("animated PNG", FIRST, "repaired", lambda: _animated("PNG")),
    Case("MPO (stereo JPEG)", FIRST, "repaired", lambda: _animated("MPO")),
    Case(
        "colour profile",
        "profiles are ignored",
        "repaired",
        lambda: _save(picture(), "JPEG", icc_profile=PROFILE),
    ),
    Case(
        "damaged colour profile",
        "profiles are ignored",
        "repaired",
        lambda: _save(picture(), "PNG", icc_profile=b"no profile at all"),
    ),
    Case(
        "bytes after the end",
        "ignored",
        "read",
        lambda: _save(picture(), "PNG") + b"more" * 1000,
    ),
    Case(
        "bytes after a JPEG's end",
        "ignored",
        "read",
        lambda: _save(picture(), "JPEG") + b"more" * 1000,
    ),
    Case(
        "wrong checksum, whole pixels",
        "used: the compressed data's own checksum holds",
        "read",
        _wrong_pixel_checksum,
    ),
    # Skipped.
    Case("empty file", "skipped", "image_format", lambda: b""),
    Case("truncated PNG", CUT, "image", lambda: _half(_save(picture(), "PNG"))),
    Case("truncated JPEG", CUT, "image", lambda: _half(_save(picture(), "JPEG"))),
    Case(
        "truncated progressive JPEG",
        CUT,
        "image",
        lambda: _half(_save(picture(), "JPEG", progressive=True)),
    ),
    Case("truncated WebP", CUT, "image", lambda: _half(_save(picture(), "WEBP"))),
    Case("truncated GIF", CUT, "image", lambda: _half(_save(picture(), "GIF"))),
    Case("truncated TIFF", CUT, "image", lambda: _half(_save(picture(), "TIFF"))),
    Case("truncated BMP", CUT, "image", lambda: _half(_save(picture(), "BMP"))),
    Case("header alone", CUT, "image", lambda: _save(picture(), "PNG")[:33]),
    Case("damaged pixels", "checksums do not hold: skipped", "image", _damaged_pixels),
    Case(
        "damaged header",
        "header checksum does not hold: skipped",
        "image",
        lambda: _changed(_save(picture(), "PNG"), 20, b"\x7f"),
    ),
    Case("no width", "skipped", "image", lambda: _png(0, 4, 8, 2, b"")),
    Case("comment bomb", "comments over 64 MiB: skipped", "image", _text_bomb),
    Case(
        "large sides, few bytes",
        "cut short: skipped",
        "image",
        lambda: _png(900, 900, 8, 2, b"\0" * 50),
    ),
    Case(
        "decompression bomb",
        TOO_LARGE,
        "image_too_large",
        lambda: _save(Image.new("1", (3000, 2000)), "PNG"),
    ),
    Case(
        "huge sides, few bytes",
        TOO_LARGE,
        "image_too_large",
        lambda: _png(60_000, 60_000, 8, 2, b"\0" * 50),
    ),
    Case(
        "32-bit integers",
        "no set range: skipped",
        "image_pixels",
        lambda: _save(picture("I"), "TIFF"),
    ),
    Case(
        "32-bit floats",
        "no set range: skipped",
        "image_pixels",
        lambda: _save(picture("F"), "TIFF"),
    ),
    Case(
        "LAB colours",
        "no conversion: skipped",
        "image_pixels",
        lambda: _save(picture("LAB"), "TIFF"),
    ),
    Case("text named .jpg", NO_FORMAT, "image_format", lambda: b"404: not found\n" * 9),
    Case("HTML named .png", NO_FORMAT, "image_format", lambda: b"<html><body>Gone</body></html>"),
    Case("SVG", NO_FORMAT, "image_format", lambda: SVG),
    Case("HEIC, damaged or without pillow-heif", HEIC_RULE, "image_format", lambda: HEIC),
    Case("PDF", NO_FORMAT, "image_format", lambda: PDF),
    Case(
        "EPS",
        "not read, as Pillow runs Ghostscript: skipped",
        "image_format",
        lambda: _save(picture(), "EPS"),
    ),
    Case("JPEG XL", NO_FORMAT, "image_format", lambda: b"\xff\x0a" + bytes(range(200))),
    Case("icon with a large PNG inside", TOO_LARGE, "image_too_large", _icon_bomb),
    Case("icon, truncated", CUT, "image", lambda: _half(_save(picture("RGB", 64, 64), "ICO"))),
    Case("truncated AVIF", CUT, "image", lambda: _half(_save(picture(), "AVIF"))),
    Case("truncated JPEG 2000", CUT, "image", lambda: _half(_save(picture(), "JPEG2000"))),
    Case("truncated PPM", CUT, "image", lambda: _half(_save(picture(), "PPM"))),
    Case("truncated TGA", CUT, "image", _short_tga),
    Case("truncated QOI", CUT, "image", lambda: _half(_save(picture(), "QOI"))),
    Case("JPEG 2000 of other sides than its header", "skipped", "image", _jp2_with_other_sides),
    Case(
        "huge PPM header", TOO_LARGE, "image_too_large", lambda: b"P6 60000 60000 255\n" + bytes(99)
    ),
    Case("float PFM", "no set range: skipped", "image_pixels", _pfm),
    Case(
        "random bytes",
        NO_FORMAT,
        "image_format",
        lambda: b"\x01" + np.random.default_rng(0).bytes(999),
    ),
    Case("zero bytes", NO_FORMAT, "image_format", lambda: bytes(4096)),
]
