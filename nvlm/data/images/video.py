"""Videos as frames: evenly spaced, each one tile. Needs PyAV (`pip install 'nvlm[video]'`).

Frames are counted from the container's packets, without decoding; decoding seeks to the keyframe
before each wanted frame. A video's rotation is applied, as an image's is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError

# FFmpeg's names of the containers read. It could guess many more, among them playlists that open
# other files.
_MP4, _MATROSKA, _AVI = "mov", "matroska", "avi"


def count_frames(data: bytes, max_frames: int, max_megapixels: float | None = None) -> int:
    """How many frames `decode_frames` can take from a video: `max_frames`, or all if it has fewer.

    Raises:
        SampleError: no video of a known container, damaged, or of too large frames.
        DataError: PyAV is not installed.
    """
    with _open(data, max_megapixels) as (container, stream):
        return min(max_frames, len(_read_times(container, stream)[0]))


def decode_frames(
    data: bytes, num_frames: int, max_megapixels: float | None = None
) -> list[NDArray[np.uint8]]:
    """`num_frames` frames, evenly spaced from the first to the last; each [height, width, 3] RGB.

    Raises:
        SampleError: as `count_frames`; fewer frames, or one that cannot be decoded.
    """
    with _open(data, max_megapixels) as (container, stream):
        times, keyframes = _read_times(container, stream)
        if num_frames > len(times):
            raise SampleError("video", f"{len(times)} frames, expected {num_frames}")
        spots = np.linspace(0, len(times) - 1, num_frames).round().astype(int)
        wanted = times[spots]
        return [_pixels(frame) for frame in _frames_at(container, stream, wanted, keyframes)]


class _open:
    """Context: (container, its video stream). What FFmpeg raises inside is the sample's fault."""

    def __init__(self, data: bytes, max_megapixels: float | None):
        self._data = data
        self._max_megapixels = max_megapixels

    def __enter__(self) -> tuple[Any, Any]:
        try:
            import av
        except ModuleNotFoundError:
            raise DataError("videos need the library av: pip install 'nvlm[video]'") from None
        self._errors = (av.FFmpegError, EOFError, OverflowError)
        kind = _container_of(self._data)
        try:
            self._container = av.open(
                io.BytesIO(self._data), format=kind, metadata_errors="replace"
            )
        except self._errors as error:
            raise SampleError("video", f"not readable as a video: {error}") from None
        try:
            return self._container, self._check_stream()
        except SampleError:
            self._container.close()
            raise

    def _check_stream(self) -> Any:
        if not self._container.streams.video:
            raise SampleError("video", "it has no video stream")
        stream = self._container.streams.video[0]
        if stream.codec_context is None:
            raise SampleError("video", "its codec is not known")
        size = f"{stream.width} x {stream.height} pixels"
        if not stream.width or not stream.height:
            raise SampleError("video", size)
        limit = self._max_megapixels
        if limit is not None and stream.width * stream.height > limit * 1e6:
            raise SampleError(
                "image_too_large", f"frames of {size}, over data.max_image_megapixels {limit:g}"
            )
        # Workers are as many as there are cores for them.
        stream.codec_context.thread_count = 1
        return stream

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self._container.close()
        if isinstance(error, self._errors):
            raise SampleError("video", f"not readable as a video: {error}") from None


def _container_of(data: bytes) -> str:
    if data[4:8] in (b"ftyp", b"moov", b"wide", b"free", b"mdat"):
        return _MP4
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return _MATROSKA
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return _AVI
    raise SampleError("video", "no MP4, QuickTime, Matroska, WebM or AVI file")


def _read_times(container: Any, stream: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Presentation times of all frames and of the keyframes, sorted, in the stream's units."""
    # The last packet that FFmpeg gives is empty: the end.
    packets = [packet for packet in container.demux(stream) if packet.size]
    if not packets:
        raise SampleError("video", "it has no frames")
    if any(packet.pts is None for packet in packets):
        raise SampleError("video", "its frames have no times")
    times = np.array(sorted({packet.pts for packet in packets}), np.int64)
    keyframes = np.array(sorted({p.pts for p in packets if p.is_keyframe}), np.int64)
    return times, keyframes


def _frames_at(
    container: Any, stream: Any, wanted: NDArray[np.int64], keyframes: NDArray[np.int64]
) -> Iterator[Any]:
    """The decoded frames at the times `wanted`, which are sorted."""
    frames: Iterator[Any] = iter(())
    position: int | None = None  # time of the last frame decoded
    for time in wanted.tolist():
        # Seek only where that skips something.
        if position is None or ((keyframes > position) & (keyframes <= time)).any():
            container.seek(time, stream=stream, backward=True)
            frames = container.decode(stream)
        frame = next((f for f in frames if f.pts is not None and f.pts >= time), None)
        if frame is None:
            raise SampleError("video", f"no frame could be decoded at time {time}")
        position = frame.pts
        yield frame


def _pixels(frame: Any) -> NDArray[np.uint8]:
    # FFmpeg counts counter-clockwise, as numpy does.
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
