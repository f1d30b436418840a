"""What training asks of a model: losses, accumulation, checkpointing, compilation, adapters."""

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from sublayer.model import SublayerForCausalLM, SublayerForMaskedLM, SublayerForSequenceClassification, SublayerModel
from tests.model.support import VARIED, randomise, same, tiny, tiny_config, tokens

# Dynamo looks at the .grad of every tensor that it meets.
traced = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2]])


def gradients(model: torch.nn.Module, **inputs: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_causal_loss_is_shifted_and_masked_loss_is_not() -> None:
    labels = tokens()
    labels[0, :3] = -100
    causal, masked = tiny("input-norm"), tiny("input-norm", SublayerForMaskedLM)
    log_probs = causal(tokens()).logits.log_softmax(-1)
    picked = [-log_probs[b, t - 1, labels[b, t]] for b in (0, 1) for t in range(1, 7) if labels[b, t] >= 0]
    assert same(causal(tokens(), labels=labels).loss, torch.stack(picked).mean())
    log_probs = masked(tokens()).logits.log_softmax(-1)
    picked = [-log_probs[b, t, labels[b, t]] for b in (0, 1) for t in range(7) if labels[b, t] >= 0]
    assert same(masked(tokens(), labels=labels).loss, torch.stack(picked).mean())


@pytest.mark.parametrize("kind", [SublayerForCausalLM, SublayerForMaskedLM])
def test_num_items_in_batch_divides_the_loss(kind: type) -> None:
    """A Trainer that accumulates gradients gives the number of targets in all of its steps."""
    model = tiny("input-norm", kind)
    targets = 12 if kind is SublayerForCausalLM else 14
    mean = model(tokens(), labels=tokens()).loss
    assert same(model(tokens(), labels=tokens(), num_items_in_batch=torch.tensor(2 * targets)).loss, mean / 2)


@pytest.mark.parametrize(
    ("labels", "num_labels", "kind"),
    [
        (torch.tensor([0, 2]), 3, "single_label_classification"),
        (torch.tensor([0.5, -1.0]), 1, "regression"),
        (torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), 3, "multi_label_classification"),
    ],
)
def test_classification_losses(labels: Tensor, num_labels: int, kind: str) -> None:
    model = tiny("input-norm", SublayerForSequenceClassification, num_labels=num_labels)
    output = model(tokens(), labels=labels)
    assert output.logits.shape == (2, num_labels)
    assert model.config.problem_type == kind
    expected = {
        "single_label_classification": lambda z: torch.nn.functional.cross_entropy(z, labels),
        "regression": lambda z: ((z[:, 0] - labels) ** 2).mean(),
        "multi_label_classification": lambda z: torch.nn.functional.binary_cross_entropy_with_logits(z, labels),
    }[kind](output.logits)
    assert same(output.loss, expected)


@pytest.mark.parametrize("causal", [None, True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_classification_reads_the_last_real_token_or_the_first(causal: bool | None, side: str) -> None:
    model = tiny("input-norm", SublayerForSequenceClassification, causal=causal, pad_token_id=0, num_labels=3)
    alone = model(tokens(1, 5)).logits
    padding = torch.zeros(1, 3, dtype=torch.long)
    padded = torch.cat((padding, tokens(1, 5)) if side == "left" else (tokens(1, 5), padding), 1)
    mask = (padded != 0).long()
    assert same(model(padded, attention_mask=mask).logits, alone)
    assert same(model(padded).logits, alone), "the padding token marks the padding"
    hidden = model.model(tokens(1, 5)).last_hidden_state
    assert same(model.score(hidden[:, 0 if causal is False else -1]), alone)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("design", VARIED.values(), ids=VARIED)
def test_gradient_checkpointing_gives_equal_gradients(design: str, reentrant: bool) -> None:
    model = tiny(design, hidden_dropout_prob=0.2).train()
    inputs = {"input_ids": tokens(), "labels": tokens(), "sequence_ids": DOCUMENTS}
    torch.manual_seed(0)
    plain = gradients(model, **inputs)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    runs = []
    feedforward = next(m for n, m in model.named_modules() if n.endswith("ffn"))
    handle = feedforward.register_forward_pre_hook(lambda *_: runs.append(1))
    torch.manual_seed(0)
    checkpointed = gradients(model, **inputs)
    handle.remove()
    assert len(runs) == 2, "each block runs a second time in the backward pass"
    assert plain.keys() == checkpointed.keys()
    for name in plain:
        assert same(plain[name], checkpointed[name], 1e-6), name
    model.activation_checkpointing_disable()
    assert not model.model.layers[0].gradient_checkpointing


def test_checkpointing_and_a_cache_do_not_meet() -> None:
    model = tiny("input-norm")
    cache = model(tokens(), use_cache=True).past_key_values
    model.activation_checkpointing_enable()
    model.train()
    output = model(tokens(), use_cache=True, past_key_values=cache)
    assert output.past_key_values is None
    assert cache.get_seq_length() == 7
    assert model.eval()(tokens(), use_cache=True).past_key_values is not None


@traced
@pytest.mark.parametrize(
    ("design", "kind"),
    [
        (VARIED["residual"], SublayerForCausalLM),
        (VARIED["ranges"], SublayerForMaskedLM),
        (VARIED["sections"], SublayerForCausalLM),
        (VARIED["layernorm-scaling"], SublayerForMaskedLM),
    ],
)
def test_compiled_in_one_graph_the_model_is_the_same(design: str, kind: type) -> None:
    """Traced in full with autograd; the code generator below the graph is not under test."""
    model = tiny(design, kind, position_embedding="rotary", num_hidden_layers=2)
    inputs = {"input_ids": tokens(), "labels": tokens(), "sequence_ids": DOCUMENTS}
    loss, plain = model(**inputs).loss, gradients(model, **inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert same(compiled(**inputs).loss, loss)
    for name, gradient in gradients(compiled, **inputs).items():
        assert same(gradient, plain[name.removeprefix("_orig_mod.")]), name
    assert same(compiled(tokens()).logits, model(tokens()).logits)


@traced
def test_compiled_by_inductor() -> None:
    model = tiny("residual", SublayerModel, num_hidden_layers=2)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert same(compiled(tokens()).last_hidden_state, model(tokens()).last_hidden_state)


@traced
def test_compiled_layers_of_one_equation_share_one_graph() -> None:
    model = tiny("post-norm", SublayerModel)
    plain = model(tokens()).last_hidden_state
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    for block in model.layers:
        block.compile(fullgraph=True, backend=counter)
    assert same(model(tokens(), use_cache=False).last_hidden_state, plain)
    assert counter.frame_count == 1


def loss_curve(accumulation: int, folder: str) -> list[float]:
    """Losses of three steps of SGD over the same eight rows a step."""
    model = SublayerForCausalLM(tiny_config("residual"))
    randomise(model)
    rows = [
        {"input_ids": row, "labels": row, "sequence_ids": ids}
        for row, ids in zip(tokens(24), DOCUMENTS.repeat(12, 1), strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        logging_steps=1,
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def test_accumulated_steps_have_the_same_loss_as_whole_ones(tmp_path: object) -> None:
    whole, parts = loss_curve(1, f"{tmp_path}/1"), loss_curve(4, f"{tmp_path}/4")
    assert len(whole) == 3
    assert whole == pytest.approx(parts, rel=2e-3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft still reads it
def test_lora_adapters_attach_and_train(tmp_path: object) -> None:
    peft = pytest.importorskip("peft")
    model = tiny("residual")
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"], r=2)
    wrapped = peft.get_peft_model(model, adapter)
    plain = wrapped(tokens()).logits
    wrapped(input_ids=tokens(), labels=tokens()).loss.backward()
    trained = {name for name, p in wrapped.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora" in name for name in trained)
    assert torch.equal(wrapped.merge_and_unload()(tokens()).logits, plain)


def test_an_unwired_parameter_does_not_exist() -> None:
    """PAF has one norm a layer: none is left over unused, as in the authors' checkpoints."""
    model = tiny("paf")
    assert set(gradients(model, input_ids=tokens(), labels=tokens())) == {n for n, _ in model.named_parameters()}
    assert sum("norm" in n for n, _ in model.named_parameters()) == 2 * 3
