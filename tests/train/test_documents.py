import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublayer.train import TrainError, documents
from sublayer.train.documents import PIECE, Document, Source, held_out, open_source
from sublayer.train.library import StandardLibrary
from tests.train.conftest import sentences

# -- the standard library ----------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    def put(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    put("b.py", '"""Module b."""\nraise SystemExit("was imported")\n')
    put(
        "a.py",
        '''"""Module a."""
class C:
    """Class of a."""
    def f(self):
        """Method of a."""
    if True:
        async def g(self):
            """Nested in an if."""
def copy():
    """Module b."""
''',
    )
    put("pkg/__init__.py", "x = 1\n")
    put("test/test_a.py", '"""A test."""')
    put("pkg/tests/t.py", '"""A test."""')
    put("idlelib/i.py", '"""An editor."""')
    put("site-packages/other.py", '"""Another project."""')
    put("broken.py", "def (:\n")
    put("pydoc_data/topics.py", "topics = {'if': 'The if statement.', 'and': 'Boolean operations.'}\n")
    return tmp_path


def test_docstrings_are_read_and_nothing_is_imported(library):
    found = list(StandardLibrary(library).documents())
    assert [document.name for document in found] == ["a.py", "pydoc_data/and", "pydoc_data/if"]
    assert found[0].text == "Module a.\n\nClass of a.\n\nMethod of a.\n\nNested in an if.\n\nModule b."
    assert found[2].text == "The if statement."


def test_the_fingerprint_goes_by_the_bytes(library):
    before = StandardLibrary(library).fingerprint()
    assert before == StandardLibrary(library).fingerprint()
    (library / "b.py").write_text('"""Module b, changed."""')
    assert before != StandardLibrary(library).fingerprint()


def test_the_running_python_has_a_megabyte_of_documentation():
    one, two = (list(open_source("docs").documents()) for _ in range(2))
    assert one == two
    assert sum(len(document.text) for document in one) > 1_000_000
    assert not any({"test", "tests", "idlelib", "site-packages"} & set(d.name.split("/")) for d in one)
    assert any(document.name.startswith("pydoc_data/") for document in one)


def test_no_sources_is_an_error(tmp_path):
    with pytest.raises(TrainError, match="has none; give a path"):
        StandardLibrary(tmp_path)


# -- files -------------------------------------------------------------------------------------------------------------


def test_wikitext_is_split_at_its_articles(tmp_path):
    (tmp_path / "wiki.txt").write_text(
        " \n = One = \n \n Text one . \n = = Part = = \n More . \n = Two = \n \n Text two . \n"
    )
    found = list(open_source(str(tmp_path / "wiki.txt")).documents())
    assert [document.text.split()[1] for document in found] == ["One", "Two"]
    assert "Part" in found[0].text


def test_text_is_split_at_the_end_marker(tmp_path):
    (tmp_path / "t.txt").write_text("One.\n<|endoftext|>\nTwo.<|endoftext|>Three.\r\nMore.")
    found = [document.text.strip() for document in open_source(str(tmp_path / "t.txt")).documents()]
    assert found == ["One.", "Two.", "Three.\nMore."]


def test_a_single_long_document_is_cut_at_blank_lines(tmp_path):
    paragraphs = [sentences(i, 8) for i in range(40)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    found = list(open_source(str(tmp_path / "book.txt")).documents())
    assert len(found) > 2
    assert all(len(document.text) >= PIECE for document in found[:-1])
    assert "\n\n".join(document.text for document in found) == "\n\n".join(paragraphs)


def test_jsonl_parquet_and_folders(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "One."}, {"text": ""}, {"text": "Two.", "id": 2}]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Three.", None, "Four."]}), tmp_path / "c.parquet")
    (tmp_path / "a.txt").write_text("Zero.")
    (tmp_path / ".hidden.txt").write_text("Hidden.")
    (tmp_path / "notes.md").write_text("Not read.")
    found = list(open_source(str(tmp_path)).documents())
    assert [document.text for document in found] == ["Zero.", "Three.", "Four.", "One.", "Two."]


def test_records_that_are_lines_of_wikitext_are_joined(tmp_path):
    lines = ["", " = One = \n", " Text . \n", " = Two = \n", " = = Part = = \n", " More . \n"]
    (tmp_path / "w.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    found = list(open_source(str(tmp_path / "w.jsonl")).documents())
    assert [document.text for document in found] == [" = One = \n Text . \n", " = Two = \n = = Part = = \n More . \n"]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("missing.txt", None, ["no file or folder"]),
        ("a.csv", b"x", ["none of .txt, .jsonl, .parquet"]),
        ("empty.txt", b"", ["holds no text"]),
        ("blank.txt", b" \n \n", ["holds no text"]),
        ("short.txt", b"One line only.", ["one document of 14 characters", "at least two"]),
        ("latin.txt", "Grüße\nund mehr".encode("latin-1"), ["byte 2 (0xfc, line 1)", "UTF-8", "iconv"]),
        ("bad.jsonl", b'{"text": "a"}\n{text}\n', ["line 2 is not JSON"]),
        ("field.jsonl", b'{"body": "a"}\n', ["line 1", "'body'"]),
        ("list.jsonl", b'["a"]\n', ["line 1", "list"]),
        ("number.jsonl", b'{"text": 3}\n', ["line 1"]),
        ("bad.parquet", b"nothing", ["not a Parquet file"]),
        ("same.jsonl", b'{"text": "a"}\n{"text": "a"}\n', ["the same text"]),
    ],
)
def test_bad_files_are_one_message(tmp_path, name, content, parts):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainError) as caught:
        held_out(open_source(str(tmp_path / name)))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_text_and_a_table_without_a_text_column(tmp_path):
    import pyarrow
    import pyarrow.parquet

    with pytest.raises(TrainError, match=r"has no \.txt, \.jsonl, \.parquet files"):
        open_source(str(tmp_path))
    pyarrow.parquet.write_table(pyarrow.table({"body": ["Three."]}), tmp_path / "c.parquet")
    with pytest.raises(TrainError, match=r"needs a column \"text\"; it has 'body'"):
        list(open_source(str(tmp_path)).documents())


# -- the Hub -----------------------------------------------------------------------------------------------------------


def test_the_hub_is_read_through_datasets(monkeypatch):
    import datasets

    asked = []

    def load(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_dict({"text": ["One.", "Two.", "Three."]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("hub:some/name:config")
    assert [document.text for document in source.documents()] == ["One.", "Two.", "Three."]
    assert asked == [(("some/name", "config"), {"split": "train"})]
    assert source.fingerprint() == source.fingerprint()


def test_hub_failures_are_one_message(monkeypatch):
    import datasets

    def fail(*args, **options):
        raise ConnectionError("no network\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(TrainError, match=r"cannot load 'hub:a/b' from the Hub: no network$"):
        list(open_source("hub:a/b").documents())
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: datasets.Dataset.from_dict({"body": ["One."]}))
    with pytest.raises(TrainError, match="needs a column"):
        open_source("hub:a/b").fingerprint()
    with pytest.raises(TrainError, match="hub:NAME or hub:NAME:CONFIG"):
        open_source("hub:")


# -- the split ---------------------------------------------------------------------------------------------------------


def test_the_split_goes_by_whole_documents_and_their_text(texts):
    source = open_source(str(texts))
    documents = list(source.documents())
    aside = held_out(source)
    size = sum(len(d.text) for d in documents)
    share = sum(len(d.text) for d in documents if d.digest() in aside) / size
    assert 0.08 < share < 0.2
    assert held_out(open_source(str(texts))) == aside
    assert Document("another name", documents[0].text).digest() == documents[0].digest()


def test_the_split_hardly_moves_when_text_is_added(texts, tmp_path):
    for path in texts.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = held_out(open_source(str(tmp_path)))
    (tmp_path / "more.txt").write_text(sentences(99, 5))
    assert len(held_out(open_source(str(tmp_path))) ^ before) <= 2


def test_two_documents_are_enough(tmp_path):
    (tmp_path / "a.txt").write_text("Short.")
    (tmp_path / "b.txt").write_text(sentences(0, 100))
    assert held_out(open_source(str(tmp_path))) == {Document("", "Short.").digest()}


# -- large sources are read as streams ---------------------------------------------------------------------------------


class Listed(Source):
    """Documents of a list."""

    def __init__(self, texts):
        super().__init__("listed")
        self.texts = texts

    def fingerprint(self):
        return ""

    def raw(self):
        return (Document("", text) for text in self.texts)


def whole_split(source, most):
    """The split with the sizes of all documents at hand."""
    sizes = {}
    for document in source.documents():
        sizes[document.digest()] = sizes.get(document.digest(), 0) + len(document.text)
    goal, chosen, taken = min(0.1 * sum(sizes.values()), most), set(), 0
    for digest in sorted(sizes):
        if taken < goal and taken + sizes[digest] <= 2 * goal:
            chosen.add(digest)
            taken += sizes[digest]
    return chosen or {min(sizes, key=lambda digest: (sizes[digest], digest))}


@pytest.mark.parametrize("longest", [5, 30, 100, 300])
def test_the_split_of_a_large_source_is_that_of_all_its_sizes(monkeypatch, longest):
    monkeypatch.setattr("sublayer.train.documents.HELD_OUT_MOST", 50)
    draw = random.Random(longest)
    for kinds in (3, 50) * 100:
        texts = [
            "x" * draw.randint(1, longest) + str(draw.randint(0, kinds)) + "!" * (i == 0)
            for i in range(draw.randint(3, 80))
        ]
        assert held_out(Listed([*texts, "end"])) == whole_split(Listed([*texts, "end"]), 50)


def test_sizes_that_are_held_do_not_grow_with_the_source(monkeypatch):
    monkeypatch.setattr("sublayer.train.documents.HELD_OUT_MOST", 1000)
    sizes = []

    def watched(kept, *rest):
        sizes.append(len(kept))
        return first(kept, *rest)

    first = documents._first
    monkeypatch.setattr("sublayer.train.documents._first", watched)
    held_out(Listed([f"document {i}" for i in range(20_000)]))
    assert 0 < max(sizes) < 1000


@pytest.mark.parametrize("before", ["", "\n<|endoftext|>\n", " \r\n"])
def test_a_large_file_of_one_document_is_never_held(tmp_path, monkeypatch, before):
    path = tmp_path / "book.txt"
    path.write_text(before + "\r\n \r\n\r\n".join(sentences(i, 8) for i in range(200)), newline="")
    small = list(open_source(str(path)).documents())
    monkeypatch.setattr("sublayer.train.files.LARGE", 1000)
    monkeypatch.setattr("sublayer.train.files._read_text", lambda *a: pytest.fail("read as a whole"))
    source = open_source(str(path))
    assert list(source.documents()) == small
    assert list(source.documents()) == small
    assert len(small) > 10


def test_a_large_file_with_several_documents_or_no_blank_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sublayer.train.files.LARGE", 10)
    (tmp_path / "t.txt").write_text("One is here.<|endoftext|>\nTwo is there.")
    assert [d.name for d in open_source(str(tmp_path / "t.txt")).documents()] == ["t.txt#0", "t.txt#1"]
    (tmp_path / "line.txt").write_text("One line that is long enough.")
    with pytest.raises(TrainError, match="is one document of 29 characters"):
        open_source(str(tmp_path / "line.txt")).documents()


@given(st.text(alphabet="\n\n ab\r\x0b\u2028", max_size=30))
def test_paragraphs_of_a_stream_are_those_of_a_split(text):
    wanted = re.split(r"\n\s*\n", text)
    assert list(documents._paragraphs([text])) == wanted
    assert list(documents._paragraphs(re.findall(r"[^\n]*\n|[^\n]+", text))) == wanted
