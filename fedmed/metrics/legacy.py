"""The scores of published medical VQA evaluators, bug for bug, so that old tables can be compared with. Pure functions.

    >>> llava_med_closed([("no", "yes"), ("yes", "yes")])        # the wrong answer is not counted at all
    1.0
    >>> prefix_bleu1("left", "felt")                             # the same letters
    1.0

Never the number to report: beside each stands the corrected one (fedmed.metrics.scores, fedmed.metrics.choices).

| legacy                  | of, there called          | what is wrong with it                                  | corrected       |
| ----------------------- | ------------------------- | ------------------------------------------------------ | --------------- |
| llava_med_closed        | LLaVA-Med, yes/no         | substrings ("no" is in "abnormal"); a wrong answer     | closed_accuracy |
|                         | accuracy                  | that holds yes or no is in neither hits nor count      |                 |
| llava_med_exact_match   | LLaVA-Med, exact match    | share of the answer's words in the truth: precision    | exact_match     |
| llava_med_f1            | LLaVA-Med, F1, precision, | a word of both counts as often as the answer has it,   | token_f1,       |
|                         | recall (open)             | however often the truth does                           | token_recall    |
| llava_med_bleu          | LLaVA-Med, BLEU-n         | the n-gram precision alone, times the brevity penalty  | sacrebleu's     |
| llava_med_open_accuracy | LLaVA-Med, open accuracy  | the nearest of all answers of the test set, which the  | accuracy        |
|                         |                           | model is not shown; ties go to the first               |                 |
| pmc_vqa_choice          | MedVInT, in the paper     | the choice most like the text by difflib, whatever it  | choice_accuracy |
|                         |                           | says                                                   |                 |
| pmc_vqa_letter          | MedVInT-TE, test.py       | the letter most like the text: of several capitals in  | choice_accuracy |
|                         |                           | it the first of the alphabet, so "B: Aorta" is A       |                 |
| pmc_vqa_last_character  | MedVInT-TD, test.py       | of the text only the last character is looked at       | choice_accuracy |
| prefix_bleu1            | prefix-tuned VQA, BLEU    | of characters: each letter of the truth is a reference | sacrebleu's     |
|                         |                           | of its own, so it counts once; nothing is too short    |                 |
| prefix_accuracy         | prefix-tuned VQA          | none, but that "Yes." is not "yes"                     | accuracy        |

Sources: microsoft/LLaVA-Med, llava/eval/run_eval.py of version 1.0 (Li et al., NeurIPS 2023); xiaoman-zhang/PMC-VQA, test.py of
both models, and their paper (Zhang et al., arXiv 2305.10415); tjvsonsbeek/open-ended-medical-vqa, predict.py (van Sonsbeek et al.,
MICCAI 2023).
What was computed there by NLTK's sentence_bleu is written out here, and tested against it.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from string import ascii_uppercase

from fedmed.metrics.scores import ngrams

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # re.UNICODE stands where the count of replacements belongs
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS.split())}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """A contraction that lacks one of its apostrophes -> the whole one."""
    lacking = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTED.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return lacking | {"somebody'd": "somebodyd"}  # the other way about, as published


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 15)
def vqa_words(text: str) -> str:
    """A text as LLaVA-Med's evaluator compares it: lower case, most punctuation gone, number words as digits, no articles."""
    cleaned, glue = text, _THOUSANDS.search(text) is not None
    for mark in _PUNCTUATION:
        apart = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if apart or glue else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned, count=_PERIODS).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES).replace(",", "")


def llava_med_closed(pairs: Iterable[tuple[str, str]]) -> float:
    """Over all (answer, truth) of closed questions; 0.0 where nothing was counted."""
    counted: list[int] = []
    for answer, truth in ((vqa_words(answer.lower()), vqa_words(truth.lower())) for answer, truth in pairs):
        if "yes" not in answer and "no" not in answer:
            counted.append(0)
        elif truth in answer:
            counted.append(1)
    return sum(counted) / len(counted) if counted else 0.0


def llava_med_exact_match(answer: str, truth: str) -> float:
    """Different words of the truth that are in the answer, over the answer's words; 0.0 for an answer without words."""
    given, expected = _twice(answer), _twice(truth)
    return sum(word in given for word in expected) / given.total() if given else 0.0


def llava_med_f1(answer: str, truth: str) -> tuple[float, float, float]:
    """(F1, precision, recall); its recall is the published score of open questions."""
    given, expected = _twice(answer), _twice(truth)
    shared = sum(count for word, count in given.items() if word in expected)
    if not shared:
        return 0.0, 0.0, 0.0
    missed = sum(count for word, count in expected.items() if word not in given)
    precision, recall = shared / given.total(), shared / (shared + missed)
    return 2 * precision * recall / (precision + recall), precision, recall


def llava_med_bleu(answer: str, truth: str, order: int = 0) -> float:
    """BLEU-`order` of 1, 2 or 3 as published; 0 is the mean over 1 to 4, unsmoothed."""
    given, expected = vqa_words(answer.lower()).split(), vqa_words(truth.lower()).split()
    precisions = [_precision(given, [expected], n) for n in (1, 2, 3, 4)]
    if not precisions[0]:
        return 0.0
    # NLTK takes the smallest positive float for no n-gram in common.
    logs = [math.log(precision or sys.float_info.min) for precision in precisions]
    brevity = min(0.0, 1 - len(expected) / len(given))
    return math.exp(brevity + (logs[order - 1] if order else math.fsum(logs) / 4))


def llava_med_open_accuracy(answer: str, truth: str, candidates: Sequence[str]) -> bool:
    """Whether the candidate of whose words the largest share is in the answer, the first of several, is the truth.

    Raises:
        ValueError: no candidates.
    """
    given, known = _twice(answer), [vqa_words(candidate) for candidate in candidates]
    shares = [_share(given, set(candidate.split())) for candidate in known]
    return known[shares.index(max(shares))] == vqa_words(vqa_words(truth.lower()))


def pmc_vqa_choice(answer: str, truth: str, choices: Sequence[str]) -> bool:
    """Whether answer and truth are most like the same of the choices; both None (like no choice at all) is a hit too."""
    return _nearest(choices, answer) == _nearest(choices, truth)


def pmc_vqa_letter(answer: str, truth: int, count: int) -> bool:
    """Whether of the letters of `count` choices the answer is most like that of the right one, in place `truth` from 0."""
    return _nearest(ascii_uppercase[:count], answer) == truth


def pmc_vqa_last_character(answer: str, truth: str, choices: Sequence[str]) -> bool:
    """`pmc_vqa_choice` of the answer's last character. Raises IndexError for an empty answer, as published."""
    return pmc_vqa_choice(answer[-1], truth, choices)


def prefix_bleu1(answer: str, truth: str) -> float:
    """Different characters of the answer that the truth has too, over the answer's characters; 0.0 for none."""
    return _precision(list(answer), [[letter] for letter in truth], 1) if answer and truth else 0.0


def prefix_accuracy(answer: str, truth: str) -> bool:
    """Whether they are equal in lower case."""
    return answer.lower() == truth.lower()


def _twice(text: str) -> Counter[str]:
    """The words of a text that was normalised before it was handed over, and is again."""
    return Counter(vqa_words(vqa_words(text.lower())).split())


def _share(given: Counter[str], words: set[str]) -> float:
    return sum(word in words for word in given) / len(words) if words else 0.0


def _precision(given: Sequence[str], references: Sequence[Sequence[str]], n: int) -> float:
    """BLEU's clipped n-gram precision (Papineni et al., 2002)."""
    own = Counter(ngrams(given, n))
    known = [Counter(ngrams(reference, n)) for reference in references]
    clipped = sum(min(count, max(counts[gram] for counts in known)) for gram, count in own.items())
    return clipped / max(1, own.total())


def _nearest(choices: Sequence[str], text: str) -> int | None:
    """The first choice of the highest ratio above 0."""
    ratios = [difflib.SequenceMatcher(None, choice, text).ratio() for choice in choices]
    best = max(ratios, default=0.0)
    return ratios.index(best) if best > 0 else None
