"""`packmamba.data.text.tokenizers`, by its older path, which configurations name."""

from packmamba.data.text.tokenizers import BPETokenizer, ByteTokenizer, HFTokenizer, Tokenizer

__all__ = ["BPETokenizer", "ByteTokenizer", "HFTokenizer", "Tokenizer"]
