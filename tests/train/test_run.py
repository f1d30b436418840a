"""Runs, end to end, with the package's own model."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sublayer import signed
from sublayer.train import TrainError, checkpoint, finished, run
from sublayer.train.build import build as build_model
from sublayer.train.build import flops_per_token, kinds, weights_sha256
from sublayer.train.cache import prepare
from sublayer.train.callbacks import read_metrics

TIMES = {"seconds"}


def records(out, *kinds_wanted):
    """Records of a run without what differs from one machine's mood to the next."""
    found = [r for r in read_metrics(out / "metrics.jsonl") if not kinds_wanted or r["kind"] in kinds_wanted]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in found]


def stop_at(wanted, number=signal.SIGTERM):
    """A measure that sends this process a signal at one step."""

    def measure(model, step):
        if step == wanted:
            os.kill(os.getpid(), number)
        return {"step": step, "tokens": 0, "sums": [], "layers": []}

    return measure


@pytest.fixture(scope="module")
def plain(spec, tmp_path_factory):
    """An uninterrupted run, never looked at: what every other way of running must equal."""
    out = tmp_path_factory.mktemp("plain") / "run"
    return out, run(spec(), out, measure=False)


# -- what a run leaves behind ------------------------------------------------------------------------------------------


def test_the_row_and_the_files(plain, spec):
    out, row = plain
    assert row["status"] == "ok", row["reason"]
    assert signed.read(out / "run.json") == row == finished(out)
    assert row["steps_done"] == 8
    assert 0 < row["eval_loss"] < 10
    assert row["tokens_per_second"] > 0
    assert row["peak_memory_mb"] > 100
    assert row["threads"] == 1
    assert set(row["init_sha256"]) == {"attn", "embed", "ffn", "norm"}
    assert json.loads((out / "spec.json").read_text())["design"] == "post-norm"
    assert json.loads((out / "data.json").read_text()) == prepare(spec()).facts
    assert json.loads((out / "progress.json").read_text())["phase"] == "ok"
    assert "post-norm, 8 steps" in (out / "log.txt").read_text()
    assert not list(out.glob("checkpoint-*"))


def test_the_final_weights_are_an_ordinary_model(plain):
    from transformers import AutoTokenizer

    from sublayer.model import SublayerForMaskedLM

    out, row = plain
    model = SublayerForMaskedLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert tokenizer.model_max_length == 32
    assert model.config.use_cache, "as before training"
    assert model.config.vocab_size == len(tokenizer)
    assert sum(p.numel() for p in model.parameters()) == row["parameters"]


def test_weights_can_go_into_the_run_s_own_folder(spec, tmp_path):
    row = run(spec(steps=1), tmp_path / "out", model_dir=tmp_path / "out", measure=False)
    assert row["model"] == "."
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_records(plain, spec):
    out, row = plain
    found = records(out)
    assert [r["step"] for r in found if r["kind"] == "train"] == list(range(1, 9))
    assert [r["step"] for r in found if r["kind"] == "eval"] == [0, 8]
    last = found[-1]
    assert last["loss"] == row["eval_loss"]
    assert last["tokens"] == 8 * 4 * 32
    model = build_model(spec(), prepare(spec()).vocabulary)
    assert last["flops"] == pytest.approx(last["tokens"] * flops_per_token(model, spec()))
    first, final = (r for r in found if r["kind"] == "eval")
    assert final["loss"] < first["loss"] - 0.3, "it learns"
    rates = [r["lr"] for r in found if r["kind"] == "train"]
    assert rates[1] == max(rates) == pytest.approx(1e-2), "after one step of warm-up"
    assert rates[-1] < rates[-2], "cosine"


def test_accumulation_reads_the_same_rows(plain, spec, tmp_path):
    _, row = plain
    other = run(spec(batch=2, accumulation=2, dropout=0.0), tmp_path / "a", measure=False)
    whole = run(spec(dropout=0.0), tmp_path / "b", measure=False)
    assert other["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-4)
    assert whole["data_order_sha256"] == row["data_order_sha256"], "dropout does not change what is read"


@pytest.mark.parametrize("changes", [
    {"objective": "clm", "positions": "rotary", "norm": "rmsnorm", "hidden_act": "swiglu", "kv_heads": 1},
    {"dtype": "bf16", "schedule": "constant", "clip": 0.0},
    {"schedule": "linear", "tokens": 300, "steps": None, "tie_embeddings": False},
])  # fmt: skip
def test_other_settings_train_too(spec, tmp_path, changes):
    row = run(spec(**changes), tmp_path / "run", measure=False)
    assert row["status"] == "ok", row["reason"]


# -- fairness ----------------------------------------------------------------------------------------------------------


def test_designs_share_what_they_have_in_common(plain, spec, tmp_path):
    _, row = plain
    other = run(spec(design="input-norm"), tmp_path / "run", measure=False)
    assert other["data_order_sha256"] == row["data_order_sha256"]
    for kind in ("attn", "ffn", "embed"):
        assert other["init_sha256"][kind] == row["init_sha256"][kind]
    assert other["weights_sha256"] != row["weights_sha256"]


def test_seeds_and_data_seeds_are_separate(plain, spec, tmp_path):
    _, row = plain
    seeded = run(spec(seed=1), tmp_path / "a", measure=False)
    assert seeded["data_order_sha256"] == row["data_order_sha256"]
    assert seeded["init_sha256"]["attn"] != row["init_sha256"]["attn"]
    ordered = run(spec(data_seed=1), tmp_path / "b", measure=False)
    assert ordered["data_order_sha256"] != row["data_order_sha256"]
    assert ordered["init_sha256"] == row["init_sha256"]


def test_no_decay_on_vectors_and_numbers(spec):
    from sublayer.train.trainer import GuardedTrainer

    design = "x = x + scale(attn(dyt(x))); x = x + gate(ffn(rmsnorm(x))); x = layernorm(x)"
    model = build_model(spec(design=design, qk_norm=True), prepare(spec()).vocabulary)
    decayed = set(GuardedTrainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    roles = kinds(model)
    assert {roles[name] for name in decayed} == {"attn", "ffn", "embed"}
    for name, parameter in model.named_parameters():
        assert (name in decayed) == (parameter.ndim >= 2), name
    assert {"norm", "scale", "gate"} <= {roles[n] for n in roles if n not in decayed}


def test_hashes_of_weights_see_one_changed_number(spec):
    model = build_model(spec(), prepare(spec()).vocabulary)
    before = weights_sha256(model)
    with torch.no_grad():
        model.model.layers[1].ffn.up_proj.bias[3] += 1
    after = weights_sha256(model)
    assert [kind for kind in before if before[kind] != after[kind]] == ["ffn"]


# -- looking changes nothing -------------------------------------------------------------------------------------------


def test_measuring_evaluating_and_saving_change_no_weight(plain, spec, tmp_path):
    _, row = plain
    looked = run(spec(measure_every=2, eval_every=3, save_steps=3), tmp_path / "run")
    assert looked["weights_sha256"] == row["weights_sha256"]
    assert looked["data_order_sha256"] == row["data_order_sha256"]
    found = records(tmp_path / "run")
    assert [r["step"] for r in found if r["kind"] == "eval"] == [0, 3, 6, 8]
    measures = [r for r in found if r["kind"] == "measure"]
    assert [r["step"] for r in measures] == [0, 2, 4, 6, 8]
    assert looked["measures"] == {key: value for key, value in measures[-1].items() if key != "kind"}
    assert [layer["gradient_norm"] for layer in measures[0]["layers"]] == [None, None]
    assert all(layer["gradient_norm"] > 0 for r in measures[1:] for layer in r["layers"])
    assert [step for step, _ in checkpoint.steps(tmp_path / "run")] == [6, 3], "asked for, so kept"


def test_gradient_norms_are_taken_before_clipping(spec, tmp_path):
    for name, clip in (("clipped", 1e-3), ("free", 0.0)):
        run(spec(steps=1, clip=clip), tmp_path / name)
    clipped, free = (records(tmp_path / name, "measure")[-1]["layers"] for name in ("clipped", "free"))
    assert [layer["gradient_norm"] for layer in clipped] == [layer["gradient_norm"] for layer in free]


# -- stopping and going on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_saves_and_stops_within_a_step_and_resuming_is_bit_identical(plain, spec, tmp_path, number, name):
    out, row = plain
    mine = tmp_path / "run"
    before = signal.getsignal(number)
    stopped = run(spec(measure_every=3), mine, measure=stop_at(3, number))
    assert signal.getsignal(number) is before
    assert stopped["status"] == "killed"
    assert stopped["signal"] == number
    assert f"stopped by {name} after step 3" in stopped["reason"]
    assert finished(mine) is None
    assert [step for step, _ in checkpoint.steps(mine)] == [3]
    again = run(spec(), mine, resume=True, measure=False)
    assert again["status"] == "ok", again["reason"]
    assert again["weights_sha256"] == row["weights_sha256"]
    assert again["data_order_sha256"] == row["data_order_sha256"]
    assert again["eval_loss"] == row["eval_loss"]
    assert records(mine, "train", "eval") == records(out, "train", "eval")
    assert again["seconds"] > stopped["seconds"]
    assert not checkpoint.steps(mine), "made by the signal only, so not kept"


def test_kill_9_and_a_damaged_checkpoint(spec, tmp_path):
    """Killed in a process of its own; then the newest checkpoint is damaged and the one before it is taken. Records
    after it are written again, not twice."""
    one = spec(steps=100, save_steps=10)
    row = run(spec(steps=100), tmp_path / "whole", measure=False)
    mine, settings = tmp_path / "run", tmp_path / "spec.json"
    settings.write_text(one.to_json())
    command = [sys.executable, "-m", "sublayer.train", str(settings), str(mine), "--no-measure", "--quiet"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while process.poll() is None and len(checkpoint.steps(mine)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    newest = checkpoint.latest(mine)
    assert newest is not None
    (newest[0] / "optimizer.pt").write_bytes(b"")
    assert finished(mine) is None
    again = run(one, mine, resume=True, measure=False)
    assert again["status"] == "ok", again["reason"]
    assert again["weights_sha256"] == row["weights_sha256"]
    assert records(mine) == records(tmp_path / "whole")
    assert len(list(mine.glob("damaged-checkpoint-*"))) == 1
    assert "is damaged" in (mine / "log.txt").read_text()


def test_a_process_told_to_stop_exits_with_143(spec, tmp_path):
    settings = tmp_path / "spec.json"
    settings.write_text(spec(steps=100_000, schedule="constant").to_json())
    command = [sys.executable, "-m", "sublayer.train", str(settings), str(tmp_path / "run"), "--no-measure"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(r["step"] > 3 for r in read_metrics(tmp_path / "run" / "metrics.jsonl")):
            break
        time.sleep(0.05)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143, told
    assert "killed: stopped by SIGTERM after step" in told
    assert "run  step" in told, "progress in lines, since this is no terminal"
    assert "\x1b" not in told
    assert len(checkpoint.steps(tmp_path / "run")) == 1


def test_a_finished_run_is_not_run_again(plain, spec):
    out, row = plain
    assert run(spec(eval_every=2), out, resume=True) == row
    with pytest.raises(TrainError, match="holds a finished run; pass --resume"):
        run(spec(), out)


def test_a_run_with_other_settings_is_refused(plain, spec, tmp_path):
    out, _ = plain
    with pytest.raises(TrainError, match=r"other settings \(lr: 0.01 -> 0.5\)"):
        run(spec(lr=0.5), out, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="is a file"):
        run(spec(), tmp_path / "file")


def test_other_data_under_the_same_name_is_refused(spec, texts, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for path in texts.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    run(spec(data=str(folder), measure_every=3), tmp_path / "run", measure=stop_at(3))
    (folder / "00.txt").write_text("Changed text.")
    row = run(spec(data=str(folder)), tmp_path / "run", resume=True, measure=False)
    assert row["status"] == "failed"
    assert "made from other data" in row["reason"]


# -- runs that are lost ------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_later_says_when_and_where(spec, tmp_path):
    row = run(spec(lr=1e25, warmup=0, clip=0, weight_decay=0.0), tmp_path / "run", measure=False)
    assert row["status"] == "diverged"
    assert "at step 2; it began in the forward pass of layer 0, term attn: model.layers.0.attn" in row["reason"]
    assert row["steps_done"] == 1
    assert all(r["loss"] < 100 for r in records(tmp_path / "run"))


def test_failures_are_rows_with_a_reason(spec, tmp_path):
    def broken(spec, words):
        raise RuntimeError("the model cannot be made\nlong story")

    def greedy(spec, words):
        raise MemoryError("Unable to allocate 3 TiB")

    row = run(spec(), tmp_path / "a", build=broken)
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: the model cannot be made")
    assert "long story" in (tmp_path / "a" / "log.txt").read_text(), "with its traceback"
    row = run(spec(), tmp_path / "b", build=greedy)
    assert row["status"] == "killed"
    assert "out of memory: Unable to allocate 3 TiB" in row["reason"]
    row = run(spec(data="/nowhere"), tmp_path / "c")
    assert (row["status"], "no file or folder '/nowhere'" in row["reason"]) == ("failed", True)
    row = run(spec(design="x = pre_norm(x)"), tmp_path / "d")
    assert row["status"] == "failed"
    assert finished(tmp_path / "d") is None
    assert run(spec(), tmp_path / "a", resume=True, measure=False)["status"] == "ok", "a failed run can be tried again"


def test_the_command_line_of_a_run(spec, tmp_path):
    command = [sys.executable, "-m", "sublayer.train", str(tmp_path / "none.json"), str(tmp_path / "run")]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr.startswith("error: cannot read settings from")
    assert "Traceback" not in told.stderr


def test_a_checkpoint_of_another_model_is_refused(spec, tmp_path):
    """The Trainer alone would warn of weights that are missing and go on with random ones."""
    from safetensors.torch import load_file, save_file

    mine = tmp_path / "run"
    run(spec(measure_every=3), mine, measure=stop_at(3))
    (folder,) = (path for _, path in checkpoint.steps(mine))
    facts = checkpoint.verify(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.ffn.up_proj.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    checkpoint.commit(folder, {key: facts[key] for key in ("step", "seconds", "spec_sha256", "data")})
    row = run(spec(), mine, resume=True, measure=False)
    assert row["status"] == "failed"
    assert "differing: model.layers.0.ffn.up_proj.bias" in row["reason"]
