"""The families of checkpoints that `sublayer.load` reads, each tried on a tiny random model.

python tools/families.py              a table: parity, generation, round trip
python tools/families.py llama gpt2   some of them
python tools/families.py --memory     peak memory of loading and writing a checkpoint of 300 MB
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MEGABYTES = 300


def row(name: str) -> dict[str, Any]:
    """What one case gives: largest relative error of logits and hidden states, padded or not; and two yes or no."""
    import torch
    from safetensors.torch import load_file

    from sublayer.hf import export, load
    from tests.hf.support import CASES, padding, relative_error, tiny, tokens

    case = CASES[name]
    theirs = tiny(case)
    ids = tokens()
    mask = padding(case, ids)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs.save_pretrained(f"{folder}/theirs")
        ours = load(f"{folder}/theirs", attn_implementation=case.attention)
        written = export(ours, f"{folder}/ours")
        before, after = (load_file(f"{folder}/{which}/model.safetensors") for which in ("theirs", "ours"))
        same = written.format == "family" and before.keys() == after.keys()
        same = same and all(torch.equal(before[key], after[key]) for key in before)
        want, got = theirs(ids, output_hidden_states=True), ours(ids, output_hidden_states=True)
        errors = [relative_error(got.logits, want.logits)]
        for left, right in zip(got.hidden_states, want.hidden_states, strict=True):
            errors += [relative_error(left, right)] if left.shape == right.shape else []
        real = mask.bool()
        padded = (model(ids, attention_mask=mask).logits[real] for model in (ours, theirs))
        errors.append(relative_error(*padded))
        generated = None
        if not case.masked:
            start = tokens(3, 12)
            options: dict[str, Any] = {
                "max_new_tokens": 32,
                "min_new_tokens": 32,
                "do_sample": False,
                "pad_token_id": 0,
            }
            options["attention_mask"] = torch.ones_like(start)
            generated = torch.equal(theirs.generate(start, **options), ours.generate(start, **options))
    return {"family": name, "parity": max(errors), "generate": generated, "round_trip": same}


def table(names: list[str]) -> bool:
    """Print the table; whether everything in it is as it should be."""
    import transformers

    from tests.hf.support import CASES

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    fine = True
    said = {True: "identical", False: "DIFFERS", None: "no decoder"}
    print(f"{'family':24} {'parity':>9}  {'generate':11} round trip")
    for name in names or CASES:
        found = row(name)
        fine &= found["parity"] < 1e-5 and found["generate"] is not False and found["round_trip"]
        print(f"{name:24} {found['parity']:9.1e}  {said[found['generate']]:11} {said[found['round_trip']]}", flush=True)
    return fine


def checkpoint(folder: str) -> int:
    """Write a GPT-2 of about 300 MB, whose every projection is turned or cut apart on loading; its size in bytes."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=1000, n_embd=768, n_layer=11, n_head=12)).to(torch.float32)
    model.save_pretrained(folder)
    return Path(folder, "model.safetensors").stat().st_size


def measured(folder: str, out: str) -> None:
    """In a process of its own: how far loading and writing raise the most memory that was held."""
    from sublayer.hf import export, load
    from tests.hf.support import CASES, tiny

    with tempfile.TemporaryDirectory() as small:  # whatever is imported on the way is imported now
        tiny(CASES["gpt2"]).save_pretrained(small)
        export(load(small), f"{small}/out")
    start = peak()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
    held = peak()
    model = load(folder)
    loading = peak() - held
    export(model, out)
    writing = peak() - held
    print(json.dumps({"before": start, "loading": loading, "writing": writing}))


def peak() -> int:
    """The most resident memory since the count began, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory() -> dict[str, float]:
    """Peak memory over the size of the checkpoint, while loading and while writing it."""
    with tempfile.TemporaryDirectory() as folder:
        size = checkpoint(f"{folder}/big")
        command = [sys.executable, __file__, "--measured", f"{folder}/big", f"{folder}/out"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(run.stdout.splitlines()[-1])
    return {"megabytes": size / 1e6, "loading": found["loading"] / size, "writing": found["writing"] / size}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measured"]:
        measured(sys.argv[2], sys.argv[3])
    elif sys.argv[1:2] == ["--memory"]:
        numbers = memory()
        print(f"a checkpoint of {numbers['megabytes']:.0f} MB")
        print(f"peak while loading   {numbers['loading']:.2f} times its size")
        print(f"peak, then writing   {numbers['writing']:.2f} times its size")
    else:
        sys.exit(0 if table(sys.argv[1:]) else 1)
