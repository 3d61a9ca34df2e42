"""The hybrid language model and its parts."""

from packmamba.model.flops import attention_cost, forward_flops, training_flops
from packmamba.model.hybrid_lm import HybridLM, check_token_ids
from packmamba.model.loss import linear_cross_entropy
from packmamba.model.mixers.attention import AttentionMixer
from packmamba.model.mixers.mamba1 import Mamba1Mixer
from packmamba.model.mixers.mlp import GatedMLP
from packmamba.model.parameter_groups import no_decay_parameters, parameter_groups

__all__ = [
    "AttentionMixer",
    "GatedMLP",
    "HybridLM",
    "Mamba1Mixer",
    "attention_cost",
    "check_token_ids",
    "forward_flops",
    "linear_cross_entropy",
    "no_decay_parameters",
    "parameter_groups",
    "training_flops",
]
