"""The definition of the packed causal convolution, to be read aloud. Every other implementation is tested against it.

T tokens in a pack · S sequences (documents) · E channels · W width of the convolution.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_conv1d_naive(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    activation: str | None = None, cu_seqlens: Tensor | None = None, initial_states: Tensor | None = None,
    return_final_states: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """out[t] = activation(bias + Σ_w weight[:, w] · x[t - (W-1) + w]), the sum staying inside t's document.

    x: (T, E). weight: (E, W). bias: (E,). initial_states: (S, E, W-1), the inputs that came before each document's
    first token, zeros where not given. activation: None or "silu". Computed in fp32 (fp64 for fp64 x).

    Returns out (T, E) in x's dtype; with `return_final_states` also the last W-1 inputs of each document (S, E, W-1),
    which reach back into its initial state where the document is shorter than that.

    The convolution is that of the Mamba block (Gu & Dao, arXiv 2312.00752, figure 3), one filter for each channel.
    """
    compute_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    num_tokens, channels = x.shape
    width = weight.shape[1]
    filters = weight.to(compute_dtype).T  # (W, E)
    bounds = [0, num_tokens] if cu_seqlens is None else cu_seqlens.tolist()
    outputs, final_states = [], []
    for s, (bos, eos) in enumerate(pairwise(bounds)):
        history = x.new_zeros(width - 1, channels) if initial_states is None else initial_states[s].T
        document = torch.cat([history.to(compute_dtype), x[bos:eos].to(compute_dtype)])
        for t in range(eos - bos):
            window = document[t : t + width]  # (W, E): tokens t-(W-1) to t of the document
            y = (filters * window).sum(0)
            if bias is not None:
                y = y + bias.to(compute_dtype)
            outputs.append(F.silu(y) if activation == "silu" else y)
        final_states.append(document[eos - bos :].T)
    out = torch.stack(outputs).to(x.dtype)
    return (out, torch.stack(final_states).to(x.dtype)) if return_final_states else out
