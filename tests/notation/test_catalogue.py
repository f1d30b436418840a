"""Every named design reads, prints and reads back; names are unique; what cannot be expressed says why."""

import re
from collections import Counter

import pytest

from sublayer.notation import DesignError, Entry, designs, parse, unsupported
from sublayer.notation.catalogue import ambiguous, lookup, nearest, resolve, unsupported_lookup
from sublayer.notation.entries import key

ENTRIES = {entry.name: entry for entry in designs()}


def test_there_are_many_designs() -> None:
    assert len(designs()) == len(ENTRIES) >= 80
    assert len(unsupported()) >= 15


@pytest.mark.parametrize("entry", designs(), ids=lambda entry: entry.name)
def test_entry_reads_and_round_trips(entry: Entry) -> None:
    design = parse(entry.name)
    assert design.name == entry.name
    assert parse(str(design)) == parse(entry.text) == design
    assert parse(str(design)).name is None
    assert entry.name in design.names
    for depth in (4, 12):
        design.check_depth(depth)


@pytest.mark.parametrize("entry", designs(), ids=lambda entry: entry.name)
def test_entry_can_be_built(entry: Entry) -> None:
    design = parse(entry.name)
    sections = [design.section("embed"), *(section for _, section in design.blocks), design.section("final")]
    written_only = {"cross", "moe", "mixer", "op"}
    assert not {site.op for section in sections for site in section.sites} & written_only


@pytest.mark.parametrize("entry", designs(), ids=lambda entry: entry.name)
def test_entry_is_described_and_cited(entry: Entry) -> None:
    assert entry.title
    assert entry.used
    assert re.search(r"\((19|20)\d\d\)", entry.citation), "a citation has a year"
    assert re.match(r"[A-Z]", entry.citation), "a citation starts with its authors"
    for number in re.findall(r"arXiv:(\S+)", " ".join((entry.citation, entry.used, entry.note))):
        assert re.fullmatch(r"\d{4}\.\d{4,5}[,;:.)]*", number)
    assert not entry.note or entry.note.rstrip(")").endswith(".")


def test_names_and_aliases_are_unique() -> None:
    names = [key(name) for entry in (*designs(), *unsupported()) for name in (entry.name, *entry.aliases)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert not [name for name in names if ambiguous(name)]
    for entry in designs():
        assert re.fullmatch(r"[a-z0-9-]+", entry.name)


def test_names_are_found_whatever_their_spelling() -> None:
    for entry in designs():
        for name in (entry.name, *entry.aliases):
            for spelling in (name, name.upper(), name.replace("-", "_"), name.replace("-", " "), f"  {name} "):
                assert lookup(spelling) is entry
                assert parse(spelling).name == entry.name


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("peri-ln", "sandwich"),
        ("pre-ln", "input-norm"),
        ("res-post-norm", "output-norm"),
        ("pre-norm-flm", "output-norm"),
        ("saf", "post-norm"),
        ("transformer", "post-norm"),
        ("gpt-2", "input-norm"),
        ("llama", "gpt-2"),
        ("olmo-2", "output-norm"),
        ("gemma-2", "sandwich"),
        ("gpt-j", "palm"),
        ("gpt-neox", "parallel-two-norms"),
        ("bert", "roberta"),
        ("fixup", "skipinit"),
        ("cait", "layerscale"),
    ],
)
def test_equal_wirings(left: str, right: str) -> None:
    assert parse(left) == parse(right)


def test_unlike_wirings_differ() -> None:
    names = ["post-norm", "input-norm", "output-norm", "sandwich", "paf", "parallel-one-norm", "parallel-two-norms"]
    names += ["normed-residual", "deepnorm", "glm-130b", "chatglm-6b", "b2t", "residual", "keel", "rezero", "skipinit"]
    names += ["bert", "bloom", "mix-ln", "modernbert", "hybridnorm", "hybridnorm-star", "no-norm", "dyt"]
    assert len({parse(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("post-norm", "x = norm(x + attn(x)); x = norm(x + ffn(x))"),
        ("input-norm", "x = x + attn(norm(x)); x = x + ffn(norm(x))"),
        ("output-norm", "x = x + norm(attn(x)); x = x + norm(ffn(x))"),
        ("sandwich", "x = x + norm(attn(norm(x))); x = x + norm(ffn(norm(x)))"),
        ("parallel-one-norm", "h = norm(x); x = x + attn(h) + ffn(h)"),
        ("parallel-two-norms", "x = x + attn(norm(x)) + ffn(norm(x))"),
        ("paf", "x = norm(x + attn(x) + ffn(x))"),
        ("bert", "embed: x = norm(e)\nblock: x = norm(x + attn(x)); x = norm(x + ffn(x))\nfinal: x = x"),
        # ladder residual with both pending terms carried, as its authors' code has it
        (
            "ladder-residual",
            "embed: x = e; r = e\nblock: h = x + attn(norm(r)); f = ffn(norm(x)); r = h; x = h + f\nfinal: x = norm(x)",
        ),
    ],
)
def test_the_equation_of_a_name(name: str, text: str) -> None:
    assert parse(name) == parse(text)


@pytest.mark.parametrize("spelling", ["pre-norm", "prenorm", "pre_norm", "pre norm", "Pre-Norm", " PRE NORM "])
def test_pre_norm_is_refused_with_both_meanings(spelling: str) -> None:
    with pytest.raises(DesignError) as error:
        parse(spelling)
    for part in ("x + F(norm(x))", "x + norm(F(x))", "input-norm", "pre-ln", "output-norm", "res-post-norm", "^^^"):
        assert part in str(error.value)


@pytest.mark.parametrize("entry", unsupported(), ids=lambda entry: entry.name)
def test_unsupported_designs_say_why(entry: object) -> None:
    assert entry in unsupported()
    for name in (entry.name, *entry.aliases):  # type: ignore[attr-defined]
        assert unsupported_lookup(name) is entry
        with pytest.raises(DesignError) as error:
            parse(name.upper())
        assert entry.reason in str(error.value)  # type: ignore[attr-defined]
        assert entry.citation in str(error.value)  # type: ignore[attr-defined]


def test_reasons_name_designs_that_exist() -> None:
    for entry in unsupported():
        for name in re.findall(r"(?:is|near|nearest is) ([a-z]+(?:-[a-z]+)+)", entry.reason):
            assert lookup(name), f"{entry.name} points to {name}"


def test_unknown_names_get_the_nearest() -> None:
    assert nearest("sandwhich") == "sandwich"
    with pytest.raises(DesignError, match="nearest valid spelling: deepnorm"):
        parse("deep norms")
    assert nearest("zzzzzz") is None


def test_an_equation_is_no_name() -> None:
    for text in ("x = attn(x)", "block: x = attn(x)", "attn(x)", "", "x;y", "a\nb"):
        assert resolve(text) is None
