"""`model.compile`: torch.compile for the layers of a model."""

from __future__ import annotations

from packmamba.model import HybridLM


def compile_layers(model: HybridLM) -> None:
    """Has torch.compile make kernels of each layer at its first call.

    The parameters keep their names.
    """
    for layer in model.backbone.layers:
        layer.compile(dynamic=True)
