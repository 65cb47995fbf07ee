"""Volumes: NIfTI files and series of DICOM files as arrays of their own values, and maps written back beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from konkyo.data.axes import Coordinates
from konkyo.data.scans import MAX_VOXELS, SUFFIXES, imported
from konkyo.errors import ImageError, KonkyoError

NIFTI, DICOM = SUFFIXES[2:], SUFFIXES[:2]
_SECONDARY = "1.2.840.10008.5.1.4.1.1.7.4"
"""Multi-frame True Color Secondary Capture Image Storage."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume holds the values of a file, and where they lie."""

    values: Tensor
    """(D, H, W) float32, the axes in the order of `coordinates.order`."""
    coordinates: Coordinates
    notes: tuple[str, ...] = ()


def read_nifti(path: Path, order: Sequence[int] = (0, 1, 2)) -> Volume:
    """Returns the values of a NIfTI file, scaled as it says; of several volumes the first.

    `order`: which axis of the file every place of the volume is. ImageError: nibabel is not installed, another file, or
    one that is too large.
    """
    library = imported("nibabel", path)
    try:
        image = library.load(path)
        shape = (*image.shape, 1, 1)[:3]
        if len(image.shape) < 3 or math.prod(shape) > MAX_VOXELS:
            raise ImageError(f"{path} ({' x '.join(map(str, image.shape))}) is no volume that can be read")
        which = tuple([slice(None)] * 3 + [0] * (len(image.shape) - 3))
        values = np.asarray(image.dataobj[which], dtype=np.float32)
    except ImageError:
        raise
    except Exception as error:  # damaged files fail in every possible way
        raise ImageError(f"{path} cannot be read as a volume: {error}") from error
    zooms = [float(zoom) for zoom in image.header.get_zooms()[:3]]
    coordinates = Coordinates(
        size=tuple(shape[axis] for axis in order),
        step=tuple(zooms[axis] for axis in order),
        unit=("mm",) * 3,
        file=str(path),
        affine=tuple(tuple(float(v) for v in row) for row in image.affine),
        shape=tuple(shape),
        order=tuple(order),
        header=image.header.binaryblock.hex() if hasattr(image.header, "binaryblock") else "",
    )
    notes = (f"first of {math.prod(image.shape[3:])} volumes",) if math.prod(image.shape[3:]) > 1 else ()
    return Volume(_tensor(values.transpose(order)), coordinates, notes)


def read_series(folder: Path) -> Volume:
    """Returns a series of DICOM files as a volume (slice, row, column), rescaled, ordered along its normal.

    ImageError: pydicom is not installed, or files of several series, sizes or directions.
    """
    library, pixels = imported("pydicom", folder), imported("pydicom.pixels", folder)
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    slices = []
    for file in files:
        try:
            slices.append((file, library.dcmread(file, stop_before_pixels=True)))
        except Exception:  # a folder of a series holds other files, too
            continue
    if not slices:
        raise ImageError(f"{folder} holds no DICOM file")
    if len(kinds := {(str(d.SeriesInstanceUID), int(d.Rows), int(d.Columns)) for _, d in slices}) > 1:
        raise ImageError(f"{folder} holds {len(kinds)} series or sizes of slices; one of each was expected")
    first = slices[0][1]
    along = np.array([float(v) for v in first.get("ImageOrientationPatient", (1, 0, 0, 0, 1, 0))])
    normal = np.cross(along[:3], along[3:])

    def place(data: Any) -> float:
        position = data.get("ImagePositionPatient")
        return float(np.dot(normal, [float(v) for v in position])) if position else float(data.get("InstanceNumber", 0))

    slices.sort(key=lambda pair: place(pair[1]))
    if len(slices) * int(first.Rows) * int(first.Columns) > MAX_VOXELS:
        raise ImageError(f"{folder} has too many voxels to be read safely")
    values = np.stack(
        [np.asarray(pixels.apply_modality_lut(pixels.pixel_array(f), d), dtype=np.float32) for f, d in slices]
    )
    down, across = (float(v) for v in first.get("PixelSpacing", (1, 1)))
    places = [place(data) for _, data in slices]
    apart = (places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else float(first.get("SliceThickness") or 1)
    origin = np.array([float(v) for v in slices[0][1].get("ImagePositionPatient", (0, 0, 0))])
    affine = np.eye(4)  # DICOM's axes point to the left and the back; NIfTI's to the right and the front
    columns = (normal * (apart or 1), along[3:] * down, along[:3] * across, origin)
    affine[:3] = np.stack(columns, 1) * np.array([-1, -1, 1])[:, None]
    coordinates = Coordinates(
        size=values.shape,
        step=(abs(apart) or 1.0, down, across),
        unit=("mm",) * 3,
        file=str(folder),
        affine=tuple(tuple(float(v) for v in row) for row in affine),
        shape=values.shape,
        order=(0, 1, 2),
    )
    return Volume(_tensor(values), coordinates, (f"series of {len(slices)} DICOM slices",))


def write_nifti(path: Path, map_: Tensor, coordinates: Coordinates, description: str) -> Path:
    """Writes a map (D, H, W) of a volume's own size as float32, with the affine and the header of its file."""
    library = imported("nibabel", path)
    back = [coordinates.order.index(axis) for axis in range(3)]
    values = map_.detach().cpu().float().permute(back).numpy()
    affine = np.array(coordinates.affine)
    header = library.Nifti1Header(bytes.fromhex(coordinates.header), check=False) if coordinates.header else None
    image = library.Nifti1Image(values, affine, header)
    image.set_data_dtype(np.float32)
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    image.header["cal_min"] = image.header["cal_max"] = 0
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    library.save(image, path)
    return path


def write_secondary_capture(path: Path, pictures: Sequence[Image.Image], source: str, description: str) -> Path:
    """Writes pictures of one size as a DICOM secondary capture, a frame each, with the patient and study of the source.

    It never takes the place of the images: it has a series of its own, and says that it was derived.
    """
    library = imported("pydicom", path)
    uid, datasets = imported("pydicom.uid", path), imported("pydicom.dataset", path)
    data = datasets.Dataset()
    for file in sorted(Path(source).iterdir()) if source and Path(source).is_dir() else []:
        try:
            original = library.dcmread(file, stop_before_pixels=True)
        except Exception:
            continue
        for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"):
            if name in original:
                setattr(data, name, original[name].value)
        for name in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID"):
            if name in original:
                setattr(data, name, original[name].value)
        break
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
        if name not in data:
            setattr(data, name, "")
    if "StudyInstanceUID" not in data:
        data.StudyInstanceUID = uid.generate_uid()
    now = datetime.now()
    frames = np.stack([np.asarray(picture.convert("RGB"), dtype=np.uint8) for picture in pictures])
    values: dict[str, Any] = {
        "SOPClassUID": _SECONDARY, "SOPInstanceUID": uid.generate_uid(), "SeriesInstanceUID": uid.generate_uid(),
        "Modality": "OT", "ConversionType": "WSD", "ImageType": ["DERIVED", "SECONDARY"], "SeriesNumber": 9001,
        "InstanceNumber": 1, "SeriesDescription": description[:64], "DerivationDescription": description[:1024],
        "ContentDate": now.strftime("%Y%m%d"), "ContentTime": now.strftime("%H%M%S"), "BurnedInAnnotation": "NO",
        "NumberOfFrames": len(frames), "Rows": frames.shape[1], "Columns": frames.shape[2], "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7,
        "PixelRepresentation": 0, "PixelData": frames.tobytes() + b"\0" * (frames.size % 2),
    }  # fmt: skip
    for name, value in values.items():
        setattr(data, name, value)
    meta = datasets.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = uid.ExplicitVRLittleEndian, _SECONDARY
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta = meta
    library.dcmwrite(path, data, enforce_file_format=True)
    return path


def resampled(volume: Volume, size: Sequence[int]) -> Volume:
    """Returns a volume of another size of the same extent, interpolated linearly between the centres of voxels."""
    if tuple(size) == tuple(volume.values.shape):
        return volume
    if len(size) != 3 or min(size) < 1:
        raise KonkyoError(f"the size of a volume is three numbers of voxels, 1 or more; got {size!r}")
    values = torch.nn.functional.interpolate(
        volume.values[None, None], size=tuple(size), mode="trilinear", align_corners=False
    )[0, 0]
    old, step = volume.coordinates.size, volume.coordinates.step
    steps = tuple(s * n / m for s, n, m in zip(step, old, size, strict=True))
    return Volume(values, replace(volume.coordinates, size=tuple(size), step=steps), volume.notes)


def _tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
