"""The hybrid language model and its parts.

layer: a pre-norm residual block, one symbol of the layer pattern. mixer: the module inside it, `mixers/`.
backbone: embedding, layers and last norm; the output head makes logits of its hidden states.
state: what a model keeps of documents' earlier tokens, so that `advance` goes on from there.
"""

from packmamba.model.flops import attention_cost, attention_costs, forward_flops, training_flops
from packmamba.model.hybrid_lm import HybridLM, ModelState, check_token_ids
from packmamba.model.loss import linear_cross_entropy
from packmamba.model.mixers.attention import AttentionMixer
from packmamba.model.mixers.mamba1 import Mamba1Mixer
from packmamba.model.mixers.mlp import GatedMLP
from packmamba.model.parameter_groups import hidden_matrices, no_decay_parameters, parameter_groups

__all__ = [
    "AttentionMixer",
    "GatedMLP",
    "HybridLM",
    "Mamba1Mixer",
    "ModelState",
    "attention_cost",
    "attention_costs",
    "check_token_ids",
    "forward_flops",
    "hidden_matrices",
    "linear_cross_entropy",
    "no_decay_parameters",
    "parameter_groups",
    "training_flops",
]
