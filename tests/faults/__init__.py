"""The fault suite: each case makes one fault with real processes on this machine and compares what was seen from outside.

    python -m tests.faults [--only 3,7] [--quick] [--json]         # as root, for the mounts and network namespaces

The numbers are those of docs/faults.md. `case.py` says what a case is, `lab.py` makes processes, disks and networks and
takes them away again, `cases_*.py` hold the cases. The quick ones run in `make test` too (test_quick_faults.py).
"""
