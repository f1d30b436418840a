"""Initial weights come from (seed, name), and from nothing else."""

import itertools
import math

import pytest
import torch

from sublayer.model import SublayerForCausalLM, SublayerForMaskedLM, SublayerForSequenceClassification, SublayerModel
from sublayer.notation import designs
from tests.model.support import VARIED, tiny_config, tokens


def weights(design: str, kind: type = SublayerModel, **changes: object) -> dict[str, torch.Tensor]:
    return dict(kind(tiny_config(design, **changes)).named_parameters())


@pytest.mark.parametrize(("left", "right"), list(itertools.pairwise(VARIED.values())))
def test_two_designs_share_all_that_they_have_in_common(left: str, right: str) -> None:
    a, b = weights(left, init_seed=3), weights(right, init_seed=3)
    common = a.keys() & b.keys()
    assert {"embed_tokens.weight", "layers.0.ffn.up_proj.weight"} <= common
    for name in common:
        assert torch.equal(a[name], b[name]), name


def test_every_parameter_of_one_kind_is_the_same_across_the_catalogue() -> None:
    drawn: dict[str, torch.Tensor] = {}
    for entry in designs():
        for name, value in weights(entry.name, num_hidden_layers=4, init_seed=0).items():
            if value.dim() == 2:
                assert torch.equal(drawn.setdefault(name, value), value), (entry.name, name)
    assert len(drawn) > 20


def test_parameters_of_one_model_differ() -> None:
    two_dimensional = [w for w in weights("macaron").values() if w.dim() == 2]
    for a, b in itertools.combinations(two_dimensional, 2):
        assert a.shape != b.shape or not torch.equal(a, b)


def test_base_and_head_models_agree() -> None:
    base = weights("input-norm", init_seed=1)
    for kind in (SublayerForCausalLM, SublayerForMaskedLM, SublayerForSequenceClassification):
        head = weights("input-norm", kind, init_seed=1)
        for name, value in base.items():
            assert torch.equal(head[f"model.{name}"], value), name


def test_the_seed_is_the_configs_or_torchs() -> None:
    torch.manual_seed(5)
    first = weights("input-norm")["embed_tokens.weight"]
    torch.rand(100)  # what was drawn since does not count
    assert torch.equal(weights("input-norm")["embed_tokens.weight"], first)
    assert torch.equal(weights("input-norm", init_seed=5)["embed_tokens.weight"], first)
    torch.manual_seed(6)
    assert not torch.equal(weights("input-norm")["embed_tokens.weight"], first)
    assert torch.equal(weights("input-norm", init_seed=5)["embed_tokens.weight"], first)


def test_dtype_only_rounds() -> None:
    exact = SublayerModel(tiny_config("input-norm", init_seed=0)).state_dict()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        rounded = SublayerModel(tiny_config("input-norm", init_seed=0)).state_dict()
    finally:
        torch.set_default_dtype(default)
    for name, value in exact.items():
        assert torch.equal(rounded[name], value.bfloat16()), name


def test_fresh_norms_factors_and_biases() -> None:
    model = SublayerModel(tiny_config("x = gate(layernorm(x)) + scale(rmsnorm(x)) + dyt(ffn(x))", scale_init=0.3))
    block = dict(model.layers[0].named_parameters())
    constants = {name: value.detach() for name, value in block.items() if value.dim() == 1}
    for name, value in constants.items():
        expected = 0.0 if name.endswith("bias") or "gate" in name else 1.0
        if "scale" in name:
            expected = 0.3
        if name.endswith("alpha"):
            expected = 0.5
        assert torch.equal(value, torch.full_like(value, expected)), name
    assert any("gate" in n for n in constants)
    assert any("scale" in n for n in constants)
    assert any(n.endswith("alpha") for n in constants)


def test_normal_initialisation_has_the_range_it_says() -> None:
    for deviation in (0.02, 0.1):
        model = SublayerModel(
            tiny_config("input-norm", hidden_size=64, intermediate_size=256, initializer_range=deviation)
        )
        for name, value in model.named_parameters():
            if value.dim() == 2:
                assert value.std().item() == pytest.approx(deviation, rel=0.1), name


@pytest.mark.parametrize("act", ["gelu", "swiglu"])
def test_deepnorm_initialisation(act: str) -> None:
    """Xavier with gain (8 N)^(-1/4) on the FFN, the values and the output projection; gain 1 on queries and keys."""
    depth = 6
    config = tiny_config(
        "deepnorm", init="deepnorm", num_hidden_layers=depth, hidden_size=64, intermediate_size=256, hidden_act=act
    )
    beta = (8 * depth) ** -0.25
    for name, value in SublayerModel(config).layers[2].named_parameters():
        if value.dim() == 2:
            gain = 1.0 if "q_proj" in name or "k_proj" in name else beta
            expected = gain * math.sqrt(2 / sum(value.shape))
            assert value.std().item() == pytest.approx(expected, rel=0.1), name
    embedding = SublayerModel(config).embed_tokens.weight
    assert embedding.std().item() == pytest.approx(config.initializer_range, rel=0.1)


def test_deepnorm_initialisation_shares_the_random_directions() -> None:
    """The choice changes how large a weight starts, not which way it points."""
    plain, deep = (weights("deepnorm", init=init, init_seed=0) for init in ("normal", "deepnorm"))
    a, b = (w["layers.1.ffn.up_proj.weight"] for w in (plain, deep))
    assert torch.allclose(a / a.std(), b / b.std(), atol=1e-5)


def test_the_padding_row_is_zero() -> None:
    model = SublayerModel(tiny_config("input-norm", pad_token_id=3))
    assert model.embed_tokens.weight[3].abs().max() == 0
    assert model.embed_tokens.weight[2].abs().max() > 0


def test_resized_embeddings_keep_their_rows_and_stay_tied() -> None:
    model = SublayerForCausalLM(tiny_config("input-norm"))
    before = model.model.embed_tokens.weight.detach().clone()
    model.resize_token_embeddings(40)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.model.embed_tokens.weight[:29], before)
    assert model.model.embed_tokens.weight[29:].abs().max() < 1
    assert model(tokens(vocab=40)).logits.shape == (2, 7, 40)
    assert model.config.vocab_size == 40
