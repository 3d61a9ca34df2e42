"""Causal attention inside the documents of a pack: one function, one signature, three backends, a file each.

T query tokens · T_k key tokens · H query heads · H_kv key/value heads (grouped-query attention) · D head dimension.
packing: the documents of the queries. key packing: those of the keys; a document's queries are its last tokens.
mask: which keys of its document a query sees, `AttentionMask`.

| backend | runs on | what it calls |
| --- | --- | --- |
| varlen | CUDA, fp16 or bf16 | `torch.nn.attention.varlen.varlen_attn` |
| flash | CUDA, fp16 or bf16 | `flash_attn_varlen_func` of the flash-attn package |
| sdpa | any device, any dtype | `scaled_dot_product_attention`, one call a document |

`naive.py` is the definition. Every backend covers all T tokens and gives equal documents equal bits whatever the other
documents hold. For gradients that needs a backward without atomic additions: `flash` and `sdpa` on the CPU always have
one; `varlen`, and `sdpa` on CUDA, have one under `torch.use_deterministic_algorithms(True)` (Lightning:
`Trainer(deterministic=True)`), and otherwise add the pieces of dq in an order that changes from run to run.
"""

from packmamba.attention.choose import explain_backends, varlen_attention
from packmamba.attention.masks import AttentionMask

__all__ = ["AttentionMask", "explain_backends", "varlen_attention"]
