"""The guarantee as checks: documents of a pack never see each other. For mixers and for whole models.

A `run` takes a pack's inputs and its packing and returns named tensors with T rows: outputs and gradients of inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from packmamba import HybridLM, ModelConfig, Packing
from packmamba.config import AttentionConfig, ComputeOptions, Mamba1Config
from packmamba.model.mixers import build_mixer
from tests.support import assert_close, assert_identical

D_MODEL, VOCAB = 32, 61
RATIO = {torch.float32: 1e-5, torch.bfloat16: 3e-2}

Run = Callable[[Tensor, Packing], dict[str, Tensor]]

ATTENTION = {
    "attention": AttentionConfig(num_heads=4),
    "attention-gqa": AttentionConfig(num_heads=4, num_kv_heads=2),
    "attention-window": AttentionConfig(num_heads=4, num_kv_heads=1, sliding_window=4),
}
MODEL_PATTERN, SYMBOLS_PATTERN = "1-*1-", "1w-s*"
"""A hybrid, and one with layers of `symbols`: a window of attention, and a Mamba mixer with more states."""

MIXERS = ("mamba1", "mamba1-kept", *ATTENTION, "mlp")
"""`kept`: computes nothing again in its backward."""


def small_config(layer_pattern: str, attention: str = "attention-gqa", **overrides) -> ModelConfig:
    return ModelConfig(
        layer_pattern=layer_pattern,
        d_model=D_MODEL,
        vocab_size=VOCAB,
        mamba1=Mamba1Config(d_state=8),
        attention=ATTENTION[attention],
        symbols={"w": {"kind": "attention", "sliding_window": 4}, "s": Mamba1Config(d_state=16)},
        **overrides,
    )


def mixer_case(name: str, packing: Packing, dtype: torch.dtype, device: str = "cpu") -> tuple[Run, Tensor]:
    """A mixer's run, and inputs (T, d_model) for it."""
    torch.manual_seed(0)
    kind = name.partition("-")[0]
    symbol = {"mamba1": "1", "attention": "*", "mlp": "-"}[kind]
    config = small_config(symbol, name if kind == "attention" else "attention")
    mixer = build_mixer(config.layers[0], config, ComputeOptions(recompute=recompute_of(name))).to(device, dtype)
    x = torch.randn(packing.num_tokens, D_MODEL).to(device, dtype)
    return partial(run_mixer, mixer), x


def recompute_of(mixer: str) -> str:
    return "none" if mixer == "mamba1-kept" else "conv"


def run_mixer(mixer: nn.Module, x: Tensor, packing: Packing) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    out = mixer(x, packing)
    # The gradient of a document's output must be the same wherever the document stands, so it is made from its input.
    (dx,) = torch.autograd.grad(out, x, (x.detach() * 7).sin())
    return {"out": out.detach(), "dx": dx}


def model_case(
    layer_pattern: str,
    packing: Packing,
    dtype: torch.dtype,
    device: str = "cpu",
    autocast: bool = False,
    recompute: str = "conv",
) -> tuple[Run, Tensor]:
    """A whole model's run, and token ids (T,) for it."""
    torch.manual_seed(0)
    model = HybridLM(small_config(layer_pattern), ComputeOptions(recompute=recompute))
    model = model.to(device, torch.float32 if autocast else dtype)
    ids = torch.randint(VOCAB, (packing.num_tokens,)).to(device)
    return partial(run_model, model, autocast=autocast), ids


def run_model(model: HybridLM, ids: Tensor, packing: Packing, autocast: bool = False) -> dict[str, Tensor]:
    labels = labels_of(ids, packing)
    embedded: list[Tensor] = []
    handle = model.backbone.embedding.register_forward_hook(lambda module, args, out: embedded.append(out))
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        logits = model(ids, packing)
        loss = model.loss(ids, packing, labels)
        with torch.no_grad():
            losses = model.loss(ids, packing, labels, reduction="none")
    handle.remove()
    (d_logits,) = torch.autograd.grad(logits, embedded[0], torch.ones_like(logits) * (ids[:, None] % 5 - 2))
    (d_loss,) = torch.autograd.grad(loss, embedded[1])
    return {"logits": logits.detach(), "losses": losses, "d_logits": d_logits, "d_loss": d_loss}


def labels_of(ids: Tensor, packing: Packing) -> Tensor:
    """Each token's successor in its own document; the last one of a document has none."""
    return torch.cat([torch.cat([d[1:], d.new_full((1,), -100)]) for d in packing.unpack(ids)])


def change(inputs: Tensor, packing: Packing, i: int) -> Tensor:
    """The inputs with every token of document i changed."""
    documents = [document.clone() for document in packing.unpack(inputs)]
    documents[i] = documents[i] * -3 + 1 if inputs.is_floating_point() else (documents[i] + 1) % VOCAB
    return torch.cat(documents)


def check_no_leak(run: Run, inputs: Tensor, packing: Packing) -> None:
    """Changing one document leaves the bits of every other one, and changes its own."""
    before = run(inputs, packing)
    for i in range(packing.num_seqs):
        after = run(change(inputs, packing, i), packing)
        for name in before:
            old, new = packing.unpack(before[name]), packing.unpack(after[name])
            for j in range(packing.num_seqs):
                if j != i:
                    assert_identical(f"{name} of document {j} after a change of {i}", old[j], new[j])
        out = next(iter(before))
        changed = not torch.equal(packing.unpack(before[out])[i], packing.unpack(after[out])[i])
        assert changed, f"{out} of document {i} did not change with its input: nothing would be tested"


def check_packed_equals_separate(run: Run, inputs: Tensor, packing: Packing, ratio: float) -> None:
    """A document in a pack gives what it gives alone."""
    packed = run(inputs, packing)
    for i, document in enumerate(packing.unpack(inputs)):
        alone = run(document, Packing.from_lengths([len(document)]).to(packing.device))
        for name, reference in alone.items():
            _check_same(f"{name} of document {i}", reference, packing.unpack(packed[name])[i], ratio)


def check_permutation(run: Run, inputs: Tensor, packing: Packing, ratio: float) -> None:
    """Documents in another order give the same results in that order."""
    order = list(reversed(range(packing.num_seqs)))
    lengths = packing.host_lengths
    shuffled = Packing.from_lengths([lengths[i] for i in order]).to(packing.device)
    documents = packing.unpack(inputs)
    before, after = run(inputs, packing), run(torch.cat([documents[i] for i in order]), shuffled)
    for name in before:
        old = packing.unpack(before[name])
        _check_same(name, torch.cat([old[i] for i in order]), after[name], ratio)


def _check_same(name: str, reference: Tensor, actual: Tensor, ratio: float) -> None:
    if reference.count_nonzero():
        assert_close(name, reference, actual, ratio)
    else:  # documents of one token have no label: their losses and gradients are exactly zero
        assert_identical(name, reference, actual)
