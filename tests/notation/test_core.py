"""The notation's rules, one by one."""

import pytest

from sublayer.notation import Add, Call, Design, DesignError, parse
from sublayer.notation.code import forward_source


def same(first: str, second: str) -> bool:
    return parse(first) == parse(second)


POST = "x = norm(x + attn(x)); x = norm(x + ffn(x))"
PRE = "x = x + attn(norm(x)); x = x + ffn(norm(x))"


@pytest.mark.parametrize(
    "text",
    [
        POST,
        PRE,
        "x = x + norm(attn(norm(x))); x = x + norm(ffn(norm(x)))",
        "h = norm(x); x = x + attn(h) + ffn(h)",
        "x = x + attn(norm(x)) + ffn(norm(x))",
        "x = norm(x + attn(x) + ffn(x))",
        "x = norm((2*depth)**0.25*x + attn(x)); x = norm((2*depth)**0.25*x + ffn(x))",
        "x = x + attn(norm(x)/sqrt(layer)); x = x + ffn(norm(x)/sqrt(layer))",
        "x = x + gate(attn(x)); x = x + gate(ffn(x))",
        "x = x + dot(x) + cross(x) + mixer(x) + moe(x) + stop(x) + op(x, norm(x))",
    ],
)
def test_plain_equations_print_as_they_are_written(text: str) -> None:
    assert str(parse(text)) == text


def test_two_norms_of_one_value_differ_from_one_shared_norm() -> None:
    one = "h = norm(x); x = x + attn(h) + ffn(h)"
    two = "x = x + attn(norm(x)) + ffn(norm(x))"
    assert not same(one, two)
    assert same(one, "x = x + ffn(norm_a(x)) + attn(norm_a(x))")
    assert not same(two, "x = x + attn(norm(x)) + ffn(layernorm(x))")


def test_labels_share_parameters_and_nothing_else() -> None:
    shared = parse("x = norm_q(x + attn(x)); x = norm_q(x + ffn(x))")
    assert shared != parse(POST)
    assert str(shared) == "x = norm_a(x + attn(x)); x = norm_a(x + ffn(x))"
    section = shared.layer(0, 2)
    norms = [s.site for s in section.steps if isinstance(s, Call) and s.site.op == "norm"]
    assert norms[0] == norms[1]
    assert len(section.sites) == 3
    # A label that is used once names a call site and shares nothing.
    assert same("x = norm_one(x + attn_big(x)); x = norm_two(x + ffn(x))", POST)


def test_sums_are_flat_and_constants_fold() -> None:
    assert same("x = (ffn(x) + x) + attn(x)", "x = x + attn(x) + ffn(x)")
    assert same("x = 0.5*(x + attn(x)) + 0.5*x", "x = x + attn(x)/2")
    assert same("x = x - -attn(x)", "x = x + attn(x)")
    assert same("x = x + sqrt(4)*attn(x)/(1 + 3)", "x = x + 0.5*attn(x)")
    assert same("x = 2**0.25*depth**0.25*x + attn(x)", "x = (2*depth)**0.25*x + attn(x)")
    assert same("alpha = (2*depth)**0.25; x = norm(alpha*x + attn(x))", "x = norm((2*depth)**0.25*x + attn(x))")
    assert same("x = x + attn(x) + 0*ffn(x)", "x = x + attn(x)")
    assert same("x = (layer + 1)**2*x", "x = (layer**2 + 2*layer + 1)*x")
    assert same("x = sqrt(8)*x", "x = 2*sqrt(2)*x")
    assert same("x = x/sqrt(2*layer)", "x = (2*layer)**-0.5*x")


def test_order_of_additions_to_the_stream_matters_only_where_it_is_read() -> None:
    assert not same(PRE, "x = x + attn(norm(x)) + ffn(norm(x))")
    assert not same(POST, "x = norm(x + ffn(x)); x = norm(x + attn(x))")
    assert same("a = attn(norm(x)); y = x + a; x = y + ffn(norm(y))", PRE)


def test_default_sections() -> None:
    assert (parse(POST).embed, parse(POST).final) == ("x = e", "x = x")
    assert parse(PRE).final == "x = norm(x)"
    assert parse("x = norm(x + attn(x)); x = x + ffn(x)").final == "x = norm(x)"
    assert parse("x = scale(0.5*norm(x + attn(x)))").final == "x = x"
    assert same(PRE, f"embed: x = e\nblock: {PRE}\nfinal: x = norm(x)")
    bare = parse(f"block: {PRE}\nfinal: x = x")
    assert bare != parse(PRE)
    assert str(bare) == f"block: {PRE}\nfinal: x = x"


def test_sections_may_share_a_line() -> None:
    assert same(f"embed: x = norm(e); block: {POST}; final: x = x", f"embed: x = norm(e)\nblock: {POST}")


def test_carried_streams() -> None:
    text = (
        "embed: x = e; r = e\n"
        "block: a = attn(x); r = r + a; x = norm(x + a); f = ffn(x); r = r + f; x = norm(x + f)\n"
        "final: x = x + norm(r)"
    )
    design = parse(text)
    assert design.streams == ("x", "r")
    assert design == parse(text.replace("r", "z").replace("nozm", "norm"))
    section = design.layer(0, 3)
    assert section.inputs == ("x", "r")
    assert [name for name, _ in section.outputs] == ["x", "r"]
    # A stream that never reaches the result is no stream, and one that is never updated is the embedding.
    assert same("embed: x = e; r = e\nblock: r = r + attn(x); x = norm(x + ffn(x))", "x = norm(x + ffn(x))")
    assert same("embed: x = e; r = e\nblock: x = norm(x + ffn(x) + r)", "x = norm(x + ffn(x) + e)")


def test_streams_that_trade_places() -> None:
    design = parse("embed: x = e; s = norm(e)\nblock: t = x; x = s + attn(t); s = t")
    section = design.layer(0, 1)
    assert str(parse(str(design))) == str(design)
    assert dict(section.outputs)["r"] == "x"
    namespace: dict[str, object] = {}
    exec(forward_source(section), namespace)

    class Block:
        def attn(self, x: float, context: object) -> float:
            return 10 * x

    assert namespace["forward"](Block(), 1.0, 2.0, None) == (12.0, 1.0)  # type: ignore[operator]


def test_layer_ranges_tile_the_depth() -> None:
    design = parse(f"block[25%:]: {PRE}\nblock[:25%]: {POST}")
    assert str(design).startswith("block[:25%]: x = norm(x + attn(x))")
    assert design.final == "x = norm(x)"
    kinds = [design.layer(i, 8).text == POST for i in range(8)]
    assert kinds == [True, True, *[False] * 6]
    assert [r.resolve(6) for r in design.ranges] == [(0, 1), (1, 6)]
    assert same(f"block[:3]: {PRE}\nblock[3:]: {PRE}", PRE)
    last = parse(f"block[:-1]: {POST}; block[-1:]: {PRE}")
    assert [last.layer(i, 4).text == PRE for i in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(
    "ranges",
    [
        ("[:25%]", "[50%:]"),
        ("[:50%]", "[25%:]"),
        ("[:3]", "[4:]"),
        ("[1:]",),
        ("[:25%]",),
        ("[:2]", "[:2]"),
        ("[0:0]", "[0:]"),
    ],
)
def test_ranges_that_tile_no_depth_are_refused(ranges: tuple[str, ...]) -> None:
    text = "\n".join(f"block{r}: {POST if i % 2 else PRE}" for i, r in enumerate(ranges))
    with pytest.raises(DesignError, match=r"tile the|covers no layer"):
        parse(text).layer(0, 8)


def test_mixed_ranges_are_checked_against_the_depth() -> None:
    design = parse(f"block[:25%]: {POST}\nblock[3:]: {PRE}")
    assert design.layer(2, 12).text == POST
    with pytest.raises(DesignError, match="tile the 16 layers exactly"):
        design.layer(0, 16)


def test_scalars_are_checked_at_every_layer() -> None:
    design = parse("x = x + attn(x)/(layer - 3)")
    assert design.layer(0, 2)
    with pytest.raises(DesignError, match="at layer 3 of 4"):
        design.layer(0, 4)
    with pytest.raises(DesignError, match="real"):
        parse("x = sqrt(layer - 2)*x").layer(0, 2)


def test_values_of_scalars() -> None:
    add = parse("x = norm((2*depth)**0.25*x + attn(x)/sqrt(layer))").layer(0, 8).steps[1]
    assert isinstance(add, Add)
    (alpha, _), (beta, _) = add.terms
    assert alpha.value(1, 8) == pytest.approx(16**0.25)
    assert beta.value(4, 8) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["pre-norm", "prenorm", "Pre Norm", "pre_norm", " pre-norm "])
def test_pre_norm_is_refused_with_both_meanings(name: str) -> None:
    with pytest.raises(DesignError) as caught:
        parse(name)
    message = str(caught.value)
    for part in ("x + F(norm(x))", "x + norm(F(x))", "input-norm", "output-norm", "Xiong", "Xiao"):
        assert part in message
    assert same("pre-ln", "input-norm")
    assert same("pre-norm-flm", "output-norm")
    assert same("res-post-norm", "output-norm")


@pytest.mark.parametrize(
    ("text", "place", "nearest"),
    [
        ("x = x + atn(norm(x))", "atn", "attn"),
        ("x = LN(x + attn(x))", "LN", "norm"),
        ("x = x + MLP(x)", "MLP", "ffn"),
        ("x += attn(x)", "x += attn(x)", "x = x + attn(x)"),
        ("x + attn(x)", "x + attn(x)", "x = x + attn(x)"),
        ("x = norm", "norm", "norm(x)"),
        ("X = attn(x)", "X", "x"),
        ("blck: x = norm(x)", "blck", "block"),
        ("h1 = attn(x); x = x + hl", "hl", "h1"),
    ],
)
def test_errors_show_the_place_and_the_nearest_spelling(text: str, place: str, nearest: str) -> None:
    with pytest.raises(DesignError) as caught:
        parse(text)
    error = caught.value
    lines = str(error).splitlines()
    assert error.nearest == nearest
    caret = next(i for i, line in enumerate(lines) if set(line.strip()) == {"^"})
    shown = lines[caret - 1]
    begin = lines[caret].index("^")
    assert shown[begin : begin + lines[caret].count("^")] == place


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "at least one statement"),
        ("block:", "has no statement"),
        ("x = y", "carried"),
        ("x = x*attn(x)", "two values cannot be multiplied"),
        ("x = 1 + x", "a number cannot be added"),
        ("x = attn(2)", "takes a value"),
        ("x = attn(x - x)", "always zero"),
        ("x = x - x", "always zero"),
        ("x = x/0", "division by zero"),
        ("x = sqrt(-1)*x", "negative number has no real power"),
        ("x = attn(x, x)", "takes one value"),
        ("x = attn(x=1)", "plain values"),
        ("x = x.y", "not in the notation"),
        ("x = 'a'", "no meaning"),
        ("x = 3", "residual stream"),
        ("attn = x", "word of the notation"),
        ("x = a = x", "one name"),
        ("embed: x = x\nblock: x = x", "no value yet in embed"),
        ("final: x = layer*x\nblock: x = x", "no value in final"),
        ("block: x = x\nblock: x = x", "tile the depth"),
        ("embed: x = e\nembed: x = e\nblock: x = x", "one embed section"),
        ("embed: x = e", "needs a block"),
        ("embed[:3]: x = e", "only block takes a layer range"),
        ("block[3]: x = x", "one ':'"),
        ("x = (x", "never closed"),
        ("x = x)", "closes nothing"),
        ("x = 9**9**9*x", "exponent"),
        ("x = x \u2212 attn(x)", "ASCII"),
        ("hyper-connections", "cannot be written"),
        ("ngpt", "cannot be written"),
        ("no-such-design", "no design has the name"),
    ],
)
def test_bad_designs_name_the_rule(text: str, rule: str) -> None:
    with pytest.raises(DesignError, match=rule.replace("(", r"\(")):
        parse(text)


def test_a_design_is_immutable_and_hashable() -> None:
    design = parse("post-norm")
    with pytest.raises(AttributeError):
        design.name = "other"
    assert {design: 1}[parse(POST)] == 1
    assert design != POST
    assert parse(design) is design
    assert design.name == "post-norm"
    assert parse(POST).name is None
    assert "post-norm" in parse(POST).names


def test_records_that_are_no_designs_are_refused() -> None:
    for bad in (
        {},
        {"format": 1},
        {"format": 2, "embed": "", "block": [], "final": ""},
        {"format": 1, "embed": "x = e", "block": [{}], "final": "x = x"},
    ):
        with pytest.raises(DesignError):
            Design.from_dict(bad)


def test_site_names_say_what_a_norm_reads_or_writes() -> None:
    def sites(name: str) -> list[str]:
        return [s.name for s in parse(name).layer(0, 4).sites]

    assert sites("post-norm") == ["attn", "stream_norm", "ffn", "stream_norm_2"]
    assert sites("input-norm") == ["attn_in_norm", "attn", "ffn_in_norm", "ffn"]
    assert sites("output-norm") == ["attn", "attn_out_norm", "ffn", "ffn_out_norm"]
    assert sites("h = norm(x); x = x + attn(h) + ffn(h)") == ["attn_ffn_in_norm", "attn", "ffn"]
    assert sites("x = x + scale(attn(x)) + gate(ffn(x))") == ["attn", "ffn", "attn_out_scale", "ffn_out_gate"]


def test_the_stream_of_every_sum_is_found() -> None:
    def streams(text: str) -> list[tuple[str, ...]]:
        section = parse(text).layer(0, 4)
        return [
            (section.expression(s.stream or ""), *(section.label(t) for t in s.args if t != s.stream))
            for s in section.sums
        ]

    assert streams(POST) == [("x", "attn"), ("norm(x + attn(x))", "ffn")]
    assert streams(PRE) == [("x", "attn"), ("x + attn(norm(x))", "ffn")]
    assert streams("paf") == [("x", "attn", "ffn")]
    assert streams("n = norm(x); x = n + attn(n)") == [("norm(x)", "attn")]
    assert streams("x = attn(x) + ffn(x)") == []


def test_the_code_reads_as_the_equation() -> None:
    assert forward_source(parse(POST).layer(0, 1)) == (
        "def forward(self, x, context):\n"
        "    x = self.stream_norm(x + self.attn(x, context))\n"
        "    x = self.stream_norm_2(x + self.ffn(x))\n"
        "    return x\n"
    )


def test_factors_beyond_64_bits_are_floats_in_the_code() -> None:
    source = forward_source(parse("x = x + ffn(1e30*x)").layer(0, 1))
    assert "1e+30*x" in source
    assert "norm_a" not in source


def test_constant_streams_that_cancel_are_refused() -> None:
    for text in (
        "embed: x = e; y = e\nblock: x = x + norm(e - y)",
        "embed: x = e; y = e\nblock: x = e - y",
        "embed: x = e; r = e\nblock: x = x + attn(x)\nfinal: x = e - r",
    ):
        with pytest.raises(DesignError, match="always zero"):
            parse(text)
    assert same("embed: x = e; r = e; s = e\nblock: x = x + attn(r); r = s", "x = x + attn(e)")


@pytest.mark.parametrize("text", ["block: pre-norm", "x = pre_norm(x)", "x = x + prenorm(x)", "pre-norm(x)"])
def test_the_word_pre_norm_is_refused_inside_a_design_too(text: str) -> None:
    with pytest.raises(DesignError, match="two designs"):
        parse(text)


def test_sums_below_a_line() -> None:
    assert same("x = (layer + 1)/(layer + 1)*x", "x = 1*x")
    assert same("x = sqrt(layer + 1)**2*x", "x = (layer + 1)*x")
    assert str(parse("x = norm(x/sqrt(layer)/(depth + layer))")) == "x = norm(x/sqrt(layer)/(depth + layer))"
    with pytest.raises(DesignError, match="1e300"):
        parse("x = 1e308*x")
