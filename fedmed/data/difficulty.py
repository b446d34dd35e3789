"""How hard a record is, from 1 to 5, told from its own text alone. Pure.

    >>> difficulty(example_with("Is there an effusion?", "no", answer_type="closed"))
    1

| grade | the answer is                                                    |
| ----- | ---------------------------------------------------------------- |
| 1     | closed                                                           |
| 2     | open, 1 to 3 words; or one of several choices                    |
| 3     | open, 4 to 10 words                                              |
| 4     | open, 11 to 40 words                                             |
| 5     | longer                                                           |

and one more, up to 5, where the question needs several images, an earlier exchange, or more than 40 words.

The bounds are absolute on purpose: a grade that compared records with each other ("the easiest fifth") would make what is
drawn of one patient depend on the records of others, and the privacy accounting assumes that it does not.
"""

from __future__ import annotations

from fedmed.data.schema import Example

EASIEST, HARDEST = 1, 5
ANSWER_WORDS = (3, 10, 40)  # the most of grades 2, 3 and 4
QUESTION_WORDS = 40


def difficulty(example: Example) -> int:
    """The grade of the table above."""
    if example.choices:
        grade = 2
    elif example.answer_type == "closed":
        grade = EASIEST
    else:
        grade = 2 + sum(len(example.answer.split()) > most for most in ANSWER_WORDS)
    context = len(example.images) > 1 or bool(example.history) or len(example.question.split()) > QUESTION_WORDS
    return min(HARDEST, grade + context)


def effort(example: Example) -> tuple[int, int, int]:
    """By what records of one site are put in order, easiest first: the grade, then words of answer and question."""
    return difficulty(example), len(example.answer.split()), len(example.question.split())
