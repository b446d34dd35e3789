"""What a report says of fourteen findings, and agreement that knows what a negation is."""

from __future__ import annotations

import pytest

from fedmed.metrics.findings import OBSERVATIONS, finding_f1, findings


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Pleural effusion.", {"Pleural Effusion": "present"}),
        ("No pleural effusion or pneumothorax.", {"Pneumothorax": "absent", "Pleural Effusion": "absent"}),
        ("No effusion but a small pneumothorax.", {"Pneumothorax": "present", "Pleural Effusion": "absent"}),
        ("No effusion. Pneumothorax on the right.", {"Pneumothorax": "present", "Pleural Effusion": "absent"}),
        ("Lungs without consolidation", {"Consolidation": "absent"}),
        ("Pneumonia cannot be excluded.", {"Pneumonia": "uncertain"}),
        ("Possible edema; pneumonia is not seen", {"Edema": "uncertain", "Pneumonia": "absent"}),
        ("Nodule of 1.5 cm, no mass.", {"Lung Lesion": "present"}),  # present before absent
        ("The effusion has resolved.", {"Pleural Effusion": "absent"}),
        ("The heart is enlarged.", {"Cardiomegaly": "present"}),
        ("Pleural thickening", {"Pleural Other": "present"}),
        ("Massive", {}),  # whole words alone
        ("Lungs are clear. Heart size is normal.", {"No Finding": "present"}),
        ("No acute disease. No effusion.", {"No Finding": "present", "Pleural Effusion": "absent"}),
        ("Normal heart, but there is an opacity.", {"Lung Opacity": "present"}),
        ("", {}),
    ],
)
def test_findings(text: str, found: dict[str, str]) -> None:
    assert findings(text) == found


def test_fourteen_in_their_order() -> None:
    assert len(OBSERVATIONS) == 14
    text = "Pacemaker. Fracture. Cardiomegaly. Widened mediastinum."
    assert list(findings(text)) == ["Enlarged Cardiomediastinum", "Cardiomegaly", "Fracture", "Support Devices"]


def test_a_negation_is_no_agreement() -> None:
    scores = finding_f1([("Pleural effusion.", "No pleural effusion.")])
    assert (scores.present, scores.absent) == (0.0, 0.0)
    same = finding_f1([("There is an effusion.", "Pleural effusion"), ("No edema", "Without edema")])
    assert (same.present, same.absent) == (1.0, 1.0)


def test_f1_by_hand() -> None:
    # Present: given effusion, edema; true effusion, fracture -> one of both: 2 * 1 / (2 + 2).
    scores = finding_f1([("Effusion. Edema.", "Effusion. Fracture.")])
    assert scores.present == 0.5
    assert scores.absent is None
    assert scores.by_finding["Pleural Effusion"] == 1.0
    assert scores.by_finding["Edema"] == scores.by_finding["Fracture"] == 0.0
    assert scores.by_finding["Pneumonia"] is None
    assert finding_f1([]).present is None
