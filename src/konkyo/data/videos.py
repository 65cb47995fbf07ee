"""Frames of videos and of folders of pictures, spread evenly; PyAV is imported when a video is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

from konkyo.data.images import MAX_PIXELS, find_images, open_image
from konkyo.errors import ImageError, KonkyoError, install_hint

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".gif")
"""Of files that are read as videos."""
MAX_FRAMES = 100_000
"""Longer videos are refused: all frames up to the last one that is wanted must be decoded."""
_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD")


@dataclass(frozen=True, eq=False)
class Frames:
    """These are some frames of a clip, in order."""

    pictures: tuple[Image.Image, ...]
    numbers: tuple[int, ...]
    """Which frames of the clip they are, from 0."""
    count: int
    """How many frames the clip has."""
    times: tuple[float, ...] = ()
    """When each is shown, in seconds; () where the clip has no clock."""

    @property
    def note(self) -> str:
        """Says which frames were taken."""
        clock = f", {self.times[0]:.2f} to {self.times[-1]:.2f} s" if self.times else ""
        numbers = ", ".join(map(str, self.numbers[:32])) + (", ..." if len(self.numbers) > 32 else "")
        return f"{len(self.numbers)} of {self.count} frames, spread evenly: {numbers}{clock}"


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """Returns the frames in the middles of as many equal parts of a clip; some twice where it has fewer frames.

    >>> spread(10, 5)
    (1, 3, 5, 7, 9)
    """
    return tuple((2 * index + 1) * count // (2 * wanted) for index in range(wanted))


def read_video(path: str | Path, wanted: int) -> Frames:
    """Returns so many frames of a video file, spread evenly over it.

    ImageError: PyAV is not installed, no such file, or none that can be decoded.
    """
    path = Path(path)
    try:
        library = import_module("av")
    except ImportError:
        raise ImageError(f"{path}: reading a video takes PyAV: {install_hint('video')}") from None
    try:
        with path.open("rb") as file:
            if file.read(16).lstrip().startswith(_PLAYLISTS):
                raise ImageError(f"{path} is a list of other files, and no video itself")
        count = _count(library, path)
        numbers = spread(count, wanted)
        return _decoded(library, path, numbers, count)
    except (OSError, library.FFmpegError) as error:
        raise ImageError(f"{path} cannot be read as a video: {error}") from error


def read_folder(folder: str | Path, wanted: int) -> Frames:
    """Returns so many pictures of a folder, which are a clip's frames in the natural order of their names."""
    files = find_images(folder)
    return of_pictures([open_image(files[number]) for number in spread(len(files), wanted)], len(files), wanted)


def of_pictures(pictures: Sequence[Image.Image], count: int, wanted: int) -> Frames:
    """Returns pictures as so many frames of a clip of `count`, of which they are those that `spread` names, or all."""
    numbers = spread(count, wanted)
    chosen = pictures if len(pictures) == wanted else [pictures[number] for number in numbers]
    return Frames(tuple(chosen), numbers, count)


def _count(library: Any, path: Path) -> int:
    """Returns how many frames a video has, as its file says; else they are counted."""
    with _opened(library, path) as container:
        stream = _stream(container, path)
        count = int(stream.frames) or sum(1 for packet in container.demux(stream) if packet.size)
    if not 1 <= count <= MAX_FRAMES:
        raise ImageError(f"{path} has {count} frames; 1 to {MAX_FRAMES} can be read")
    return count


def _opened(library: Any, path: Path) -> Any:
    return library.open(str(path.absolute()), options={"protocol_whitelist": "file"})


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise ImageError(f"{path} has no pictures in it")
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise ImageError(f"{path}: frames of {stream.width} x {stream.height} pixels are too large")
    return stream


def _decoded(library: Any, path: Path, numbers: Sequence[int], count: int) -> Frames:
    """Decodes a video up to the last of these frames."""
    pictures: dict[int, Image.Image] = {}
    times: dict[int, float] = {}
    last = 0
    with _opened(library, path) as container:
        rate = float(_stream(container, path).average_rate or 0)
        for number, frame in enumerate(container.decode(video=0)):
            last = number
            if number in numbers:
                pictures[number] = frame.to_image().convert("RGB")
                times[number] = number / rate if frame.time is None and rate else float(frame.time or 0)
            if number >= numbers[-1]:
                break
    if not pictures:
        raise ImageError(f"{path} holds no frame that can be decoded")
    if last < numbers[-1]:  # the file says more frames than it has
        count = last + 1
        again = spread(count, len(numbers))
        return _decoded(library, path, again, count) if again[-1] < numbers[-1] else _missing(path, last)
    return Frames(tuple(pictures[n] for n in numbers), tuple(numbers), count, tuple(times[n] for n in numbers))


def _missing(path: Path, last: int) -> Frames:
    raise ImageError(f"{path} ends after frame {last}")


def write_video(path: Path, pictures: Sequence[Image.Image], rate: float) -> Path:
    """Writes pictures of one size as an MP4 file (H.264 where PyAV has it). KonkyoError: PyAV is not installed."""
    try:
        library = import_module("av")
    except ImportError:
        raise KonkyoError(f"writing {path.name} takes PyAV: {install_hint('video')}; a .gif needs nothing") from None
    codec = "libx264" if "libx264" in library.codecs_available else "mpeg4"
    with library.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=max(1, round(rate)))
        stream.width, stream.height = (side // 2 * 2 for side in pictures[0].size)
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            frame = library.VideoFrame.from_image(picture.crop((0, 0, stream.width, stream.height)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
