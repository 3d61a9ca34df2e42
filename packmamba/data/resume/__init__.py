"""Going on where training stopped, and streams, which are cut so that they can. Read in this order: fingerprint,
evaluated, progress, sections, streamed.

Fingerprint: the options that the order of documents depends on. Section: consecutive documents of a stream that are
shuffled and packed together. Origin: the position from which a run's batches are counted.
"""
