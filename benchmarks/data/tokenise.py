"""Tokenisation: tokens a second by tokenizer, for plain text and conversations, by this process and by several.

    python -m benchmarks tokenise --documents 20000 --output tokenise.json

The documents are those of `PythonDocs`; in conversations, they are the assistant's answers. BPE is trained on them
first. Nothing comes from the cache: what is timed is `tokenise` into an empty folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packmamba.compare.report import write_report
from packmamba.environment import describe_environment


def measure(num_documents: int, workers: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """One result for each tokenizer, kind of documents and number of processes."""
    import datasets

    from packmamba.data.cache import DEFAULT_CACHE_DIR
    from packmamba.data.sources import PythonDocs
    from packmamba.data.text.bpe import train_bpe
    from packmamba.data.text.corpus import tokenise
    from packmamba.data.text.tokenizers import BPETokenizer, ByteTokenizer, HFTokenizer

    datasets.disable_progress_bars()
    texts = PythonDocs().load(DEFAULT_CACHE_DIR.expanduser())
    texts = texts.select([row % len(texts) for row in range(num_documents)])
    conversations = texts.rename_column("text", "completion").add_column("prompt", ["Recite."] * len(texts))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        train_bpe(texts, 8192, Path(folder) / "bpe")
        tokenizers = [ByteTokenizer(), *(kind(path=f"{folder}/bpe") for kind in (BPETokenizer, HFTokenizer))]
        for tokenizer in tokenizers:
            for documents, dataset in (("text", texts), ("conversations", conversations)):
                for count in workers:
                    seconds, tokens = [], 0
                    for _ in range(repeats):
                        with tempfile.TemporaryDirectory() as cache:
                            started = time.perf_counter()
                            tokens = tokenise(dataset, tokenizer, Path(cache), workers=count).tokens.size
                            seconds.append(time.perf_counter() - started)
                    results.append(
                        {
                            "tokenizer": type(tokenizer).__name__,
                            "documents": documents,
                            "workers": count,
                            "num_tokens": tokens,
                            "seconds": [round(value, 4) for value in seconds],
                            "tokens_per_second": tokens / statistics.median(seconds),
                        }
                    )
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tokenise", description="Tokens a second of tokenisation."
    )
    parser.add_argument("--documents", type=int, default=20_000, help="how many, from those of PythonDocs, in turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes; 0: this one")
    parser.add_argument("--repeats", type=int, default=3, help="the median is reported")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    results = measure(options.documents, options.workers, options.repeats)
    for result in results:
        print(
            f"{result['tokenizer']:<14} {result['documents']:<14} {result['workers']} processes: "
            f"{result['tokens_per_second']:>12,.0f} tokens/s"
        )
    if options.output:
        report = {
            "benchmark": "tokenise",
            "documents": options.documents,
            "results": results,
            "environment": describe_environment("cpu"),
        }
        write_report(options.output, report)


if __name__ == "__main__":
    main()
