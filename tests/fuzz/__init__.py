"""Parsers of what comes from outside, fed with damaged input: nothing but a named error of fedmed.errors may come out.

    python -m tests.fuzz [--inputs 5000] [--only task,ledger] [--seed 0]         # `make fuzz`

Input number N of a target follows from the target, the seed and N alone, so a finding is repeated with --only and --input N.
Own mutations instead of hypothesis: they know the formats (a frame whose hash is right again, a ledger line that is sealed), and
make 100,000 inputs in minutes, which its shrinking and bookkeeping do not.
"""
