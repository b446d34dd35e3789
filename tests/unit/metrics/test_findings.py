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


PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
# As reports say it; what each says was written down before the rules read it.
SENTENCES = [
    ("No change in the right pleural effusion.", {"Pleural Effusion": PRESENT}),
    ("No significant interval change in cardiomegaly.", {"Cardiomegaly": PRESENT}),
    ("Without significant change in multifocal opacities.", {"Lung Opacity": PRESENT}),
    ("Small pleural effusions are not significantly changed.", {"Pleural Effusion": PRESENT}),
    ("Not without some residual effusion.", {"Pleural Effusion": PRESENT}),
    ("The effusion has not resolved.", {"Pleural Effusion": PRESENT}),
    ("The right pneumothorax has nearly resolved.", {"Pneumothorax": PRESENT}),
    ("Interval resolution of the left effusion.", {"Pleural Effusion": ABSENT}),
    ("The nodule seen before is no longer visualized.", {"Lung Lesion": ABSENT}),
    ("PICC has been removed.", {"Support Devices": ABSENT}),
    ("Neither effusion nor pneumothorax is identified.", {"Pneumothorax": ABSENT, "Pleural Effusion": ABSENT}),
    ("There is nothing to suggest pneumonia.", {"Pneumonia": ABSENT}),
    ("No focal opacity that may represent pneumonia.", {"Lung Opacity": ABSENT, "Pneumonia": ABSENT}),
    ("No consolidation concerning for pneumonia.", {"Consolidation": ABSENT, "Pneumonia": ABSENT}),
    ("The heart is not enlarged.", {"Cardiomegaly": ABSENT}),
    ("The cardiac silhouette is mildly enlarged.", {"Cardiomegaly": PRESENT}),
    (
        "Lungs without effusion, pneumothorax or edema",
        {"Edema": ABSENT, "Pneumothorax": ABSENT, "Pleural Effusion": ABSENT},
    ),
    ("Rule out pneumonia.", {"Pneumonia": UNCERTAIN}),
    ("Evaluate for pneumothorax.", {"Pneumothorax": UNCERTAIN}),
    ("It is not possible to exclude a small pneumothorax.", {"Pneumothorax": UNCERTAIN}),
    ("An infection cannot be completely excluded.", {"Pneumonia": UNCERTAIN}),
    ("An effusion cannot be ruled out.", {"Pleural Effusion": UNCERTAIN}),
    ("Pneumonia is unlikely.", {"Pneumonia": UNCERTAIN}),
    ("Opacity likely reflects atelectasis.", {"Lung Opacity": PRESENT, "Atelectasis": UNCERTAIN}),
    ("No pneumothorax, likely atelectasis.", {"Atelectasis": UNCERTAIN, "Pneumothorax": ABSENT}),
    ("No pneumothorax, and there is an effusion.", {"Pneumothorax": ABSENT, "Pleural Effusion": PRESENT}),
    ("The pneumothorax has resolved, and there is a fracture.", {"Pneumothorax": ABSENT, "Fracture": PRESENT}),
    ("No acute fracture; the tracheostomy is in place.", {"Fracture": ABSENT, "Support Devices": PRESENT}),
]


@pytest.mark.parametrize(("text", "found"), SENTENCES)
def test_a_cue_inside_another_cue_is_read_as_what_it_says(text: str, found: dict[str, str]) -> None:
    known = findings(text)
    known.pop("No Finding", None)
    assert known == found


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
