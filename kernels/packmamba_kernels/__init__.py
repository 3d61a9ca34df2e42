"""Packed-sequence operators: documents packed in one row of tokens, no padding, no leakage between them.

Needs torch and triton only. Every operator has a readable definition beside it, in its `naive.py`.
"""

from packmamba_kernels.causal_conv1d.op import causal_conv1d
from packmamba_kernels.selective_scan.op import selective_scan

__all__ = ["causal_conv1d", "selective_scan"]
