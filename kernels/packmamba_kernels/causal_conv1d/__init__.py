"""The packed causal convolution of Mamba.

Tap: one of a channel's W filter weights. History: the W-1 inputs before a segment's first token. Head, tail: the first
and the last W-1 tokens of a document. Partial: a program's sums for the gradients of filters and bias.
"""
