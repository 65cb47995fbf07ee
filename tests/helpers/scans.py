"""DICOM and NIfTI files as tests write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


def dicom(path: Path, values: np.ndarray, **changes: Any) -> Path:
    """Writes values (H, W), (frames, H, W) or, of 3 SamplesPerPixel, (H, W, 3), uncompressed."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    colours = changes.get("SamplesPerPixel", 1)
    data.Rows, data.Columns = values.shape[-2:] if colours == 1 else values.shape[-3:-1]
    if values.ndim == 3 and colours == 1:
        data.NumberOfFrames = len(values)
    data.SamplesPerPixel, data.PhotometricInterpretation = colours, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * values.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(values.dtype.kind == "i")
    for name, value in changes.items():
        setattr(data, name, value)
    data.PixelData = values.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path
