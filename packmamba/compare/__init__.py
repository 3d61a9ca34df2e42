"""Training packed, padded and one document at a time, on the same documents, timed.

mode: a way to make batches of the documents (`modes.py`). pass: training once on all of them. case: a model, documents
and a capacity. peer: another package's mixers in the same model (`peers.py`). sweep: all combinations of several cases
and modes (`sweep.py`). share: the part of a step that layers of one kind take (`breakdown.py`).
"""
