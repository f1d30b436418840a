"""LaTeX, diagrams, words and shapes: right for named designs, and sound for any design."""

import random
import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from sublayer.notation import Design, designs, parse
from sublayer.notation.explain import explain, placements, range_in_words
from sublayer.notation.latex import latex
from sublayer.notation.paths import spine
from sublayer.notation.shapes import shapes, table
from sublayer.notation.svg import Panel, svg
from sublayer.notation.svg_layout import Item, Layout
from sublayer.notation.svg_marks import extent, height
from tests.notation.strategies import random_spec

NAMES = [entry.name for entry in designs()]
SVG = "{http://www.w3.org/2000/svg}"


def random_designs(count: int, start: int = 0) -> list[Design]:
    return [parse(random_spec(random.Random(seed)).text()) for seed in range(start, start + count)]


def awkward() -> list[Design]:
    texts = [
        "x = e",
        "x = x",
        "x = attn(e)",
        "x = -x + attn(x)",
        "x = x - attn(x) - 0.5*ffn(x)",
        "embed: x = e; r = e\nblock: h = x; x = attn(r); r = ffn(h)",
        "embed: x = e; r = norm(e)\nblock: h = x; x = r; r = h\nfinal: x = x + r",
        "embed: x = e; r = e; s = e\nblock: h = x; x = r + attn(x); r = s + ffn(r); s = h",
        "x = op(x, norm(x), attn(x))",
        "x = x + op(x, attn(x)) + moe(norm(x)) + mixer(x) + cross(x)",
        "x = x + (layer + 1)*attn(norm_a(x)) + (2*depth + layer)**0.25*ffn(norm_a(x))",
        "block[:1]: x = x + attn(x)\nblock[1:-1]: x = ffn(x)\nblock[-1:]: x = norm(x)",
    ]
    return [parse(text) for text in texts]


# --- placements ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("post-norm", {"attn": "post-norm", "ffn": "post-norm"}),
        ("input-norm", {"attn": "input norm", "ffn": "input norm"}),
        ("output-norm", {"attn": "output norm", "ffn": "output norm"}),
        ("sandwich", {"attn": "sandwich", "ffn": "sandwich"}),
        ("paf", {"attn": "post-norm", "ffn": "post-norm"}),
        ("parallel-one-norm", {"attn": "input norm", "ffn": "input norm"}),
        ("parallel-two-norms", {"attn": "input norm", "ffn": "input norm"}),
        ("deepnorm", {"attn": "post-norm", "ffn": "post-norm"}),
        ("admin", {"attn": "post-norm", "ffn": "post-norm"}),
        ("keel", {"attn": "input norm and norm of the sum", "ffn": "input norm and norm of the sum"}),
        ("normformer", {"attn": "sandwich", "ffn": "input norm"}),
        ("hybridnorm", {"attn": "post-norm", "ffn": "residual after the norm"}),
        ("normed-residual", {"attn": "post-norm", "ffn": "residual after the norm"}),
        ("no-norm", {"attn": "no norm", "ffn": "no norm"}),
        ("dyt", {"attn": "input norm", "ffn": "input norm"}),
        ("no-residual", {"attn": "output norm", "ffn": "output norm"}),
        ("b2t", {"attn": "post-norm", "ffn": "post-norm"}),
        ("residual", {"attn": "post-norm", "ffn": "post-norm"}),
        ("ladder-residual", {"attn": "input norm", "ffn": "input norm"}),
        ("macaron", {"ffn": "post-norm", "attn": "post-norm", "ffn_2": "post-norm"}),
        ("first-attention", {"dot": "no norm"}),
    ],
)
def test_placements_of_named_designs(name: str, expected: dict[str, str]) -> None:
    assert {p.site: p.kind for p in placements(parse(name))} == expected


def test_parallel_and_series() -> None:
    for name in ("paf", "parallel-one-norm", "parallel-two-norms", "skipless-parallel", "ladder-residual"):
        assert {p.site: p.parallel for p in placements(parse(name))} == {"attn": ("ffn",), "ffn": ("attn",)}
    for name in ("post-norm", "input-norm", "output-norm", "sandwich", "b2t", "reversible"):
        assert not any(p.parallel for p in placements(parse(name)))
    assert [p.parallel for p in placements(parse("parallel-vit"))] == [("attn_2",), ("attn",), ("ffn_2",), ("ffn",)]


def test_residuals() -> None:
    def residual(name: str) -> list[str]:
        return [p.residual for p in placements(parse(name))]

    assert residual("post-norm") == ["stream", "stream"]
    assert residual("normed-residual") == ["normed", "normed"]
    assert residual("hybridnorm") == ["stream", "normed"]
    assert residual("no-residual") == residual("skipless-parallel") == ["none", "none"]
    assert [p.sums for p in placements(parse("residual"))] == [2, 2]


def test_scaling_is_said() -> None:
    said = {name: explain(parse(name)) for name in ("deepnorm", "layernorm-scaling", "macaron", "rezero", "layerscale")}
    assert "the residual is multiplied by (2*depth)**0.25" in said["deepnorm"]
    assert "what it reads is multiplied by 1/sqrt(layer)" in said["layernorm-scaling"]
    assert "what it adds is multiplied by 0.5" in said["macaron"]
    assert "multiplied by a learned number (gate_a)" in said["rezero"]
    assert "scaled per channel (scale)" in said["layerscale"]
    assert "no gradient flows through what it adds" in explain(parse("x = x + stop(attn(x))"))


def test_explain_has_the_three_sections() -> None:
    text = explain(parse("bert"))
    assert [line.split()[0] for line in text.splitlines() if not line.startswith(" ")] == ["embed", "block", "final"]
    assert "the stream starts as norm(embedding)" in text
    assert "the first 25% of the layers" in explain(parse("mix-ln"))
    assert "no sub-layer" in explain(parse("x = norm(x)"))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("[:1]", "the first layer"),
        ("[:3]", "the first 3 layers"),
        ("[:-1]", "all but the last layer"),
        ("[1:]", "all but the first layer"),
        ("[-2:]", "the last 2 layers"),
        ("[2:6]", "layers 3 to 6"),
        ("[25%:75%]", "the layers from 25% to 75%"),
    ],
)
def test_layer_ranges_in_words(layers: str, words: str) -> None:
    start, stop = layers[1:-1].split(":")
    rest = [f"block[:{start}]: x = norm(x)"] if start else []
    rest += [f"block[{stop}:]: x = norm(x)"] if stop else []
    found = {str(r): range_in_words(r) for r in parse("\n".join([f"block{layers}: x = attn(x)", *rest])).ranges}
    assert found[layers] == words


def test_the_stream_is_the_short_skip() -> None:
    _, section = parse("b2t").blocks[0]
    path = spine(section, "x")
    assert path[-1] == "x"
    assert [section.step[v].value for v in path[:-1]] == path[:-1]
    assert len(path) == 5  # norm, sum, norm, sum, x: the bypass from x to the second sum is not the stream


def test_words_for_every_design() -> None:
    for design in [*(parse(name) for name in NAMES), *awkward(), *random_designs(150)]:
        text = explain(design)
        assert design.final in text
        for place in placements(design):
            assert str(place) in text


# --- LaTeX --------------------------------------------------------------------------------------------------------


def assert_balanced(text: str) -> None:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0, text
    assert depth == 0, text
    assert text.count(r"\left(") == text.count(r"\right)")
    assert text.count(r"\bigl(") == text.count(r"\bigr)")
    assert text.startswith("\\begin{aligned}\n")
    assert text.endswith("\n\\end{aligned}")
    assert text.count("(") == text.count(")")
    # Three columns of two: every line has the same number of them.
    assert {re.sub(r"\\text\{[^}]*\}", "", line).count("&") for line in text.split("\n")[1:-1]} == {3}


def test_latex_is_balanced() -> None:
    for design in [*(parse(name) for name in NAMES), *awkward(), *random_designs(150, 500)]:
        assert_balanced(latex(design))
        assert not re.search(r"(?<!\\)%", latex(design))
        assert "**" not in latex(design)


def test_latex_of_named_designs() -> None:
    post = latex(parse("post-norm"))
    assert r"x &\leftarrow \operatorname{Norm}_{1}\bigl(x + \operatorname{Attn}(x)\bigr)" in post
    assert r"\left(2\,L\right)^{0.25}\,x" in latex(parse("deepnorm"))
    assert r"\frac{1}{\sqrt{\ell}}\,\operatorname{Norm}_{1}(x)" in latex(parse("layernorm-scaling"))
    assert r"\text{block[:25\%]}" in latex(parse("mix-ln"))
    assert r"\lambda_{1} \odot x" in latex(parse("admin"))
    # A shared parameter set has one name, two of them have two.
    assert latex(parse("rezero")).count(r"g\, ") == 2
    assert {r"g_{1}\,", r"g_{2}\,"} <= set(re.findall(r"g_\{\d\}\\,", latex(parse("skipinit"))))


# --- diagrams -----------------------------------------------------------------------------------------------------


def test_svg_is_well_formed_and_described() -> None:
    for name in NAMES:
        root = ElementTree.fromstring(svg(parse(name)))
        assert root.tag == f"{SVG}svg"
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert title is not None
        assert title.text == f"Block diagram of {name}"
        assert description is not None
        assert description.text
        labels = root.attrib["aria-labelledby"].split()
        assert labels == [title.attrib["id"], description.attrib["id"]]
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", ElementTree.tostring(root, encoding="unicode"))


def test_svg_escapes_names() -> None:
    root = ElementTree.fromstring(svg(parse("post-norm").named('<a href="x">&')))
    assert next(t.text for t in root.iter(f"{SVG}text")) == '<a href="x">&'


def test_svg_marks_what_the_equation_says() -> None:
    def labels(name: str) -> list[str]:
        return [t.text or "" for t in ElementTree.fromstring(svg(parse(name))).iter(f"{SVG}text")]

    assert labels("sandwich").count("norm") == 4
    assert labels("paf").count("norm") == 1
    assert labels("rezero").count("gate a") == 2
    assert labels("deepnorm").count("× (2·depth)^0.25") == 2
    assert labels("macaron").count("ffn") == 2
    assert "× (layer + 1)" in labels("x = x + (layer + 1)*attn(x)")
    assert "× −0.5" in labels("x = x - 0.5*attn(x)")
    assert {"the first 25% of the layers", "the layers from 25% on"} <= set(labels("mix-ln"))
    assert {"e", "x"} <= set(labels("input-injection"))


def test_norms_stand_on_or_off_the_stream() -> None:
    def on_stream(name: str) -> list[bool]:
        return [i.rail for i in Layout(parse(name).blocks[0][1]).items if i.kind == "norm"]

    assert on_stream("post-norm") == [True, True]
    assert on_stream("input-norm") == on_stream("output-norm") == [False, False]
    assert on_stream("paf") == [True]
    assert on_stream("normed-residual") == [True, True]
    assert on_stream("keel").count(True) == 2


def test_the_stream_is_one_straight_line() -> None:
    for name in NAMES:
        for _, section in parse(name).blocks:
            layout = Layout(section)
            ends = [i for i in layout.items if i.stream == "x" and i.kind in ("input", "output")]
            assert {i.lane for i in ends} == {0}, name


def test_every_step_is_drawn_once() -> None:
    for design in random_designs(100, 900):
        for _, section in design.blocks:
            layout = Layout(section)
            assert len({i.net for i in layout.items}) == len(layout.items)
            drawn = [i for i in layout.items if i.kind in ("box", "norm", "mark")]
            assert [i.net for i in drawn] == [s.value for s in section.steps if hasattr(s, "site")]
            for item in layout.items:
                assert all(layout.made[arg].row < item.row for arg in item.args)
                assert all(layout.made[net].row <= item.row for net in item.waits)


class Geometry:
    """The places of one panel's marks and lines, to look for overlaps."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        layout = panel.layout
        self.boxes: list[tuple[Item, tuple[float, float, float, float]]] = []
        for item in layout.items:
            if item.kind in ("box", "norm", "mark", "factor", "sum"):
                x, y = panel.x[item.lane], panel.y[item.row]
                left, right = extent(item)
                half = height(item) / 2 - 1
                self.boxes.append((item, (x - left, y - half, x + right, y + half)))
        self.runs = [(item, run) for item in layout.items for run in panel.runs(item)]
        runs = [run for _, run in self.runs]
        self.nets = {i.net: panel.rise(i, runs) for i in layout.items if i.kind != "output"}

    def check(self) -> None:
        for (a, p), (b, q) in combinations(self.boxes, 2):
            apart = p[2] <= q[0] or q[2] <= p[0] or p[3] <= q[1] or q[3] <= p[1]
            assert apart, f"{a} and {b} overlap"
        for item, (left, top, right, bottom) in self.boxes:
            for name, net in self.nets.items():
                if name == item.net or name in item.args:
                    continue
                crossed = left < net.x < right and net.top < bottom and net.bottom > top
                assert not crossed, f"the line of {name} runs through {item}"
            for owner, run in self.runs:
                if owner is item:
                    continue
                low, high = min(run.x1, run.x2), max(run.x1, run.x2)
                crossed = top < run.y < bottom and low < right and high > left
                assert not crossed, f"the line of {run.net} to {owner.net} runs through {item}"
        for (a, p), (b, q) in combinations([(run.net, run) for _, run in self.runs], 2):
            if a != b and abs(p.y - q.y) < 3:
                low, high = max(min(p.x1, p.x2), min(q.x1, q.x2)), min(max(p.x1, p.x2), max(q.x1, q.x2))
                assert high <= low, f"the lines of {a} and {b} lie on each other"
        for (a, m), (b, n) in combinations(self.nets.items(), 2):
            if abs(m.x - n.x) < 3:
                # One ends where the next begins, inside the mark between them.
                assert min(m.bottom, n.bottom) - max(m.top, n.top) < 4, f"{a} and {b} lie on each other"


def test_nothing_overlaps() -> None:
    for design in [*(parse(name) for name in NAMES), *awkward(), *random_designs(200, 2000)]:
        for _, section in design.blocks:
            panel = Panel(section, "each layer")
            Geometry(panel).check()
        ElementTree.fromstring(svg(design))


def test_text_stays_inside_the_picture() -> None:
    for design in [*(parse(name) for name in NAMES), *awkward(), *random_designs(50, 4000)]:
        root = ElementTree.fromstring(svg(design))
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for group in root.findall(f"{SVG}g"):
            numbers = re.findall(r"-?[\d.]+", group.attrib["transform"])
            dx, dy = float(numbers[0]), float(numbers[1])
            for text in group.iter(f"{SVG}text"):
                assert 0 <= float(text.attrib["x"]) + dx <= width
                assert 0 <= float(text.attrib["y"]) + dy <= height


# --- shapes -------------------------------------------------------------------------------------------------------


def test_shapes_of_a_block() -> None:
    found = {(s.section, s.site, s.name): s.text for s in shapes(parse("post-norm"))}
    assert found["block", "attn", "W_q"] == "d x h*d_h"
    assert found["block", "attn", "W_k"] == found["block", "attn", "W_v"] == "d x h_kv*d_h"
    assert found["block", "attn", "W_o"] == "h*d_h x d"
    assert found["block", "ffn", "W_h"] == "d x d_ff"
    assert found["block", "ffn", "W_f"] == "d_ff x d"
    assert found["block", "stream_norm_2", "gain"] == "d"
    assert not any(section == "final" for section, _, _ in found)


def test_shapes_of_small_operators() -> None:
    found = {s.site: s.text for s in shapes(parse("x = x + gate(scale(dot(x)))\nfinal: x = x"))}
    assert found == {"dot_out_scale": "d", "dot_out_gate": "1"}
    assert table(parse("first-attention")) == "no parameters"


def test_a_shared_parameter_set_is_listed_once() -> None:
    gates = [s for s in shapes(parse("rezero")) if s.name == "factor"]
    assert len(gates) == 1
    assert [s.section for s in shapes(parse("mix-ln")) if s.name == "W_q"] == ["block[:25%]", "block[25%:]"]


def test_the_table_names_each_site() -> None:
    for name in NAMES:
        design = parse(name)
        text = table(design)
        for section in (design.section("embed"), *(s for _, s in design.blocks), design.section("final")):
            for site in section.sites:
                assert site.op in ("dot", "stop") or site.name in text
