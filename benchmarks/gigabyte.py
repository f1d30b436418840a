"""A gigabyte of text through the data path of `sublayer train`: read, split, tokenised, packed, in bounded memory.

    python benchmarks/gigabyte.py [--megabytes 1000] [--out benchmarks/gigabyte.json]

The text is made up (documents of words drawn by Zipf's law, 200 to 5,000 words each, from a seed) and written to a
temporary folder as JSON lines. `prepare` is what a run does before its first step: hash the files, hold out documents,
train the tokenizer, encode all, write the cache. Then every row is packed once. Memory is the anonymous resident size
at its peak, sampled, in processes of their own for a quarter of the text and for all of it: the cached ids are mapped,
not held.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from pairs import Row, arguments, in_a_process, write

from sublayer.train import TrainSpec
from sublayer.train.cache import prepare
from sublayer.train.dataset import PackedRows

WORDS, SEQ = 50_000, 512


def make(file: Path, megabytes: float) -> None:
    """Write so much text."""
    generator = np.random.Generator(np.random.Philox(7))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(generator.choice(letters, size=n)) for n in generator.integers(2, 10, size=WORDS)]
    words_array = np.array(words, dtype=object)
    left = megabytes * 1e6
    with open(file, "w", encoding="utf-8") as out:
        while left > 0:
            ranks = generator.zipf(1.2, size=int(generator.integers(200, 5000)))
            line = json.dumps({"text": " ".join(words_array[ranks % WORDS])}) + "\n"
            left -= out.write(line)


class Peak:
    """The largest anonymous resident size of this process while the context lasts, in MiB (Linux)."""

    def __enter__(self) -> "Peak":
        self.most, self._on = 0.0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while self._on:
            lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines() if ":" in line)
            kib = int(lines.get("RssAnon", lines["VmRSS"]).split()[0])
            self.most = max(self.most, kib / 1024)
            time.sleep(0.05)

    def __exit__(self, *_: Any) -> None:
        self._on = False
        self._thread.join()


def go(text: Path, folder: Path) -> dict[str, float]:
    """Prepare and pack; seconds and MiB."""
    spec = TrainSpec(
        design="post-norm", objective="mlm", data=str(text), vocab_size=8192, seq=SEQ, steps=1, cache=str(folder)
    )
    with Peak() as peak:
        began = time.perf_counter()
        corpus = prepare(spec)
        prepared = time.perf_counter() - began
        rows = PackedRows(corpus.train, corpus.vocabulary, "mlm", SEQ, length=len(corpus.train.ids) // SEQ)
        began = time.perf_counter()
        some = min(len(rows), 20_000)
        for index in range(some):
            rows[index]
        packing = (time.perf_counter() - began) / some
        began = time.perf_counter()
        prepare(spec)
        again = time.perf_counter() - began
    return {
        "prepare_seconds": prepared, "again_seconds": again, "peak_mib": peak.most, "rows": len(rows),
        "packed_rows_a_second": 1 / packing, "tokens": len(corpus.train.ids),
    }  # fmt: skip


def main() -> None:
    """Measure and write the record."""
    parser = arguments(__doc__, __file__, rounds=1)
    parser.add_argument("--megabytes", type=float, default=1000.0)
    parser.add_argument("--go", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.go:
        print(json.dumps(go(*given.go)))
        return
    size = 8.0 if given.quick else given.megabytes
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for part in (size / 4, size):
            text = Path(name) / f"{part:g}.jsonl"
            make(text, part)
            found[f"{part:g} MB"] = json.loads(in_a_process(__file__, "--go", str(text), f"{name}/cache-{part:g}"))
            text.unlink()
    quarter, whole = found.values()
    row = Row(
        f"peak memory of {size:g} MB of text", "of a quarter of it", [whole["peak_mib"] / quarter["peak_mib"]],
        "at most", 1.1, whole["peak_mib"], quarter["peak_mib"], "MiB",
        note=f"{size / whole['prepare_seconds']:.2f} MB/s until the first step, once; {whole['again_seconds']:.1f} s "
        f"from the cache; {whole['packed_rows_a_second']:.0f} rows of {SEQ} tokens a second",
    )  # fmt: skip
    write("gigabyte", [row], given, sizes=found, seed=7)


if __name__ == "__main__":
    main()
