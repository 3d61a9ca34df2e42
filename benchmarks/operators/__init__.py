"""The operators' time, host time, counters and accuracy, and the loss's memory.

T tokens in a pack · E channels · N states · W convolution width. lengths: a distribution of document lengths, by name.
"""
