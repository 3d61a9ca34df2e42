"""Three documents in one pack: each gets the logits it gets alone, and a change in one never reaches another.

python examples/packed_equals_separate.py
"""

import torch

from packmamba import HybridLM, ModelConfig, PackedBatch, Packing

TEXTS = ["import this", "a", "Beautiful is better than ugly. Explicit is better than implicit."]


def main() -> None:
    torch.manual_seed(0)
    model = HybridLM(ModelConfig(layer_pattern="1-*1-", d_model=64, vocab_size=256))
    documents = [torch.tensor(list(text.encode())) for text in TEXTS]

    batch = PackedBatch.from_documents(documents)
    print(batch)
    with torch.no_grad():
        packed = batch.packing.unpack(model(batch.input_ids, batch.packing))

        print(f"\n{'document':>8}  {'tokens':>6}  {'|packed - alone|':>16}  {'changed by another document':>27}")
        for i, document in enumerate(documents):
            alone = model(document, Packing.from_lengths([len(document)]))
            difference = (packed[i] - alone).abs().max().item()

            others = [document if j == i else other.flip(0) + 1 for j, other in enumerate(documents)]
            changed = PackedBatch.from_documents(others)
            again = changed.packing.unpack(model(changed.input_ids, changed.packing))[i]
            leaked = not torch.equal(packed[i], again)
            verdict = "YES" if leaked else "no, every bit the same"
            print(f"{i:>8}  {len(document):>6}  {difference:>16.1e}  {verdict:>27}")
            if leaked or difference > 1e-4:
                raise SystemExit("packed and separate differ: this is a bug in packmamba")


if __name__ == "__main__":
    main()
