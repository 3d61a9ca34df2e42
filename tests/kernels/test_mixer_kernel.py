"""A Mamba mixer on the Triton kernels: what its backward computes again is what it would have kept.

Run by test_interpreter.py, in the interpreter and, where there is one, on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from packmamba_kernels.runtime.triton_glue import INTERPRET

from packmamba import ModelConfig, Packing
from packmamba.config import ComputeOptions, Mamba1Config
from packmamba.model.mixers.mamba1 import Mamba1Mixer
from tests.support import DEVICE, assert_close

pytestmark = pytest.mark.skipif(not INTERPRET and DEVICE == "cpu", reason="run by test_interpreter.py")


@pytest.mark.parametrize(("dtype", "ratio"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_gradients_are_those_of_keeping_everything(dtype, ratio):
    packing = Packing.from_lengths([2, 66, 1]).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(69, 32, generator=generator).to(DEVICE, dtype)
    dout = torch.randn(69, 32, generator=generator).to(DEVICE, dtype)
    results = {}
    for recompute in ("none", "conv"):
        torch.manual_seed(0)
        config = ModelConfig(layer_pattern="1", d_model=32, vocab_size=1, mamba1=Mamba1Config(d_state=4))
        mixer = Mamba1Mixer(config.layers[0], config, ComputeOptions(recompute=recompute)).to(DEVICE, dtype)
        leaf = x.clone().requires_grad_()
        out = mixer(leaf, packing)
        names = [name for name, _ in mixer.named_parameters()]
        gradients = torch.autograd.grad(out, [leaf, *mixer.parameters()], dout)
        results[recompute] = {"out": out, "dx": gradients[0]} | dict(zip(names, gradients[1:], strict=True))
    for name, wanted in results["none"].items():
        assert_close(name, wanted, results["conv"][name], ratio)
