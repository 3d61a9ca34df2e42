"""Training: the Lightning module, its callbacks, and all that is known of Lightning's internals."""
