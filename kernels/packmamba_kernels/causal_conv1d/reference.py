"""The packed causal convolution in whole-pack tensor operations, forward and backward: the CPU path.

The pack is convolved as if it were one document, by W shifted products. That is wrong in the first W-1 tokens of each
document (their windows reach into the previous one) and, going backward, in the last W-1: those few rows are computed
again from a table that holds the document's own tokens and its initial state only, and overwrite the wrong ones. So a
reset is a choice of rows, never a multiplication by zero, and a NaN stays in its document.

The products run over blocks of rows that fit a core's cache: a fresh temporary of the pack's size costs more in page
faults than the arithmetic on it. The SiLU is written with `exp`: torch's `silu` and `sigmoid` round differently in the
vectorised part of a tensor and in its remainder, so a document's bits would depend on its place in the pack.

T tokens in a pack · S sequences (documents) · E channels · W width of the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from packmamba_kernels.causal_conv1d.inputs import ConvGradients, ConvInputs, ConvOptions, ConvResults


@dataclass(frozen=True)
class _Edges:
    """The first and the last W-1 tokens of each document, as rows of the pack."""

    head: Tensor
    """int64 (S, W-1): token 0 to W-2 of each document; rows past the document's end are clamped into the pack."""
    in_head: Tensor
    """bool (S, W-1): whether the document is long enough to have that token."""
    tail: Tensor
    """int64 (S, W-1): the last W-1 tokens of each document; rows before its start are clamped into the pack."""
    in_tail: Tensor
    """bool (S, W-1): whether the document is long enough to have that token."""
    from_history: Tensor
    """int64 (S, W-1): where it is not, the slot of the initial state that stands there; else clamped to the last."""


def _edges(cu_seqlens: Tensor, num_tokens: int, width: int) -> _Edges:
    bos, eos = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    slots = torch.arange(width - 1, device=cu_seqlens.device)
    head = bos + slots
    tail = eos - (width - 1) + slots
    return _Edges(
        head=head.clamp(max=num_tokens - 1),
        in_head=head < eos,
        tail=tail.clamp(min=0),
        in_tail=tail >= bos,
        from_history=(eos - bos + slots).clamp(max=width - 2),
    )


def _history(x: Tensor, initial_states: Tensor | None, num_seqs: int, width: int) -> Tensor:
    """(S, W-1, E): the inputs before each document's first token."""
    if initial_states is None:
        return x.new_zeros(num_seqs, width - 1, x.shape[1])
    return initial_states.to(x.dtype).transpose(1, 2)


def _head_windows(x: Tensor, history: Tensor, edges: _Edges) -> Tensor:
    """(S, 2(W-1), E): each document's initial state, then its first W-1 tokens."""
    return torch.cat([history, x[edges.head]], dim=1)


def _row_blocks(x: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows: 32 Ki elements for each thread, torch's grain of parallel work."""
    rows = max(1, 32_768 * torch.get_num_threads() // x.shape[1])
    for start in range(0, x.shape[0], rows):
        yield start, min(start + rows, x.shape[0])


def _convolve_rows(x: Tensor, start: int, end: int, filters: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Preactivations of the rows start to end into out, as if the pack were one document."""
    last = filters.shape[0] - 1
    torch.mul(x[start:end], filters[last], out=out)
    if bias is not None:
        out += bias
    for k in range(1, last + 1):
        first = max(start, k)
        if first < end:
            out[first - start :].addcmul_(x[first - k : end - k], filters[last - k])
    return out


def _convolve_heads(windows: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """(S, W-1, E): preactivations of each document's first W-1 tokens, summed in the same order."""
    last = filters.shape[0] - 1
    y = windows[:, last:] * filters[last]
    if bias is not None:
        y += bias
    for k in range(1, last + 1):
        y.addcmul_(windows[:, last - k : -k], filters[last - k])
    return y


def _silu_(y: Tensor) -> Tensor:
    return y.div_(y.neg().exp_().add_(1))


def _silu_gradient(y: Tensor) -> Tensor:
    """d silu(y) / dy = σ(y) (1 + y (1 - σ(y)))."""
    sigmoid = y.neg().exp_().add_(1).reciprocal_()
    return (1 - sigmoid).mul_(y).add_(1).mul_(sigmoid)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def forward(inputs: ConvInputs, cu_seqlens: Tensor, options: ConvOptions) -> ConvResults:
    x, weight, bias, initial_states = inputs
    dtype = x.dtype
    x = x.to(_compute_dtype(x))
    width = weight.shape[1]
    filters = weight.to(x.dtype).T.contiguous()
    bias = None if bias is None else bias.to(x.dtype)
    edges = _edges(cu_seqlens, x.shape[0], width)
    history = _history(x, initial_states, cu_seqlens.shape[0] - 1, width)

    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for start, end in _row_blocks(x):
        y = _convolve_rows(x, start, end, filters, bias, out[start:end])
        if options.activation == "silu":
            _silu_(y)
    y_head = _convolve_heads(_head_windows(x, history, edges), filters, bias)
    if options.activation == "silu":
        _silu_(y_head)
    out[edges.head[edges.in_head]] = y_head[edges.in_head]

    final = out.new_empty(0)
    if options.return_final_states:
        slots = edges.from_history[..., None].expand(-1, -1, x.shape[1])
        final = torch.where(edges.in_tail[..., None], x[edges.tail], history.gather(1, slots)).transpose(1, 2)
    return ConvResults(out.to(dtype), final.to(dtype).contiguous())


def backward(
    dout: Tensor, dfinal_states: Tensor | None, inputs: ConvInputs, cu_seqlens: Tensor, options: ConvOptions
) -> ConvGradients:
    """The preactivation is computed again. With p its gradient, dx[t] = Σ_k weight[:, W-1-k] · p[t + k] and
    dweight[:, W-1-k] = Σ_t p[t] · x[t - k], both inside the document."""
    x, weight, bias, initial_states = inputs
    dtype = x.dtype
    x = x.to(_compute_dtype(x))
    p = dout.to(x.dtype)
    last = weight.shape[1] - 1
    filters = weight.to(x.dtype).T.contiguous()
    edges = _edges(cu_seqlens, x.shape[0], last + 1)
    windows = _head_windows(x, _history(x, initial_states, cu_seqlens.shape[0] - 1, last + 1), edges)
    if options.activation == "silu":
        p = _times_silu_gradient(p, x, filters, None if bias is None else bias.to(x.dtype), windows, edges)
    p_head = p[edges.head].masked_fill_(~edges.in_head[..., None], 0)
    nothing = torch.zeros_like(p_head)
    p_tail = torch.cat([p[edges.tail], nothing], dim=1)  # nothing after a document's end
    dfinal = None if dfinal_states is None else dfinal_states.to(x.dtype).transpose(1, 2)

    dfilters = _filter_gradient(p, x, p_head, windows, edges)
    dbias = None if bias is None else p.sum(0).to(bias.dtype)

    dx = p if options.activation == "silu" else torch.empty_like(p)  # p is not read behind the block that is written
    for start, end in _row_blocks(x):
        rows = p[start:end] * filters[last]
        for k in range(1, last + 1):
            later = p[start + k : end + k]
            rows[: later.shape[0]].addcmul_(later, filters[last - k])
        dx[start:end] = rows
    dx_tail = p_tail[:, :last] * filters[last]
    for k in range(1, last + 1):
        dx_tail.addcmul_(p_tail[:, k : k + last], filters[last - k])
    if dfinal is not None:
        dx_tail += dfinal
    dx[edges.tail[edges.in_tail]] = dx_tail[edges.in_tail]

    dinitial = None
    if initial_states is not None:
        padded = torch.cat([nothing, p_head], dim=1)  # slot j of the state meets token j - (W-1) + k at tap W-1-k
        dhistory = padded[:, :last] * filters[last]
        for k in range(1, last + 1):
            dhistory.addcmul_(padded[:, k : k + last], filters[last - k])
        if dfinal is not None:
            for j in range(last):  # a short document's final state reaches back into its initial state
                rows = ~edges.in_tail[:, j]
                dhistory[rows, edges.from_history[rows, j]] += dfinal[rows, j]
        dinitial = dhistory.transpose(1, 2).to(initial_states.dtype).contiguous()

    dweight = dfilters.T.to(weight.dtype).contiguous()
    return ConvGradients(dx.to(dtype), dweight, dbias, dinitial)


def _times_silu_gradient(
    dout: Tensor, x: Tensor, filters: Tensor, bias: Tensor | None, windows: Tensor, edges: _Edges
) -> Tensor:
    """(T, E): the gradient of the preactivations, which are computed again."""
    p = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for start, end in _row_blocks(x):
        y = _convolve_rows(x, start, end, filters, bias, p[start:end])
        torch.mul(_silu_gradient(y), dout[start:end], out=y)
    y_head = _convolve_heads(windows, filters, bias)
    p_head = _silu_gradient(y_head).mul_(dout[edges.head])
    p[edges.head[edges.in_head]] = p_head[edges.in_head]
    return p


def _filter_gradient(p: Tensor, x: Tensor, p_head: Tensor, windows: Tensor, edges: _Edges) -> Tensor:
    """(W, E): Σ_t p[t] · x[t - k] for each tap; where t - k lies before the document, the initial state's slot."""
    last = p_head.shape[1]
    blocks = list(_row_blocks(x))
    starts = torch.tensor([start for start, _ in blocks] + [x.shape[0]], device=x.device)
    dfilters = x.new_zeros(last + 1, x.shape[1])
    for k in range(last + 1):
        reaching_back = edges.head[:, :k][edges.in_head[:, :k]]  # tokens 0 to k-1 of each document, in order
        splits = torch.searchsorted(reaching_back, starts).tolist()
        for i, (start, end) in enumerate(blocks):
            first = max(start, k)
            if first < end:
                products = p[first:end] * x[first - k : end - k]
                if splits[i] < splits[i + 1]:
                    rows = reaching_back[splits[i] : splits[i + 1]]
                    products[rows[rows >= first] - first] = 0
                dfilters[last - k] += products.sum(0)
        own = p_head[:, :k] * windows[:, last - k : last]  # (S, k, E)
        dfilters[last - k] += own.masked_fill_(~edges.in_head[:, :k, None], 0).sum((0, 1))
    return dfilters
