"""Packed-sequence operators: documents packed in one row of tokens, no padding, no leakage between them.

Needs torch and triton only. Every operator has a readable definition beside it, in its `naive.py`.

Segment: a run of one document, `cu_seqlens` cut each so many tokens from its start. Link: the state that passes from
a segment to the next of its document. Walk: the segments that one program takes, one after the other. Schedule: the
segments of a pack at every size, in one int32 tensor. Definition: `naive.py`; reference: the fast CPU path.
"""

from packmamba_kernels.causal_conv1d.op import causal_conv1d
from packmamba_kernels.gated_rms_norm.op import gated_rms_norm
from packmamba_kernels.selective_scan.op import selective_scan

__all__ = ["causal_conv1d", "gated_rms_norm", "selective_scan"]
