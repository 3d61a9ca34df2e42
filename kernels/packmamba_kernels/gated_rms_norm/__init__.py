"""The gated RMS normalisation of Mamba-2 and Mamba-3: every token by itself, so no document can see another.

Gate: silu(z). Group: the channels that are normalised together. Statistic: the reciprocal root mean square of a group.
Partial: a program's sums for the weight's gradient.
"""
