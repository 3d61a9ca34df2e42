"""Text to token ids on disk: tokenizers, chat templates, encoding, the corpus."""
