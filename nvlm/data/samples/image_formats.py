"""Which image formats are read, under Pillow's names, with the extensions that files have.

The one place that says what is an image. Every format that Pillow can open is in one of the two
tables, which a test compares with Pillow's own lists. This file imports neither Pillow nor torch.
"""

from __future__ import annotations

# In the order in which content is tried; the first extension is the one that imports write.
# Sides follow from the header of each, before anything is decoded.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "AVIF": ("avif", "avifs"),
    "JPEG2000": ("jp2", "j2k", "jpc", "jpf", "jpx", "j2c"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "ICO": ("ico",),
    "CUR": ("cur",),
    "DDS": ("dds",),
    "PSD": ("psd",),
    "QOI": ("qoi",),
    "SGI": ("sgi", "rgb", "rgba", "bw"),
    "SUN": ("ras",),
    "PCX": ("pcx",),
    "DCX": ("dcx",),
    "MSP": ("msp",),
    "FLI": ("fli", "flc"),
    "FTEX": ("ftc", "ftu"),
    "GBR": ("gbr",),
    "PIXAR": ("pxr",),
    "XBM": ("xbm",),
    "XPM": ("xpm",),
    "DIB": ("dib",),
    # These have no signature at their beginning, and come last.
    "PCD": ("pcd",),
    "TGA": ("tga", "icb", "vda", "vst"),
    # By pillow-heif, where it is installed.
    "HEIF": ("heic", "heif", "hif", "heics", "heifs"),
}
# What Pillow opens and nvlm does not, with the reason. A file with such an extension counts as an
# image that is not read, and its sample is rejected.
NOT_READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "EPS": ("Pillow runs Ghostscript for it", ("eps", "ps")),
    "WMF": ("a drawing, which only Windows renders", ("wmf", "emf")),
    "PDF": ("a document", ("pdf",)),
    "SVG": ("a drawing", ("svg", "svgz")),
    "MPEG": ("a video, of which Pillow reads the sides alone", ("mpg", "mpeg")),
    "BUFR": ("weather data, which Pillow only recognises", ("bufr",)),
    "GRIB": ("weather data, which Pillow only recognises", ("grib",)),
    "HDF5": ("a container, which Pillow only recognises", ("h5", "hdf")),
    "FITS": ("measurements without a set range", ("fit", "fits")),
    "SPIDER": ("measurements without a set range", ()),
    "MCIDAS": ("measurements without a set range", ()),
    "BLP": ("it wraps a JPEG whose sides its own header need not agree with", ("blp",)),
    "ICNS": ("it wraps images whose sides its own header need not agree with", ("icns",)),
    "IPTC": ("it wraps a file of another format", ("iim",)),
    "PALM": ("it has no signature: any file could be taken for it", ("palm",)),
    "IM": ("it has no signature: any file could be taken for it", ("im",)),
    "IMT": ("it has no signature: any file could be taken for it", ()),
    "XVTHUMB": ("a thumbnail of another file", ()),
    "RAW": ("a camera's raw data, which Pillow does not develop",
            ("dng", "cr2", "cr3", "nef", "arw", "raf", "orf", "rw2")),
    "JXL": ("JPEG XL, which Pillow does not open", ("jxl",)),
}  # fmt: skip

# Extensions of images that are read, and of those that are not.
IMAGE_TYPES = frozenset(name for names in FORMATS.values() for name in names)
UNREAD_IMAGE_TYPES = frozenset(name for _, names in NOT_READ.values() for name in names)

# How files of common formats begin, for members whose names do not say that they are images.
_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"8BPS", b"DDS ", b"qoif", b"<svg", b"%PDF-",
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
SIGNATURE_BYTES = 16


def has_image_signature(start: bytes) -> bool:
    """Whether a file begins as images of common formats do.

    Args:
        start: its first `SIGNATURE_BYTES` bytes.
    """
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return True
    if start[:2] == b"BM" and start[6:10] == bytes(4):
        return True
    return start.startswith(_SIGNATURES) or is_heif(start) or is_avif(start)


def is_heif(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def is_avif(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in _AVIF_BRANDS
