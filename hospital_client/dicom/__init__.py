"""DICOM archives as manifests: `fedmed-site import dicom`. docs/data.md says what happens in which case.

    folder -> archive (headers: patients, studies, series) -> gate -> pictures (pixels of one series at a time)
    table  -> reports (rows) ------- joined by study, accession number or patient -------> examples

pydicom is known in this package alone. Nothing here repeats a value of a header, the name of a file or a text of the
table: what is told are kinds, tags, reasons and counts.
"""
