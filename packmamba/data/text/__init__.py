"""Text to token ids on disk. Read in this order: tokenizers, bpe, conversation, chat, encode, parallel, corpus, show.

Row: one document of a source, plain text or a conversation. Target: a token that is to be predicted. Turn: one message
of a conversation; only the assistant's are targets. Digest: a hash of all texts, by which a changed source is seen.
"""
