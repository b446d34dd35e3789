"""Signs of a patient in free text: what is found, and what medicine writes that must not be."""

from __future__ import annotations

import pytest

from hospital_client.dicom.phi import kinds_in, words_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("compared with 2021-03-14", "date"),
        ("compared with 14.3.2021.", "date"),
        ("prior of 03/14/21", "date"),
        ("on 20210314 the", "date"),
        ("Seen on 14 March.", "date"),
        ("the 14th of March 2021", "date"),
        ("March 14, 2021", "date"),
        ("since March 2021", "date"),
        ("am 3. Dezember", "date"),
        ("call (555) 867-5309", "phone"),
        ("call 555-867-5309", "phone"),
        ("+49 30 1234567", "phone"),
        ("Tel.: 030 123456", "phone"),
        ("write to a.b@example.org", "email"),
        ("MRN 48213", "number"),
        ("MRN: A-48213", "number"),
        ("Accession number 99812", "number"),
        ("123-45-6789", "number"),
        ("file 00481516", "number"),
        ("12 Long Meadow Road", "address"),
        ("Lindenstraße 12", "address"),
        ("PO Box 12", "address"),
        ("https://example.org/x", "address"),
        ("discussed with Dr. Example", "name"),
        ("Mrs Example was told", "name"),
        ("Frau Muster", "name"),
        ("DR. EXAMPLE", "name"),
    ],
)
def test_signs_are_found(text: str, kind: str) -> None:
    assert kind in kinds_in(text, frozenset())


@pytest.mark.parametrize(
    "text",
    [
        "A 3.5 x 2.1 cm mass in the right upper lobe, 12 mm nodule in segment 6.",
        "Disc protrusion at L4/5 and L5/S1; C5/6/7 unremarkable. Grade 2/3.",
        "Blood pressure 120/80, heart rate 72, ejection fraction 55-60%.",
        "T2 hyperintensity, b = 1000 s/mm2, TE 1.5/2.0/2.5 ms, series 4 image 112.",
        "HU of 40 to 60; SUVmax 12.4; 1,250 ml; 0.5-1.0 mg/kg",
        "In 2019 a resection was done. The patient may 10 mm later be seen in the march of events.",
        "The drive of the pump is in place; the court of Erdheim; lies in the way.",
        "Findings: The dr will see. No mass. Impression: normal. BI-RADS 4A, ASA III, 10-year risk 12%.",
        "Sagittal T1 and T2 weighted images, 512 x 512, 1.5 T, 100000 platelets.",
        "MR FLAIR, DR Chest, MS Plaques; Drs agree.",
        "Phone in the pocket is seen as artefact.",
    ],
)
def test_what_reports_say_without_a_patient_is_no_finding(text: str) -> None:
    assert kinds_in(text, frozenset()) == frozenset()


def test_the_patients_own_names_and_numbers_are_found_in_any_case() -> None:
    known = words_of(["MÜSTERMANN^Erika^^Dr", "ID-48213", "山田^太郎=やまだ"])
    for text in ("for müstermann", "Erika, 54", "id 48213 was", "山田 さん"):
        assert kinds_in(text, known) == {"name"}
    assert "müstermann" in known
    assert kinds_in("the dr of er at 12 mm", known) == frozenset()


def test_what_de_identified_files_hold_in_place_of_a_name_is_not_looked_for() -> None:
    known = words_of(["Anonymous^Patient", "TEST", "Anonymized"])
    assert kinds_in("The patient is an anonymous test case.", known) == frozenset()
