"""Inputs of the packed selective scan, and the comparison with its definition that all its tests share."""

from __future__ import annotations

import itertools

import torch
from packmamba_kernels.selective_scan.inputs import ScanInputs, ScanOptions
from packmamba_kernels.selective_scan.naive import selective_scan_naive
from packmamba_kernels.selective_scan.op import SELECTIVE_SCAN

from tests.support import DEVICE, assert_close, assert_identical

OUTPUT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
GRADIENT_TOLERANCE = {torch.float32: 5e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}
ACCUMULATED_TOLERANCE = 1e-4
"""The tolerance of fp32 gradients that are sums over tokens or channels of 16-bit inputs."""


def cu_seqlens_of(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def make_inputs(
    lengths,
    channels=6,
    states=4,
    groups=None,
    dtype=torch.float32,
    seed=0,
    *,
    skip=True,
    gate=True,
    bias=True,
    initial=True,
):
    """Step sizes around 0.1 with decays from slow to fast; parameters in fp32 (fp64 for fp64)."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    tokens = sum(lengths)

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)

    matrix = (tokens, states) if groups is None else (tokens, groups, states)
    return {
        "u": normal(tokens, channels),
        "delta": normal(tokens, channels),
        "A": -torch.exp(normal(channels, states, dtype=exact)),
        "B": normal(*matrix),
        "C": normal(*matrix),
        "D": normal(channels, dtype=exact) if skip else None,
        "z": normal(tokens, channels) if gate else None,
        "delta_bias": normal(channels, dtype=exact) - 2 if bias else None,
        "initial_states": normal(len(lengths), channels, states, dtype=exact) if initial else None,
    }


def run(function, inputs, cu_seqlens, softplus=True, final_states=True, dout_dtype=None, **options):
    """Outputs and gradients by name, for a random output gradient that `dout_dtype` (else the output's) can hold."""
    leaves = {k: None if v is None else v.detach().clone().requires_grad_() for k, v in inputs.items()}
    options |= {"delta_softplus": softplus, "cu_seqlens": cu_seqlens, "return_final_states": final_states}
    result = function(**leaves, **options)
    outputs = dict(zip(("out", "final_states"), result if final_states else (result,), strict=False))
    generator = torch.Generator().manual_seed(1)
    douts = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs.values()]
    douts[0] = douts[0].to(dout_dtype or outputs["out"].dtype)
    douts = [dout.to(o) for dout, o in zip(douts, outputs.values(), strict=True)]
    wanted = {k: v for k, v in leaves.items() if v is not None}
    gradients = torch.autograd.grad(list(outputs.values()), list(wanted.values()), douts)
    detached = {k: v.detach() for k, v in outputs.items()}
    return detached | {f"d{name}": gradient for name, gradient in zip(wanted, gradients, strict=True)}


def definition(inputs, cu_seqlens, **flags):
    """What `run` returns for the naive definition in fp64."""
    exact = {k: None if v is None else v.double().to("cpu") for k, v in inputs.items()}
    return run(selective_scan_naive, exact, cu_seqlens.cpu(), dout_dtype=inputs["u"].dtype, **flags)


def assert_same_as_definition(function, inputs, cu_seqlens, rounding=1.0, **flags):
    """Everything `function` returns, against the definition in fp64. rounding: a factor on 16-bit tolerances."""
    reference = definition(inputs, cu_seqlens, **flags)
    actual = run(function, inputs, cu_seqlens, **flags)
    assert actual.keys() == reference.keys()
    low = inputs["u"].dtype != torch.float32
    for name, value in actual.items():
        if name == "out":
            assert value.dtype == inputs["u"].dtype
            tolerance = OUTPUT_TOLERANCE[value.dtype]
        elif name == "final_states":
            assert value.dtype == torch.float32
            tolerance = OUTPUT_TOLERANCE[torch.float32]
        else:
            assert value.dtype == inputs[name[1:]].dtype, name
            tolerance = GRADIENT_TOLERANCE[value.dtype]
            if low and value.dtype == torch.float32:
                tolerance = ACCUMULATED_TOLERANCE
        if value.dtype != torch.float32:
            tolerance *= rounding
        assert_close(name, reference[name], value.cpu(), tolerance)


def assert_backward_gives_the_output_again(lengths, **options):
    """For callers that do not keep the output; the gradients stay what they are."""
    inputs, cu_seqlens = make_inputs(lengths, **options), cu_seqlens_of(lengths)
    documents = SELECTIVE_SCAN.documents(inputs["u"], cu_seqlens, None)
    options = ScanOptions(delta_softplus=True)
    out, _, *kept = SELECTIVE_SCAN.forward(ScanInputs(**inputs), documents, options)
    given = (torch.randn_like(out), None, ScanInputs(**inputs), kept, documents)
    *gradients, again = SELECTIVE_SCAN.backward(*given, options._replace(return_out=True))
    assert_close("out", out, again, 1e-6)
    *wanted, nothing = SELECTIVE_SCAN.backward(*given, options)
    assert nothing is None or nothing.numel() == 0
    for name, expected, actual in zip(inputs, wanted, gradients, strict=True):
        assert (expected is None) == (inputs[name] is None)
        if expected is not None:
            assert_identical(f"d{name}", expected, actual)


def flat_documents(u, cu_seqlens, schedule):
    """The arguments of the registered operator for the documents of a call."""
    documents = SELECTIVE_SCAN.documents(u, cu_seqlens, schedule)
    return cu_seqlens, None if schedule is None else schedule.buffer, list(documents.offsets)


PER_TOKEN = ("out", "du", "ddelta", "dB", "dC", "dz")
PER_DOCUMENT = ("final_states", "dinitial_states")


def of_document(result, lengths, s):
    """What a result says of document s alone."""
    bos = sum(lengths[:s])
    return {k: result[k][bos : bos + lengths[s]] for k in PER_TOKEN} | {k: result[k][s] for k in PER_DOCUMENT}


def permuted(inputs, lengths, order):
    """The same documents in another order."""
    pieces = {k: inputs[k].split(lengths) for k in ("u", "delta", "B", "C", "z")}
    moved = {k: torch.cat([piece[s] for s in order]) for k, piece in pieces.items()}
    return inputs | moved | {"initial_states": inputs["initial_states"][list(order)]}


def run_permutable(function, inputs, lengths, order):
    """`run` with output gradients that move with their documents, by document of the first order."""
    moved = permuted(inputs, lengths, order)
    leaves = {k: v.detach().clone().requires_grad_() for k, v in moved.items()}
    ordered = [lengths[s] for s in order]
    out, states = function(**leaves, delta_softplus=True, cu_seqlens=cu_seqlens_of(ordered), return_final_states=True)
    weights = torch.randn(sum(lengths), out.shape[1], generator=torch.Generator().manual_seed(5)).to(DEVICE)
    weights = weights.split(lengths)
    loss = (out.float() * torch.cat([weights[s] for s in order])).sum() + states.square().sum()
    names = ("u", "delta", "B", "C", "z", "initial_states")
    gradients = torch.autograd.grad(loss, [leaves[k] for k in names])
    result = {"out": out, "final_states": states} | {f"d{k}": g for k, g in zip(names, gradients, strict=True)}
    return {s: of_document(result, ordered, i) for i, s in enumerate(order)}


def assert_documents_identical(wanted, actual, documents):
    for s in documents:
        for name, value in wanted[s].items():
            assert_identical(f"document {s}: {name}", value, actual[s][name])
