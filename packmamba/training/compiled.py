"""`model.compile`: torch.compile for the layers of a model.

Compiled once a kind of layer, with dynamic shapes: batches of any T and S use the same kernels, and layers of a kind
share them. What is compiled is a layer's forward in place, so parameters keep their names, and checkpoints go from
compiled to uncompiled runs and back.
"""

from __future__ import annotations

import os
import shutil

import torch

from packmamba.errors import CannotRunError
from packmamba.model import AttentionMixer, HybridLM

GRAPHS = 8
"""Times that one kind of layer may be compiled: for training and evaluation, with packs of one document (a size of 1 is
special to torch.compile) and of several, and as much again. Beyond its limit torch.compile gives up with a warning."""


def compile_layers(model: HybridLM, backend: str = "inductor") -> None:
    """Has torch.compile make kernels of each layer at its first call. Attention layers stay as they are: on a CPU they
    are a loop over documents, which would be compiled anew for every batch.

    backend: torch.compile's. Raises CannotRunError where a CPU's kernels could not be built.
    """
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if backend == "inductor" and not torch.cuda.is_available() and not any(map(shutil.which, compilers)):
        raise CannotRunError("model.compile needs a C++ compiler on a CPU: install g++ or clang++, or set CXX to one")
    layers = [layer for layer in model.backbone.layers if not isinstance(layer.mixer, AttentionMixer)]
    limit = GRAPHS * len(set(model.config.layers))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
