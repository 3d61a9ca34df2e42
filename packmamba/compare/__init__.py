"""Training packed, padded and one document at a time, on the same documents, timed."""
