"""Training with Lightning. Read in this order: lit, optimizers, schedules, nonfinite, resumed, step_log, validation,
checkpoints, checkpoint_files, stopping, run_folder, callbacks, lightning_compat.

Optimiser step: one change of the weights, after a few accumulated micro-batches on every rank. Window: the optimiser
steps since the last row of the log, over which throughput is measured. Peak: the learning rate that the schedule
multiplies. Skipped step: an optimiser step that is left out, because its gradient is not finite.
"""
