"""The words of radiology that carry a report's meaning, and what each word weighs in ROUGE-Med. Pure.

    >>> weight("effusion"), weight("the"), weight("left"), weight("no")
    (2.0, 1.0, 2.0, 2.0)

A word counts TERM_WEIGHT times when it is in WORDS, else once:

| words of                                                   | why                                            |
| ---------------------------------------------------------- | ---------------------------------------------- |
| the phrases of the 14 findings (fedmed.metrics.findings)   | what a chest report is read for                |
| findings, anatomy and devices of other organs, below       | VQA-RAD's, SLAKE's and PathVQA's answers       |
| sides, zones and planes                                    | "left" for "right" is the costly mistake       |
| degrees and change                                         | "unchanged" for "worse" is another one         |
| cues of absence and doubt                                  | without them a report says the opposite        |

The list is part of the score: a number computed with another list is another score, so it grows only with LEXICON_VERSION. The
findings of the package radiology-semantic-dict (MIT) were looked at and not taken: they are sentences ("Aortic diameter greater
than 5.5 cm"), whose ordinary words would weigh as much as their terms.
"""

from __future__ import annotations

from fedmed.metrics.findings import LEXICON

LEXICON_VERSION = 1
TERM_WEIGHT = 2.0
_FUNCTION_WORDS = frozenset(["a", "an", "and", "are", "in", "is", "of", "on", "or", "the", "to", "with"])
_FINDINGS = """
abnormal abnormality abscess adenopathy aneurysm appendicitis ascites aspiration atrophy bleed bleeding bronchiectasis
bullae calcification calcifications calcified cancer carcinoma cavitary cavity cirrhosis contusion cyst cystic cysts
density diffusion dilatation dilated dilation disease displaced displacement dissection diverticula diverticulitis edematous
emboli embolism emphysema enhancement enhancing fibrosis fluid fracture gallstone gallstones gliosis granuloma
granulomatous hematoma hemorrhage hemorrhagic hernia herniation hydrocephalus hydronephrosis hyperdense hyperdensity
hyperinflation hyperintense hyperintensity hypodense hypodensity hypointense infarct infarction inflammation
interstitial ischemia ischemic lucency lymphadenopathy lymphoma malignancy melanoma metastases metastasis metastatic necrosis
necrotic normal obstruction occlusion osteophytes pathology perforation plaque pneumomediastinum pneumonitis
pneumoperitoneum polyp rupture scarring sclerosis sclerotic shift stenosis stone stones stroke thickening thrombosis
thrombus tuberculosis tumors ulcer unremarkable
"""
_ANATOMY = """
abdomen abdominal adrenal airspace airway alveolar aorta aortic appendix arch arterial arteries artery atrium axillary bladder
bone bones bony bowel brain brainstem breast bronchi bronchial bronchus cardiac cardiomediastinal cardiophrenic carina
cecum cerebellar cerebellum cerebral cervical chest clavicle clavicles colon corpus cortex cortical costophrenic cranial
diaphragm diaphragms disc duodenum endotracheal esophagus femoral femur fissure frontal gallbladder ganglia gastric heart
hemidiaphragm hemidiaphragms hemisphere hepatic hilar hila hilum hippocampus humerus ileum intestine joint kidney kidneys
larynx ligament lingula liver lobe lobes lumbar lung lungs lymph mediastinal mediastinum muscle nasogastric neck nerve
node nodes occipital orbit osseous pancreas pancreatic parenchyma parenchymal parietal pelvic pelvis pericardial
peritoneal peritoneum pituitary pleura pleural prostate pulmonary rectum renal retroperitoneal rib ribs sacral scapula
shoulder sigmoid silhouette sinus skull spinal spine spleen splenic sternal sternum stomach subcutaneous sulci temporal
thalamus thoracic thorax thyroid tissue trachea tracheal ureter uterus vasculature vein veins venous ventricle ventricles
ventricular vertebra vertebrae vertebral vessel vessels
"""
_PLACES = """
anterior apex apical axial base bases basilar bibasilar bilateral bilaterally both central coronal distal dorsal focal
diffuse inferior internal lateral left lower medial middle midline multifocal peripheral posterior proximal retrocardiac
right sagittal superior unilateral upper ventral
"""
_DEGREES = """
acute chronic decreased enlarged enlarging improved improving increased increasing large larger mild mildly minimal
moderate new old persistent progressed progression resolved severe small smaller stable unchanged worse worsened worsening
"""
_DEVICES = """
catheter clip clips defibrillator drain icd lead leads line pacemaker picc port stent sternotomy surgical suture sutures tube
tubes wires barium contrast ct fluoroscopy flair mammogram mri pet radiograph t1 t2 ultrasound xray
"""
_CUES = "no not without none absent absence free clear negative possible possibly probable probably likely may cannot"


def _words() -> frozenset[str]:
    phrases = [word for known in LEXICON.values() for phrase in known for word in phrase.split()]
    others = " ".join((_FINDINGS, _ANATOMY, _PLACES, _DEGREES, _DEVICES, _CUES)).split()
    return frozenset(phrases) - _FUNCTION_WORDS | frozenset(others)


WORDS = _words()


def weight(word: str) -> float:
    """Of a token of fedmed.metrics.scores: TERM_WEIGHT for a medical word, 1.0 for another."""
    return TERM_WEIGHT if word in WORDS else 1.0
