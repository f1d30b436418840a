"""Some layers only: the text of `--layers`, designs with layer ranges, and the parallel form of any serial block."""

import pytest

from sublayer.hf.convert import ConvertError, mixed, parallel_design, read_layers, rewire, serial_branches
from sublayer.notation import designs, parse
from tests.hf.test_convert import accounted, logits
from tests.model.support import same, tiny

INPUT, POST, PAF = parse("input-norm"), parse("post-norm"), parse("paf")


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("0", (0,)),
        ("0,3,5-7", (0, 3, 5, 6, 7)),
        ("2:6", (2, 3, 4, 5)),
        (":3", (0, 1, 2)),
        ("6:", (6, 7)),
        ("-2:", (6, 7)),
        ("-1", (7,)),
        (":", tuple(range(8))),
        ("3, 1-2, 2", (1, 2, 3)),
    ],
)
def test_layers_are_written_as_numbers_spans_and_ranges(spec: str, layers: tuple[int, ...]) -> None:
    assert read_layers(spec, 8) == layers


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "written 3, 5-7"),
        ("0,,1", "written 3, 5-7"),
        ("all", "written 3, 5-7"),
        ("1:2:3", "written 3, 5-7"),
        ("8", r"within 0\.\.7"),
        ("3:3", r"within 0\.\.7"),
        ("5-2", r"within 0\.\.7"),
        ("-9", r"within 0\.\.7"),
        ("6:9", r"within 0\.\.7"),
    ],
)
def test_layers_that_are_not_there_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        read_layers(spec, 8)


def test_mixed_designs_have_ranges_and_equal_neighbours_share_one() -> None:
    found = mixed(INPUT, PAF, [1, 2, 5], 6)
    assert [str(layers) for layers in found.ranges] == ["[:1]", "[1:3]", "[3:5]", "[5:]"]
    for i in range(6):
        assert found.layer(i, 6).text == (PAF if i in (1, 2, 5) else INPUT).block
    assert found.final == PAF.final  # the last layer runs it
    assert mixed(INPUT, PAF, [0], 6).final == INPUT.final
    assert mixed(INPUT, PAF, range(6), 6) == PAF
    assert mixed(INPUT, INPUT, [0, 2], 6) == INPUT
    again = mixed(found, INPUT, [1, 2, 5], 6)
    assert [again.layer(i, 6).text for i in range(6)] == [INPUT.block] * 6
    assert len(again.ranges) == 1


def test_designs_that_cannot_stand_in_one_model_are_refused_with_the_reason() -> None:
    with pytest.raises(ConvertError, match="same streams; the model's hand on x and those of the new design x, r"):
        mixed(POST, parse("residual"), [0], 4)
    with pytest.raises(ConvertError, match="begin and end alike"):
        mixed(parse("residual"), parse("ladder-residual"), [0], 4)
    with pytest.raises(ConvertError, match="one embed section"):
        mixed(INPUT, parse("bert"), [0], 4)
    assert mixed(parse("bert"), INPUT, [0], 4).embed == "x = norm(e)"


def test_layers_that_are_not_converted_compute_what_they_did() -> None:
    old = tiny("input-norm", num_hidden_layers=4)
    found = rewire(old, "parallel-two-norms", "2:")
    accounted(old, found)
    assert {t.how for t in found.targets} == {"kept"}
    assert all(t.sources == (t.name,) for t in found.targets)
    assert [layer.section.text for layer in found.model.model.layers] == [
        INPUT.block, INPUT.block, parse("parallel-two-norms").block, parse("parallel-two-norms").block,
    ]  # fmt: skip
    assert not same(logits(found.model), logits(old), 1e-3)
    exact = rewire(tiny("parallel-two-norms", num_hidden_layers=4), "parallel-one-norm", "0,2-3")
    assert exact.exact
    assert same(logits(exact.model), logits(tiny("parallel-two-norms", num_hidden_layers=4)))


def test_the_norm_before_a_converted_layer_serves_it() -> None:
    """Layer 2 of a post-norm model reads from the last norm of layer 1, and goes on doing so."""
    found = rewire(tiny("bert"), "input-norm", [2])
    origin = {t.name: t.sources for t in found.targets}
    assert origin["model.final_section.stream_norm.weight"] == ("model.layers.2.stream_norm_2.weight",)
    # It is applied on the stream already, so the input norm is the identity.
    assert origin["model.layers.2.attn_in_norm.weight"] == ()
    assert origin["model.layers.1.stream_norm_2.weight"] == ("model.layers.1.stream_norm_2.weight",)


PARALLEL = {
    "input-norm": "x = x + attn(norm(x)) + ffn(norm(x))",
    "post-norm": "x = norm(x + attn(x) + ffn(x))",
    "output-norm": "x = x + norm(attn(x)) + norm(ffn(x))",
    "sandwich": "x = x + norm(attn(norm(x))) + norm(ffn(norm(x)))",
    "deepnorm": "x = norm((2*depth)**0.25*x + attn(x) + ffn(x))",
    "keel": "x = norm(2*depth*x + attn(norm(x)) + ffn(norm(x)))",
    "layerscale": "x = x + scale(attn(norm(x))) + scale(ffn(norm(x)))",
    "layernorm-scaling": "x = x + attn(norm(x)/sqrt(layer)) + ffn(norm(x)/sqrt(layer))",
    "rezero": "x = x + gate_a(attn(x)) + gate_a(ffn(x))",
    "macaron": "x = norm(x + 0.5*ffn(x) + attn(x) + 0.5*ffn(x))",
    "normed-residual": "h = norm(x); x = h + attn(h) + ffn(h)",
    "hybridnorm": "x = x + attn(x) + ffn(norm(x))",
    "b2t": "x = norm(2*x + attn(x) + ffn(x))",
    "normformer": "x = x + norm(attn(norm(x))) + ffn(norm(x))",
    "parallel-vit": "x = x + attn(norm(x)) + attn(norm(x)) + ffn(norm(x)) + ffn(norm(x))",
    "input-injection": "h = x + e; x = h + attn(norm(h)) + ffn(norm(h))",
    "x = x + attn(norm_a(x)); x = x + ffn(norm_a(x))": "h = norm_a(x); x = x + attn(h) + ffn(h)",
}


@pytest.mark.parametrize("serial", PARALLEL)
def test_the_parallel_form_of_serial_blocks(serial: str) -> None:
    section = parse(serial).blocks[0][1]
    assert serial_branches(section)
    assert parse(parallel_design(section)).block == parse(PARALLEL[serial]).block


def test_the_parallel_form_of_a_block_with_two_streams() -> None:
    section = parse("residual").blocks[0][1]
    text = f"embed: x = e; r = e\nblock: {parallel_design(section)}\nfinal: x = x + norm(r)"
    wanted = "embed: x = e; r = e\nblock: a = attn(x) + ffn(x); r = r + a; x = norm(x + a)\nfinal: x = x + norm(r)"
    assert parse(text) == parse(wanted)


@pytest.mark.parametrize("name", ["paf", "parallel-one-norm", "attention-only", "ladder-residual", "no-residual"])
def test_what_is_not_serial_has_no_parallel_form(name: str) -> None:
    section = parse(name).blocks[0][1]
    assert not serial_branches(section)
    reason = "no stream goes round it" if name == "no-residual" else "no sub-layer of it reads a stream"
    with pytest.raises(ConvertError, match=reason):
        parallel_design(section)


def test_every_parallel_form_in_the_catalogue_is_parallel_and_has_all_sub_layers() -> None:
    found = 0
    for entry in designs():
        for _, section in parse(entry.name).blocks:
            if serial_branches(section):
                found += 1
                text = parallel_design(section)
                embed = f"embed: {parse(entry.name).embed}\nblock: {text}\nfinal: {parse(entry.name).final}"
                (after,) = (block for _, block in parse(embed).blocks)
                assert not serial_branches(after), entry.name
                ops = [sorted(s.op for s in each.sites if s.op in ("attn", "dot", "ffn")) for each in (section, after)]
                assert ops[0] == ops[1], entry.name
    assert found > 40
