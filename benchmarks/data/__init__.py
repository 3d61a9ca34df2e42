"""How full packs become, how fast batches are loaded and texts tokenised."""
