"""Why something of an archive is left out. Every reason is one of these texts: none names a file or holds a value of one."""

from __future__ import annotations

NOT_DICOM = "not a DICOM file"
DIRECTORY = "a DICOMDIR"
CLOSED = "a folder that may not be read, with all that is in it"
UNREADABLE = "cannot be read, or is cut off"
UNFORESEEN = "of a form that this program did not foresee"
DUPLICATE = "a copy of a file read before (the same SOP instance UID)"
OTHER_MODALITY = "of a modality that was not asked for"
NO_UID = "no study, series or SOP instance UID"

NO_PATIENT = "no PatientID, or one like UNKNOWN"
TWO_PATIENTS = "files with different PatientIDs"
UNCLEAR_ISSUER = "a PatientID without an issuer, where several issuers gave out that ID"

NO_PIXELS = "no pixel data"
NO_IMAGE = "no image: the header has no rows and columns"
SHORT_PIXELS = "pixel data shorter than the header says"
NO_DECODER = "a transfer syntax that no decoder here reads"
BAD_PIXELS = "pixel data that cannot be decoded"
BAD_HEADER = "a header that contradicts itself or lacks what describes the pixels"
TOO_LARGE = "more pixels than an image may have"
MIXED = "slices of different size, orientation or frame of reference"
NO_POSITION = "slices without a position or an instance number"
LOCALIZER = "a localizer"
REFUSED = "refused by the gate"
NO_SLICES = "no slice that may be used"


class UnusableError(Exception):
    """A file, series or study that is left out. `reason` is one of this module's texts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
