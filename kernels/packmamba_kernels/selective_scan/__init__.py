"""The packed selective scan of Mamba-1.

Sweep: a pass of the backward over a segment's tokens, forward for h, reverse for its gradient g. Chunk: 64 tokens of a
segment, after which the backward's running sums restart. Inflow: the part of dλ that the forward sweep knows. Parts:
sums that each program leaves for `finish` to add. Matrix: states of eight channels together (`layout.py`).
"""
