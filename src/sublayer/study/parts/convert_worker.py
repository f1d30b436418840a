"""The process of a conversion: convert, save, distil from the original, save again."""

import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sublayer as sl
from sublayer.hf.convert.folder import TOKENIZER_FILES
from sublayer.hf.convert.rewire import rewire
from sublayer.study.errors import StudyError
from sublayer.train.documents import held_out, open_source
from sublayer.whole_files import write_atomically

SHORTEST = 20  # words of a paragraph


def main(arguments: Sequence[str]) -> int:
    """Do what ``order.json`` in the given folder says; ``convert.json`` is written last."""
    place = Path(arguments[0])
    order = json.loads((place / "order.json").read_text(encoding="utf-8"))
    recover = order["recover"]
    begun = time.monotonic()
    torch.set_num_threads(recover["threads"])
    torch.manual_seed(recover["seed"])
    original = sl.load(order["checkpoint"]).eval()
    encode = _encoder(order["checkpoint"], recover["seq"])
    train, apart, fingerprint = paragraphs(recover["data"])
    if not train or not apart:
        raise StudyError(
            f"a recovery takes paragraphs of {SHORTEST} words or more, some of them in documents held out; "
            f"{recover['data']} has {len(train)} and {len(apart)}: give more text"
        )
    conversion = rewire(original, order["to"])
    model = conversion.model
    _save(original, order["checkpoint"], place / "original")
    _save(model, order["checkpoint"], place / "at-once")
    apart = apart[: recover["held_out"]]
    held = [encode(apart[i : i + recover["batch"]]) for i in range(0, len(apart), recover["batch"])]
    at_once = _mean_distance(model, original, held)
    losses = distil(model, original, encode, train, recover)
    found = {
        "design": str(conversion.after),
        "verdict": conversion.verdict,
        "at_once": at_once,
        "recovered": _mean_distance(model, original, held),
        "losses": losses,
        "data": {"source": recover["data"], "sha256": fingerprint, "paragraphs": len(train)},
    }
    _save(model, order["checkpoint"], place / "recovered")
    found["seconds"] = round(time.monotonic() - begun, 1)
    write_atomically(place / "convert.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    return 0


def paragraphs(data: str) -> tuple[list[str], list[str], str]:
    """Paragraphs of running text: to learn from, held out (other documents), and a hash of the source."""
    source = open_source(data)
    kept = held_out(source)
    train: list[str] = []
    apart: list[str] = []
    for document in source.documents():
        for text in re.split(r"\n\s*\n", document.text):
            if len(text.split()) >= SHORTEST:
                (apart if document.digest() in kept else train).append(" ".join(text.split()))
    return list(dict.fromkeys(train)), list(dict.fromkeys(apart)), source.fingerprint()


def distance(new: Sequence[Tensor], old: Sequence[Tensor], real: Tensor) -> Tensor:
    """Mean over layers and real tokens of ``||new - old||^2 / ||old||^2``; states ``[batch, seq, d]``, real
    ``[batch, seq]``."""
    total = new[0].new_zeros(())
    for a, b in zip(new, old, strict=True):
        apart = (a - b).square().sum(-1) / b.square().sum(-1).clamp_min(1e-12)  # [batch, seq]
        total = total + apart[real].mean()
    return total / len(new)


def distil(model: Any, original: Any, encode: Any, train: Sequence[str], recover: dict[str, Any]) -> list[list[float]]:
    """AdamW with warm-up and linear decay; ``[step, loss]`` of every tenth step. Row i of the text is a function of the
    seed and i."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(recover["seed"])).tolist()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recover["lr"], weight_decay=0.01)
    steps, batch = recover["steps"], recover["batch"]
    warm = max(1, round(recover["warmup"] * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, max(0.0, (steps - s) / max(1, steps - warm)))
    )
    losses = []
    model.eval()  # no dropout: the target has none
    for step in range(steps):
        inputs = encode([train[order[(step * batch + i) % len(order)]] for i in range(batch)])
        loss = _distance_on(model, original, inputs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0 or step == steps - 1:
            losses.append([step + 1, float(loss.detach())])
            print(f"step {step + 1} of {steps}: distance {losses[-1][1]:.4f}", flush=True)
    return losses


def _distance_on(model: Any, original: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        old = original.base_model(**inputs, output_hidden_states=True).hidden_states[1:]
    new = model.base_model(**inputs, output_hidden_states=True).hidden_states[1:]
    return distance(new, old, inputs["attention_mask"].bool())


@torch.no_grad()
def _mean_distance(model: Any, original: Any, held: Sequence[dict[str, Tensor]]) -> float:
    model.eval()
    return sum(float(_distance_on(model, original, inputs)) for inputs in held) / len(held)


def _encoder(checkpoint: str, seq: int) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)

    def encode(texts: Sequence[str]) -> dict[str, Tensor]:
        found = tokenizer(list(texts), padding=True, truncation=True, max_length=seq, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    return encode


def _save(model: Any, source: str, folder: Path) -> None:
    """The model, with the tokenizer's files of where it came from."""
    shutil.rmtree(folder, ignore_errors=True)
    sl.export(model, folder)
    for name in TOKENIZER_FILES:
        path = Path(source) / name
        if path.is_file() and not (folder / name).exists():
            shutil.copyfile(path, folder / name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
