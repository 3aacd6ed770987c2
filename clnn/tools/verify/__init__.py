"""`clnn verify`: whether this device computes right, family by family of kernels, and how fast; made to be pasted into an issue.

`run.py` is the parent: it starts a process for each family, so that a driver's crash ends one of them only. `worker.py` is
that process; `families.py` says what is computed, `references.py` what comes out in float64, `speed.py` what is timed.
"""
