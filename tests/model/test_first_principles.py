"""The statements that the project starts from, as tests on worked numbers and on m x d matrices."""

import math

import pytest
import torch
from torch import Tensor

from sublayer.model import SublayerModel
from tests.model.support import VARIED, same, tiny, tokens


def bare(design: str, width: int) -> SublayerModel:
    """One layer over given vectors: no positions, nothing before or after the block."""
    return tiny(
        f"block: {design}\nfinal: x = x",
        SublayerModel,
        hidden_size=width,
        num_attention_heads=1,
        num_hidden_layers=1,
        position_embedding="none",
    )


def test_dot_on_numbers_worked_by_hand() -> None:
    # x1 = (1, 0), x2 = (0, 2), x3 = (1, 1).
    # Row 2: scores x2.x1 = 0, x2.x2 = 4; weights 1 and e^4 over 1 + e^4.
    # Row 3: scores x3.x1 = 1, x3.x2 = 2, x3.x3 = 2; weights e, e^2, e^2 over e + 2 e^2, that is 1, e, e over 1 + 2 e.
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    e = math.e
    second = [1 / (1 + e**4), 2 * e**4 / (1 + e**4)]
    third = [(1 + e) / (1 + 2 * e), (2 * e + e) / (1 + 2 * e)]
    y = bare("x = dot(x)", 2)(inputs_embeds=x).last_hidden_state
    assert torch.allclose(y, torch.tensor([[[1.0, 0.0], second, third]]), atol=1e-6)


def test_dot_has_no_parameters_and_no_scaling() -> None:
    model = bare("x = dot(x)", 64)
    assert not list(model.layers.parameters())
    x = torch.zeros(1, 2, 64)
    x[0, 0, 0], x[0, 1, 0] = 1.0, 2.0
    weight = math.exp(2.0) / (math.exp(2.0) + math.exp(4.0))  # 1/sqrt(64) would make these exponents 0.25 and 0.5
    assert math.isclose(
        model(inputs_embeds=x).last_hidden_state[0, 1, 0].item(), weight + 2 * (1 - weight), rel_tol=1e-5
    )


def test_an_orthogonal_predecessor_still_has_influence() -> None:
    """Its score is 0, and exp(0) = 1."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    y = bare("x = dot(x)", 2)(inputs_embeds=x).last_hidden_state
    assert math.isclose(y[0, 1, 0].item(), 1 / (1 + math.e), rel_tol=1e-6)
    moved = torch.tensor([[[-3.0, 0.0], [0.0, 1.0]]])
    assert not torch.allclose(bare("x = dot(x)", 2)(inputs_embeds=moved).last_hidden_state[0, 1], y[0, 1])


def lnorm(h: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The book's ``LNorm(h) = alpha * (h - mu) / (sigma + eps) + beta`` on the rows of an m x d matrix."""
    mu, sigma = h.mean(dim=1, keepdim=True), h.std(dim=1, keepdim=True, unbiased=False)
    return alpha * (h - mu) / (sigma + 1e-8) + beta


def book_ffn(h: Tensor, model: SublayerModel) -> Tensor:
    """``FFN(h) = sigma(h W_h + b_h) W_f + b_f`` with W_h d x d_h and W_f d_h x d."""
    ffn = model.layers[0].ffn
    w_h, w_f = ffn.up_proj.weight.T, ffn.down_proj.weight.T
    assert w_h.shape == (8, 24)
    assert w_f.shape == (24, 8)
    return torch.nn.functional.gelu(h @ w_h + ffn.up_proj.bias) @ w_f + ffn.down_proj.bias


@pytest.mark.parametrize(
    ("design", "site"),
    [("x = norm(x + ffn(x))", "stream_norm"), ("x = x + norm(ffn(x))", "ffn_out_norm")],
    ids=["post-norm", "the book's pre-norm"],
)
def test_the_books_sublayers_on_m_by_d_matrices(design: str, site: str) -> None:
    """Post-norm is LNorm(F(x) + x); the book's pre-norm is LNorm(F(x)) + x: output-norm here."""
    model = bare(design, 8)
    m_by_d = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    norm = getattr(model.layers[0], site)
    f = book_ffn(m_by_d, model)
    post, pre = lnorm(f + m_by_d, norm.weight, norm.bias), lnorm(f, norm.weight, norm.bias) + m_by_d
    output = model(inputs_embeds=m_by_d[None]).last_hidden_state[0]
    assert output.shape == (5, 8)
    assert torch.allclose(output, post, atol=1e-4) is (site == "stream_norm")
    assert torch.allclose(output, pre, atol=1e-4) is (site == "ffn_out_norm")


@pytest.mark.parametrize("design", VARIED.values(), ids=VARIED)
def test_a_token_sees_no_later_token(design: str) -> None:
    """Changing token t leaves everything before t bit-identical."""
    model = tiny(design, SublayerModel)
    ids = tokens()
    before = model(ids).last_hidden_state
    for position in (6, 3):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 29
        after = model(changed).last_hidden_state
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position:], before[:, position:])


def test_a_bidirectional_token_sees_later_ones_but_dot_never_does() -> None:
    changed = tokens()
    changed[:, -1] = (changed[:, -1] + 1) % 29
    for design, sees in (("input-norm", True), ("x = x + dot(norm(x)); x = x + ffn(x)", False)):
        model = tiny(design, SublayerModel, causal=False)
        first = [model(ids).last_hidden_state[:, 0] for ids in (tokens(), changed)]
        assert same(*first) is not sees


def test_heads_are_slices_of_one_projection_and_their_outputs_stand_side_by_side() -> None:
    """tau heads with W_q, W_k, W_v in R^{d x d/tau}, concatenated, then W_o."""
    model = tiny("block: x = attn(x)\nfinal: x = x", SublayerModel, num_hidden_layers=1, position_embedding="none")
    attn, x = model.layers[0].attn, torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    heads = []
    for part in torch.arange(16).view(4, 4):
        w_q, w_k, w_v = (p.weight[part].T for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        assert w_q.shape == (16, 4)
        q, k, v = x @ w_q + attn.q_proj.bias[part], x @ w_k + attn.k_proj.bias[part], x @ w_v + attn.v_proj.bias[part]
        scores = (q @ k.T / math.sqrt(4)).masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(1) @ v)
    expected = torch.cat(heads, 1) @ attn.o_proj.weight.T + attn.o_proj.bias
    assert torch.allclose(model(inputs_embeds=x[None]).last_hidden_state[0], expected, atol=1e-5)
