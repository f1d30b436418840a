"""Training steps of both wirings beside their peers: time, utilisation, memory."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pairs import Row, apart, ratios
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForMaskedLM

import sublayer as sl
from gpu_parts.measuring import Bench
from sublayer.cost import cost

IGNORED = -100  # label of a position that is not predicted
FIRST = 5  # ids below are special: padding would move RoBERTa's positions


@dataclass(frozen=True)
class Shape:
    """A published model's shape, and the two wirings that are compared in it."""

    name: str
    masked: bool
    saf: str
    paf: str
    paf_design: str
    vocab: int
    seq: int
    hidden: int = 1024
    layers: int = 24
    heads: int = 16
    inner: int = 4096
    goal: float | None = None  # MFU

    def small(self) -> "Shape":
        """The same in small, to see that it runs."""
        small = {"vocab": 500, "seq": 32, "hidden": 64, "layers": 1, "heads": 2, "inner": 128}
        return Shape(**{**self.__dict__, **small})


SHAPES = {
    "roberta-large": Shape(
        "RoBERTa-large", True, "post-norm", "paf", "embed: x = norm(e)\nblock: x = norm(x + attn(x) + ffn(x))",
        50265, 512, goal=0.5,
    ),
    "gpt2-medium": Shape(
        "GPT-2 medium", False, "input-norm", "parallel-one-norm", "h = norm(x); x = x + attn(h) + ffn(h)", 50257, 1024
    ),
}  # fmt: skip


class Trainee:
    """A model in training. It runs compiled or, under a stance of torch's compiler, as it was written.

    Args:
        bench: device, precision.
        model: on the CPU.
        loss: of the model.
        compile_it: has the model compiled when it is called; None for never.
    """

    def __init__(
        self,
        bench: Bench,
        model: nn.Module,
        loss: Callable[[nn.Module], Tensor],
        compile_it: Callable[[nn.Module], None] | None,
    ) -> None:
        self.bench, self.loss = bench, loss
        self.model = model.to(bench.device, bench.weights).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        if compile_it is not None:
            compile_it(self.model)

    def first_loss(self) -> float:
        """Before anything was learnt, in the precision of the weights."""
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return float(self.loss(self.model))

    def step(self) -> None:
        """Forward, backward, update."""
        with self.bench.autocast():
            loss = self.loss(self.model)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def form(self, compiled: bool, steps: int) -> Callable[[], None]:
        """So many steps, compiled or not."""

        def run() -> None:
            with torch.compiler.set_stance("default" if compiled else "force_eager"):
                for _ in range(steps):
                    self.step()
            self.bench.sync()

        return run

    def memory(self, run: Callable[[], None]) -> int | None:
        """Bytes at most while ``run`` runs, without those of other models that stand beside; None on a CPU."""
        if self.bench.device.type != "cuda":
            return None
        tensors = [*self.model.parameters()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        own = sum({t.data_ptr(): t.nbytes for t in tensors if t.is_cuda}.values())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before + own


def peer(shape: Shape) -> nn.Module:
    """transformers' model of the shape, with sdpa and without dropout."""
    torch.manual_seed(0)
    if shape.masked:
        return RobertaForMaskedLM(
            RobertaConfig(
                vocab_size=shape.vocab, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads, intermediate_size=shape.inner, max_position_embeddings=shape.seq + 2,
                type_vocab_size=1, pad_token_id=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                attn_implementation="sdpa",
            )
        )  # fmt: skip
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocab, n_embd=shape.hidden, n_layer=shape.layers, n_head=shape.heads,
            n_inner=shape.inner, n_positions=shape.seq, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0, attn_implementation="sdpa",
            activation_function="gelu_pytorch_tanh",  # the same function as its gelu_new, in one kernel
        )
    )  # fmt: skip


def x_transformers(shape: Shape) -> nn.Module:
    """x-transformers' model of the shape. Its attention has no biases."""
    from x_transformers import Decoder, Encoder, TransformerWrapper

    torch.manual_seed(0)
    layers = (Encoder if shape.masked else Decoder)(
        dim=shape.hidden, depth=shape.layers, heads=shape.heads, attn_dim_head=shape.hidden // shape.heads,
        ff_mult=shape.inner / shape.hidden, attn_flash=True, pre_norm=not shape.masked, verbose=False,
    )  # fmt: skip
    return TransformerWrapper(
        num_tokens=shape.vocab, max_seq_len=shape.seq, attn_layers=layers, tie_embedding=True,
        post_emb_norm=shape.masked,
    )  # fmt: skip


def training(bench: Bench, name: str) -> None:
    """A training step of both wirings and of the peers, on one batch."""
    shape = SHAPES[name].small() if bench.quick else SHAPES[name]
    batch = max(1, bench.batch * 512 // shape.seq) if not bench.quick else 2
    ids = torch.randint(FIRST, shape.vocab, (batch, shape.seq), generator=torch.Generator().manual_seed(0))
    labels = ids
    if shape.masked:
        chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.15
        labels = ids.masked_fill(~chosen, IGNORED)
    predictions = int((labels != IGNORED).sum()) if shape.masked else batch * (shape.seq - 1)
    ids, labels = ids.to(bench.device), labels.to(bench.device)
    cache = {} if shape.masked else {"use_cache": False}

    def ours_loss(model: nn.Module) -> Tensor:
        return model(input_ids=ids, labels=labels, loss_only=True, **cache).loss

    def peer_loss(model: nn.Module) -> Tensor:
        return model(input_ids=ids, labels=labels, **cache).loss

    def bare_loss(model: nn.Module) -> Tensor:
        shift = 0 if shape.masked else 1
        logits = model(ids)[:, : shape.seq - shift]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, shift:].flatten(), ignore_index=IGNORED)

    def by_block(model: Any) -> None:
        for block in model.model.layers:  # equal blocks: compiled once for all
            block.compile(backend=bench.compiler, dynamic=False)

    def whole(model: nn.Module) -> None:
        model.compile(backend=bench.compiler, dynamic=False)

    theirs = peer(shape)
    saf = sl.load(theirs, verify=False)
    config = copy.deepcopy(saf.config)
    config.design, config.source_checkpoint = shape.paf_design, None
    config.init_seed = 0
    head = sl.SublayerForMaskedLM if shape.masked else sl.SublayerForCausalLM
    models: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
        "transformers": (lambda: theirs, peer_loss, whole),
        shape.saf: (lambda: saf, ours_loss, by_block),
        shape.paf: (lambda: head(config), ours_loss, by_block),
        "x-transformers": (lambda: x_transformers(shape), bare_loss, None),
    }
    flops = needed_flops(saf.config, batch, shape.seq, predictions)
    steps = bench.count(5, 1)
    ready: dict[str, tuple[Callable[[], None], dict[str, Any]]] = {}
    losses: dict[str, float] = {}
    for model_name, (build, loss, compile_it) in models.items():
        trainee = None
        with bench.guarded(f"{shape.name}, {model_name}", 60):
            trainee = Trainee(bench, build(), loss, compile_it)
            losses[model_name] = trainee.first_loss()
        if trainee is not None:
            for compiled in (False, True) if compile_it is not None else (False,):
                prepare(bench, trainee, model_name + ", compiled" * compiled, compiled, steps, shape, ready)
    spent: dict[str, list[float]] = {}
    with bench.guarded(f"{shape.name}: the turns"):
        spent = bench.turns({form: run for form, (run, _) in ready.items()})
    seen = {
        form: facts | {"seconds_a_step": [s / steps for s in spent[form]]}
        for form, (_, facts) in ready.items()
        if spent
    }
    bench.found.setdefault("training", {})[shape.name] = {
        "batch": batch, "seq": shape.seq, "predictions": predictions, "flops_a_step": flops, "first_loss": losses,
        "forms": seen,
    }  # fmt: skip
    if spent:
        training_rows(bench, shape, seen, batch * shape.seq, flops, losses)


def needed_flops(config: Any, batch: int, seq: int, predictions: int) -> float:
    """FLOPs of a step that makes logits only where something is predicted; the same for all forms."""
    priced = cost(config, batch=batch, seq=seq, dtype="bf16", device="cuda")
    head = sum(priced.flops_by_site.get(name, 0) for name in ("lm_head", "lm_head_transform"))
    return priced.model_flops - 3 * head * (1 - predictions / (batch * seq))  # 3: forward, and backward to both sides


def prepare(
    bench: Bench,
    trainee: Trainee,
    form: str,
    compiled: bool,
    steps: int,
    shape: Shape,
    ready: dict[str, tuple[Callable[[], None], dict[str, Any]]],
) -> None:
    """Run a form until it is warm, and enter it with the seconds that this took and its memory."""
    with bench.guarded(f"{shape.name}, {form}", 110):
        begin = time.monotonic()
        run = trainee.form(compiled, steps)
        trainee.form(compiled, 1)()
        first = time.monotonic() - begin
        run()
        ready[form] = run, {"first_step_seconds": first, "memory_bytes": trainee.memory(run)}


def training_rows(
    bench: Bench, shape: Shape, seen: dict[str, Any], tokens: int, flops: float, losses: dict[str, float]
) -> None:
    """Utilisation of each form, and pairs of forms: speed and memory."""
    work = f"training step, {shape.name} shapes"
    for form, facts in seen.items():
        spent = facts["seconds_a_step"]
        rates = sorted(flops / s for s in spent)
        goal = shape.goal if form in (f"{shape.saf}, compiled", f"{shape.paf}, compiled") else None
        bench.rows.append(
            Row(
                f"{work}: {form}", f"peak of the card ({bench.peak_source})", [flops / s / bench.peak for s in spent],
                reach=goal, ours=rates[len(rates) // 2], theirs=bench.peak, unit="FLOP/s",
                note=f"MFU. {tokens / sorted(spent)[len(spent) // 2]:.0f} tokens/s",
            )
        )  # fmt: skip
    same = {"first loss": apart([losses[shape.saf]], [losses["transformers"]])} if "transformers" in losses else {}
    saf, paf = f"{shape.saf}, compiled", f"{shape.paf}, compiled"
    pairs: list[tuple[str, str, float | None, dict[str, float]]] = [
        (saf, "transformers, compiled", 1.3, same), (saf, "transformers", None, same),
        (shape.saf, "transformers", None, same), (saf, "x-transformers", None, {}),
        (shape.saf, "x-transformers", None, {}), (paf, saf, 1.15, {}), (paf, "transformers, compiled", None, {}),
        (shape.paf, shape.saf, None, {}),
    ]  # fmt: skip
    for ours, theirs, goal, checks in pairs:
        if ours not in seen or theirs not in seen:
            continue
        our, their = seen[ours], seen[theirs]
        pair = our["seconds_a_step"], their["seconds_a_step"]
        ours_rate, theirs_rate = (tokens / sorted(s)[len(s) // 2] for s in pair)
        bench.rows.append(
            Row(f"{work}: {ours}", theirs, ratios(*pair), reach=goal, ours=ours_rate, theirs=theirs_rate,
                unit="tokens/s", checks=checks)
        )  # fmt: skip
        if our["memory_bytes"] and their["memory_bytes"]:
            sizes = our["memory_bytes"], their["memory_bytes"]
            bench.rows.append(
                Row(f"{work}, memory: {ours}", theirs, [sizes[0] / sizes[1]], "at most", ours=sizes[0] / 2**30,
                    theirs=sizes[1] / 2**30, unit="GiB")
            )  # fmt: skip
    if not any(facts["memory_bytes"] for facts in seen.values()):
        bench.left_out.append({"work": f"{work}, memory", "reason": "it is counted on a GPU only"})
