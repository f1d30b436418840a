import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from sublayer.train import TrainError, cache, prepare
from sublayer.train import tokenizer as tokenizers
from sublayer.train.documents import Document, held_out, open_source


@pytest.fixture(scope="module")
def corpus(spec):
    return prepare(spec())


def test_the_splits_hold_the_documents_and_nothing_else(spec, corpus):
    source = open_source(spec().data)
    aside = held_out(source)
    tokenizer = tokenizers.load(corpus.tokenizer)
    for tokens, is_held_out in ((corpus.train, False), (corpus.eval, True)):
        wanted = [d.text for d in source.documents() if (d.digest() in aside) == is_held_out]
        bounds = zip(tokens.starts[:-1], tokens.starts[1:], strict=True)
        rows = [tokens.ids[begin:end].tolist() for begin, end in bounds]
        assert all(row[-1] == corpus.vocabulary.end for row in rows)
        assert [tokenizer.decode(row[:-1]) for row in rows] == wanted
    assert corpus.facts["documents"] == 40
    assert corpus.facts["eval_documents"] == len(aside)
    assert corpus.facts["train_tokens"] == len(corpus.train.ids)


def test_the_second_time_it_is_read_as_memory_mapped_arrays(spec, corpus, monkeypatch):
    monkeypatch.setattr("sublayer.train.cache._make", lambda *a: pytest.fail("made again"))
    again = prepare(spec(data_seed=5, objective="clm", seq=64))
    assert again.folder == corpus.folder
    assert isinstance(again.train.ids, np.memmap)
    assert again.train.ids.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        again.train.ids[0] = 1


def test_the_key_goes_by_content(spec, corpus, texts, tmp_path):
    for path in texts.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert prepare(spec(data=str(tmp_path))).folder == corpus.folder, "where it lies does not matter"
    assert prepare(spec(vocab_size=330)).folder != corpus.folder
    (tmp_path / "00.txt").write_text("Another first document.")
    assert prepare(spec(data=str(tmp_path))).folder != corpus.folder


@pytest.mark.parametrize("victim", ["train.npy", "eval.starts.npy", "entry.json", "tokenizer/tokenizer.json"])
def test_a_damaged_entry_is_set_aside_and_made_again(spec, tmp_path, caplog, victim):
    good = prepare(spec(cache=str(tmp_path)))
    ids = np.array(good.train.ids)
    target = good.folder / victim
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = prepare(spec(cache=str(tmp_path)))
    assert "is damaged" in caplog.text
    assert list(tmp_path.glob("*.damaged-*"))
    assert np.array_equal(again.train.ids, ids)


@pytest.mark.parametrize("name", ["tokenizer/special_tokens_map.json", "entry.json"])
def test_what_is_added_to_an_entry_is_damage_too(spec, tmp_path, caplog, name):
    """A tokenizer reads whatever lies in its folder; blanks in JSON change no value and are found all the same."""
    target = prepare(spec(cache=str(tmp_path))).folder / name
    with open(target, "a") as file:
        file.write(" " if target.name == "entry.json" else '{"mask_token": "the"}')
    with caplog.at_level(logging.WARNING):
        again = prepare(spec(cache=str(tmp_path)))
    assert "is damaged" in caplog.text
    assert not (again.folder / "tokenizer/special_tokens_map.json").exists()


def test_two_processes_at_once_and_a_third_that_died(spec, tmp_path):
    one = spec(cache=str(tmp_path / "cache"))
    left = tmp_path / "cache" / "abc.making-1"
    left.mkdir(parents=True)
    (left / "train.raw").write_bytes(b"half")
    os.utime(left, (0, 0))
    (tmp_path / "spec.json").write_text(one.to_json())
    code = (
        "import sys, hashlib; from sublayer.train import TrainSpec, prepare; c = prepare(TrainSpec.load(sys.argv[1]))\n"
        "print(c.folder.name, hashlib.sha256(c.train.ids.tobytes()).hexdigest(), c.facts['tokenizer_sha256'])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "spec.json")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(told) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1, "nothing half-made is left"


def test_a_tokenizer_is_the_same_each_time_and_loses_no_text(tmp_path, texts):
    documents = list(open_source(str(texts)).documents())
    for name in ("one", "two"):
        tokenizers.train(documents, 320, tmp_path / name)
    assert tokenizers.identity(str(tmp_path / "one")) == tokenizers.identity(str(tmp_path / "two"))
    found = tokenizers.load(tmp_path / "one")
    words = tokenizers.vocabulary(found, "mlm")
    text = " Odd: \x00 naïve 漢字 🙂  two  spaces\n\n\ttab <mask> <eos>"
    (ids,) = tokenizers.encode(found, [text], words.end)
    assert found.decode(ids[:-1]) == text
    assert not set(ids[:-1]) & set(words.special), "a special token spelt out in a text is text"
    assert words.size == 320


def test_a_large_document_is_encoded_in_parts_and_to_the_same_ids(spec, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("sublayer.train.cache._CHUNK_SIZE", 200)
    parted = prepare(spec(cache=str(tmp_path)))
    for name in ("train.npy", "train.starts.npy", "eval.npy", "eval.starts.npy"):
        assert (parted.folder / name).read_bytes() == (corpus.folder / name).read_bytes()
    longest = max((d.text for d in open_source(spec().data).documents()), key=len)
    assert len(list(tokenizers.parts(longest, 200))) > 3


def test_the_parts_of_a_text_are_cut_between_lines():
    assert list(tokenizers.parts("ab\n\ncd \nef\ngh\nij", 1)) == ["ab\n\ncd \nef\n", "gh\n", "ij"]
    assert list(tokenizers.parts("no line ends here", 3)) == ["no line ends here"]
    assert list(tokenizers.parts("", 3)) == [""]


def test_arrays_that_grow_are_as_numpy_saves_them(tmp_path):
    grown = cache._Array(tmp_path / "grown.npy", np.dtype(np.int64))
    for count in (1, 5, 100):
        grown.extend(list(range(count)))
    grown.close()
    np.save(tmp_path / "saved.npy", np.concatenate([np.arange(count) for count in (1, 5, 100)]))
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_a_tokenizer_of_ones_own(spec, corpus, tmp_path):
    mine = tmp_path / "mine"
    tokenizers.train([Document("", "abc abc abd")], 300, mine)
    made = prepare(spec(tokenizer=str(mine), cache=str(tmp_path / "cache")))
    assert made.vocabulary.size == tokenizers.vocabulary(tokenizers.load(mine), "mlm").size
    assert made.facts["tokenizer"] == str(mine)
    assert made.folder.name != corpus.folder.name


def test_a_tokenizer_without_a_mask_serves_clm_only(spec, tmp_path):
    mine = tmp_path / "mine"
    tokenizers.train([Document("", "abc abc abd")], 300, mine)
    settings = json.loads((mine / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (mine / "tokenizer_config.json").write_text(json.dumps(settings))
    own = {"tokenizer": str(mine), "cache": str(tmp_path / "cache")}
    assert prepare(spec(objective="clm", **own)).vocabulary.mask is None
    with pytest.raises(TrainError, match="needs a tokenizer with a mask token"):
        prepare(spec(objective="mlm", **own))


def test_a_missing_tokenizer_and_too_little_text_are_one_message(spec, tmp_path):
    with pytest.raises(TrainError, match=r"cannot load the tokenizer '/nowhere/tokenizer': [^\n]*$"):
        prepare(spec(tokenizer="/nowhere/tokenizer"))
    with pytest.raises(TrainError, match="a row needs 4096 of each; give more text or a smaller seq"):
        prepare(spec(seq=4096))


def test_an_entry_that_another_process_has_made_anew_stays(spec, tmp_path):
    """Two processes find an entry damaged; by the time that the second moves it aside, the first has mended it."""
    folder = prepare(spec(cache=str(tmp_path))).folder
    cache._set_aside(folder, "it was damaged when we looked")
    assert cache._entry(folder)[1] is None
    assert list(tmp_path.iterdir()) == [folder]
    folder.rename(tmp_path / "taken")
    cache._set_aside(folder, "and is gone by now")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]
