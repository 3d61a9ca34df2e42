"""Training with Lightning. Read in this order: lit, validation, callbacks, lightning_compat.

Optimiser step: one change of the weights, after a few accumulated micro-batches on every rank. Window: the optimiser
steps since the last row of the log, over which throughput is measured.
"""
