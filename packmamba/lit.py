"""`packmamba.training.lit`, by its shorter and older path."""

from packmamba.training.lit import LitHybridLM, check_same_config, learning_rate_factor

__all__ = ["LitHybridLM", "check_same_config", "learning_rate_factor"]
