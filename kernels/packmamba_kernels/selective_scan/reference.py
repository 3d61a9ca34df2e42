"""The packed selective scan on a CPU: vectorised torch, with its backward written out.

All 64-token chunks of the pack advance together, longest first, so that those still running at step i are a prefix: 64
vectorised steps whatever the pack, slices and no masks. A chunk that continues its document starts from the state
its predecessor ends with: a first pass finds what each chunk adds to a state and by how much the state decays across
it, the chunks of one document are folded in order (all documents at once), and a second pass runs from true states.

The backward stores no states but those at chunk starts. With λ_t = Δ_t A, b_t = Δ_t u_t B_t, c_t = dy_t C_t and g_t the
gradient of h_t, the gradient of λ obeys dλ_t = dλ_{t+1} + c_t (a_t h_{t-1}) - b_t (a_{t+1} g_{t+1}): a running sum from
the end, so h is needed only in a forward sweep and g only in a reverse one. (With h_t and g_t in the brackets it is the
same sum; then c_t b_t, which is all there is where states decay at once, would be added and subtracted.) The sums
restart at every chunk's end from the exact value (a g)_{next} h_end. Hence dΔ_t = Σ_n A dλ_t + u_t Σ_n g_t B_t, and
dA = Σ_t Δ_t dλ_t, where what a token s adds counts with the sum of Δ from the chunk's start to s.

T tokens in a pack · S sequences (documents) · E channels · N states of a channel · G groups of B and C · L lanes,
E/G rounded up to 64 · K chunks. "Rows" are tokens in step order: the first token of every chunk, the second, ….
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from packmamba_kernels.schedule import CHUNK, Segments
from packmamba_kernels.selective_scan.inputs import ScanGradients, ScanInputs, ScanOptions, ScanResults

_LOG2_E = 1.4426950408889634
_LANES = 64
_BLOCK = 32768


class _Rows:
    """The pack as rows in step order, and how chunks follow each other."""

    def __init__(self, segments: Segments, channels: int, groups: int, dtype: torch.dtype):
        start, length = segments.start.long(), segments.length.long()
        cu_segments, order = segments.cu_segments.long(), segments.order.long()
        self.groups, self.width, self.dtype = groups, channels // groups, dtype
        self.lanes = -(-self.width // _LANES) * _LANES
        self.slots, self.chunks = order.shape[0], int(cu_segments[-1])
        order, length = order[: self.chunks], length[: self.chunks]
        # Step i has the chunks longer than i; they are the first `running` of the order.
        running = self.chunks - torch.bincount(length, minlength=CHUNK + 1).cumsum(0)[:CHUNK]
        offsets = F.pad(running.cumsum(0), (1, 0))
        self.steps = [(o, k) for o, k in zip(offsets.tolist(), running.tolist(), strict=False) if k > 0]
        count = {"dtype": torch.int64, "device": order.device}
        step = torch.arange(CHUNK, **count).repeat_interleave(running)
        chunk = torch.arange(step.shape[0], **count) - offsets[step]
        self.token = start[order[chunk]] + step
        self.row = torch.empty_like(self.token).index_copy_(0, self.token, torch.arange(step.shape[0], **count))
        self.end = self.row[start[order] + length[order] - 1]
        # Place of each segment in the order; a document's segments are neighbours in token order.
        place = torch.empty_like(order).index_copy_(0, order, torch.arange(self.chunks, **count))
        counts = cu_segments.diff()
        self.first, self.last = place[cu_segments[:-1]], place[cu_segments[1:] - 1]
        self.followed = self.chunks - counts.shape[0]  # the first of the order: chunks that another one follows
        by_count, document = torch.sort(counts, descending=True, stable=True)
        self.links = []
        for j in range(1, int(by_count[0])):
            linked = cu_segments[document[: int((by_count > j).sum())]] + j
            self.links.append((place[linked - 1], place[linked]))

    def pack(self, x: Tensor) -> Tensor:
        """(T, E) -> rows (T, 1, G, L)."""
        return self.spread(x.index_select(0, self.token)).unsqueeze(1)

    def unpack(self, rows: Tensor, like: Tensor) -> Tensor:
        """Rows (T, 1, G, L) -> (T, E) in the dtype of `like`."""
        return self.gather(rows.squeeze(1)).to(like.dtype).index_select(0, self.row)

    def pack_matrix(self, x: Tensor) -> Tensor:
        """B or C, (T, N) or (T, G, N) -> rows (T, N, G, 1)."""
        x = x.index_select(0, self.token).to(self.dtype)
        return x.view(x.shape[0], self.groups, -1).mT.contiguous().unsqueeze(-1)

    def unpack_matrix(self, rows: Tensor, like: Tensor) -> Tensor:
        """Rows (T, N, G) -> the shape and dtype of B or C."""
        return rows.mT.to(like.dtype).index_select(0, self.row).view(like.shape)

    def spread(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., G, L): channels by group, with zeros up to L."""
        x = x.to(self.dtype).unflatten(-1, (self.groups, self.width))
        return F.pad(x, (0, self.lanes - self.width)).contiguous()

    def gather(self, x: Tensor) -> Tensor:
        """(..., G, L) -> (..., E)."""
        return x[..., : self.width].flatten(-2)


def forward(inputs: ScanInputs, segments: Segments, options: ScanOptions) -> ScanResults:
    """segments: of CHUNK tokens."""
    u, delta, A, B, C, D, z, delta_bias, initial_states = inputs
    rows = _Rows(segments, u.shape[1], inputs.num_groups, state_dtype(u))
    A2 = rows.spread(A.T) * _LOG2_E  # (N, G, L), so that exp2 gives the decay
    x = rows.pack(u)
    step = _step(rows, delta, delta_bias, options.delta_softplus)
    drive = step * x
    B_rows, C_rows = rows.pack_matrix(B), rows.pack_matrix(C)

    state = A2.new_zeros(rows.chunks, *A2.shape)  # (K, N, G, L)
    decay, scratch = torch.empty_like(state), _half(state)
    if initial_states is not None:
        state[rows.first] = rows.spread(initial_states.mT)
    if rows.links:
        k = rows.followed
        added, total = torch.zeros_like(state[:k]), torch.zeros_like(step[:k])
        for o, _ in rows.steps:
            _decay(step[o : o + k], A2, decay[:k])
            added.mul_(decay[:k]).addcmul_(drive[o : o + k], B_rows[o : o + k])
            total.add_(step[o : o + k])
        _decay(total, A2, decay[:k])
        for before, after in rows.links:
            state[after] = torch.addcmul(added[before], decay[before], state[before])
    starts = F.pad(rows.gather(state), (0, 0, 0, 0, 0, rows.slots - rows.chunks)).clone()

    y = torch.empty_like(x)
    for o, k in rows.steps:
        _decay(step[o : o + k], A2, decay[:k])
        state[:k].mul_(decay[:k]).addcmul_(drive[o : o + k], B_rows[o : o + k])
        y[o : o + k] = _dot(state[:k], C_rows[o : o + k], scratch[:k])
    if D is not None:
        y.addcmul_(rows.spread(D), x)
    if z is not None:
        gate = rows.pack(z)
        y.mul_(gate).mul_(_sigmoid(gate))
    final = rows.gather(state[rows.last]).mT.contiguous() if options.return_final_states else state.new_empty(0)
    return ScanResults(rows.unpack(y, u), final, starts)


def backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    inputs: ScanInputs,
    starts: Tensor,
    segments: Segments,
    options: ScanOptions,
) -> ScanGradients:
    """starts: as the forward's result."""
    u, delta, A, B, C, D, z, delta_bias, initial_states = inputs
    rows = _Rows(segments, u.shape[1], inputs.num_groups, state_dtype(u))
    A_rows = rows.spread(A.T)
    A2 = A_rows * _LOG2_E
    x = rows.pack(u)
    step = _step(rows, delta, delta_bias, options.delta_softplus)
    drive = step * x
    B_rows, C_rows = rows.pack_matrix(B), rows.pack_matrix(C)
    dy = rows.pack(dout)
    dgate = dz = gate = sigmoid = None
    if z is not None:
        gate = rows.pack(z)
        sigmoid = _sigmoid(gate)
        dgate = dy * sigmoid * (1 + gate * (1 - sigmoid))  # times y, once y is known
        dy = dy * gate * sigmoid
    elapsed = torch.empty_like(step)  # Σ Δ from the chunk's start to the token, inclusive
    for i, (o, k) in enumerate(rows.steps):
        elapsed[o : o + k] = step[o : o + k] if i == 0 else step[o : o + k] + elapsed[rows.steps[i - 1][0] :][:k]

    # Forward sweep: h.
    state = rows.spread(starts[: rows.chunks]).clone()
    decay, product, scratch = torch.empty_like(state), torch.empty_like(state), _half(state)
    dA = torch.zeros_like(state)
    dC = C_rows.new_empty(C_rows.shape[:-1])
    y, inflow = torch.empty_like(x), torch.empty_like(x)  # inflow: what a token adds to Σ_n A dλ
    # What each chunk hands to the one before: Π a from its start, and Σ_t of that product times c.
    weight, passed = (torch.ones_like(state), torch.zeros_like(state)) if rows.links else (None, None)
    for o, k in rows.steps:
        here = slice(o, o + k)
        _decay(step[here], A2, decay[:k])
        state[:k].mul_(decay[:k])
        torch.mul(state[:k], C_rows[here], out=product[:k])
        dA[:k].addcmul_(product[:k], elapsed[here] * dy[here])
        torch.mul(_dot(product[:k], A_rows, scratch[:k]), dy[here], out=inflow[here])
        state[:k].addcmul_(drive[here], B_rows[here])
        if weight is not None and passed is not None:
            weight[:k].mul_(decay[:k])
            torch.mul(weight[:k], C_rows[here], out=product[:k])
            passed[:k].addcmul_(product[:k], dy[here])
        torch.mul(state[:k], dy[here], out=product[:k])
        torch.sum(product[:k], -1, out=dC[here])
        y[here] = _dot(state[:k], C_rows[here], scratch[:k])
    skip = None if D is None else rows.spread(D)
    if skip is not None:
        y.addcmul_(skip, x)
    if z is not None and dgate is not None:
        dz = rows.unpack(dgate * y, z)
    out = None
    if options.return_out:
        out = rows.unpack(y if gate is None or sigmoid is None else y.mul_(gate).mul_(sigmoid), u)
    del y

    # The gradients of states at chunk ends, folded from the documents' ends.
    grad = torch.zeros_like(state)
    if dfinal_states is not None:
        grad[rows.last] = rows.spread(dfinal_states.mT)
    if weight is not None and passed is not None:
        for before, after in reversed(rows.links):
            grad[before] = torch.addcmul(passed[after], weight[after], grad[after])
        del weight, passed

    # Reverse sweep: g. `running` is Σ_n A dλ, restarted at every chunk's end.
    state *= grad
    dA.addcmul_(state, elapsed[rows.end])
    running = _dot(state, A_rows, scratch).clone()
    del state
    dB = torch.empty_like(dC)
    du, dstep = torch.empty_like(x), torch.empty_like(x)
    for o, k in reversed(rows.steps):
        here = slice(o, o + k)
        _decay(step[here], A2, decay[:k])
        torch.mul(grad[:k], B_rows[here], out=product[:k])
        dA[:k].addcmul_(product[:k], elapsed[here] * drive[here], value=-1)
        running[:k].add_(inflow[here]).addcmul_(drive[here], _dot(product[:k], A_rows, scratch[:k]), value=-1)
        grad[:k].addcmul_(C_rows[here], dy[here])
        torch.mul(grad[:k], drive[here], out=product[:k])
        torch.sum(product[:k], -1, out=dB[here])
        g_B = _dot(grad[:k], B_rows[here], scratch[:k])
        torch.addcmul(running[:k], x[here], g_B, out=dstep[here])
        torch.mul(g_B, step[here], out=du[here])
        grad[:k].mul_(decay[:k])
    if skip is not None:
        du += skip * dy
    if options.delta_softplus:
        dstep *= _blockwise(torch.expm1, -step).neg_()  # the sigmoid of softplus's argument
    return ScanGradients(
        rows.unpack(du, u),
        rows.unpack(dstep, delta),
        rows.gather(dA.sum(0)).T.contiguous().to(A.dtype),
        rows.unpack_matrix(dB, B),
        rows.unpack_matrix(dC, C),
        None if D is None else rows.gather((dy * x).sum(0)).view_as(D).to(D.dtype),
        dz,
        None if delta_bias is None else rows.gather(dstep.sum(0)).view_as(delta_bias).to(delta_bias.dtype),
        None if initial_states is None else rows.gather(grad[rows.first]).mT.contiguous(),
        out,
    )


def state_dtype(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _step(rows: _Rows, delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """Δ in rows."""
    step = rows.pack(delta)
    if delta_bias is not None:
        step += rows.spread(delta_bias)
    if delta_softplus:
        smooth = _blockwise(torch.log1p, _blockwise(torch.exp2, step.clamp(max=20) * _LOG2_E))
        step = torch.where(step > 20, step, smooth)
    return step


def _sigmoid(x: Tensor) -> Tensor:
    return _blockwise(torch.exp2, x * -_LOG2_E).add_(1).reciprocal_()


def _decay(step: Tensor, A2: Tensor, out: Tensor) -> Tensor:
    """exp(Δ A), (k, N, G, L), from step (k, 1, G, L) and A in units of log2."""
    return _blockwise(torch.exp2, torch.mul(step, A2, out=out))


def _dot(x: Tensor, weight: Tensor, scratch: Tensor) -> Tensor:
    """Σ_n x weight, (k, N, G, L) -> (k, 1, G, L), as a fixed tree: torch.sum's order depends on the shape."""
    half = scratch.shape[1]
    total = torch.mul(x[:, :half], weight[..., :half, :, :], out=scratch)
    total.addcmul_(x[:, half:], weight[..., half:, :, :])
    while half > 1:
        half //= 2
        total[:, :half].add_(total[:, half : 2 * half])
    return total[:, :1]


def _half(state: Tensor) -> Tensor:
    """Scratch for `_dot`, (K, N/2, G, L)."""
    return torch.empty_like(state[:, : state.shape[1] // 2])


def _blockwise(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    """function(x) in place, for a contiguous x whose rows are a multiple of 64 elements.

    torch rounds an element differently in the body and in the remainder of its vector loops. Where its threads get
    whole multiples of 64 elements there is no remainder; elsewhere blocks below the size at which it splits work over
    threads have none. Either way a token's bits do not depend on its place.
    """
    flat = x.view(-1)
    threads = min(torch.get_num_threads(), -(-flat.shape[0] // _BLOCK))
    for block in flat.split(_BLOCK if flat.shape[0] % (_LANES * threads) else flat.shape[0]):
        function(block, out=block)
    return x
