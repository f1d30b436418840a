"""A lock is readable, finds a changed wiring, and is refused when a byte of it changed."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from sublayer.audit import Audit, AuditError
from sublayer.audit.lock import MOST_BYTES, _digest, check_lock, lock_text, read_lock, write_lock
from sublayer.audit.result import NormFacts
from sublayer.notation import designs
from tests.audit.made_up import RMSNORM, audit, llama, stack, with_layers


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    path = tmp_path / "wiring.lock"
    write_lock(audit("mix-ln"), path)
    return path


def resigned(text: str) -> bytes:
    """The text with the hash that fits it, as somebody would who knows how."""
    raw = text.encode()
    old = json.loads(text)["sha256"].encode()
    return raw.replace(old, _digest(raw).encode(), 1)


@pytest.mark.parametrize("entry", designs(), ids=lambda e: e.name)
def test_what_was_locked_holds(entry, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    one = audit(entry.name)
    write_lock(one, tmp_path / "wiring.lock")
    checked = check_lock(one, tmp_path / "wiring.lock")
    assert checked, str(checked)
    assert "holds" in str(checked)
    assert not check_lock(audit("skipless-parallel", depth=3), tmp_path / "wiring.lock")


def test_it_is_readable_and_short() -> None:
    text = lock_text(llama(126))
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) < 320
    for part in (
        '"schema": "sublayer.wiring/1"',
        '"at": "0-125"',
        '"equation": "x = x + attn(norm(x)); x = x + ffn(norm(x))"',
        '"kv_heads": 8',
        '"eps": 1e-06',
    ):
        assert part in text


def test_one_changed_layer_changes_few_lines() -> None:
    one = llama()
    norms = tuple(replace(n, eps=1e-5) for n in one.stacks[0].layers[0].norms)
    before, after = (lock_text(x).splitlines() for x in (one, with_layers(one, range(32), norms=norms)))
    changed = [line for line in after if line not in before]
    assert len(changed) == 3, changed
    assert sum("sha256" in line for line in changed) == 1


def test_it_names_neither_modules_nor_parameters_nor_times() -> None:
    one = llama()
    assert lock_text(replace(one, seconds=9.0)) == lock_text(one)
    branches = tuple(replace(b, module="moved", parameters=("w",)) for b in one.stacks[0].layers[0].branches)
    assert lock_text(with_layers(one, range(32), branches=branches, module="moved")) == lock_text(one)


def test_a_changed_wiring_is_told_in_words(locked: Path) -> None:
    checked = check_lock(audit("input-norm", norm=RMSNORM), locked)
    assert not checked
    text = str(checked)
    assert "layers 0-2:" in text
    assert "moved from the sums to their inputs" in text
    assert "layernorm -> rmsnorm" in text
    assert checked.to_dict()["held"] is False


def test_facts_survive_the_file(tmp_path: Path) -> None:
    one = audit("post-norm", details={"attn": {"qk_norm": "head"}})
    norms = (*one.stacks[0].layers[0].norms, NormFacts("rmsnorm", None, "none", "query or key"))
    one = replace(
        with_layers(one, range(4), norms=norms, notes=("positions are masked",)),
        dead_inputs=("token_type_ids",),
        dead_parameters=("a", "b"),
    )
    write_lock(one, tmp_path / "lock")
    assert check_lock(one, tmp_path / "lock")
    again, _ = read_lock(tmp_path / "lock")
    assert again.stacks[0].layers[3].norms[-1].eps is None
    assert again.design == one.design
    assert not check_lock(replace(one, dead_inputs=()), tmp_path / "lock")
    assert not check_lock(replace(one, dead_parameters=("a",)), tmp_path / "lock")


def test_two_stacks(tmp_path: Path) -> None:
    both = Audit("T5", (stack("t5", 6, name="encoder"), stack("t5", 6, name="decoder")))
    write_lock(both, tmp_path / "lock")
    assert check_lock(both, tmp_path / "lock")
    assert "encoder" in str(check_lock(replace(both, stacks=both.stacks[1:]), tmp_path / "lock"))


def test_what_was_unknown_is_named_and_not_called_equal(tmp_path: Path) -> None:
    def dark(layers: range, why: str = "it scans") -> Audit:
        return with_layers(audit("input-norm"), layers, equation="", design=None, unknown=why)

    path = tmp_path / "lock"
    write_lock(dark(range(3, 5)), path)
    checked = check_lock(dark(range(3, 5)), path)
    assert checked
    assert not checked.diff.same
    assert "not covered, unknown as before: layers 3-4: in both, because it scans" in str(checked)
    for other in (dark(range(3, 6)), dark(range(3, 5), "it folds"), audit("input-norm")):
        assert not check_lock(other, path)


def test_a_model_of_which_nothing_is_known_is_not_locked(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="it does not run"):
        write_lock(Audit("Strange", (), unknown="it does not run"), tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


# --- files that are no locks --------------------------------------------------------------------------------------


def test_every_changed_byte_is_found(locked: Path) -> None:
    whole = locked.read_bytes()
    generator = random.Random(0)
    places = range(len(whole)) if len(whole) < 400 else sorted(generator.sample(range(len(whole)), 400))
    for place in places:
        for bit in (1, 32):
            locked.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.raises(AuditError):
                read_lock(locked)


def test_white_space_counts_too(locked: Path) -> None:
    locked.write_bytes(locked.read_bytes() + b"\n")
    with pytest.raises(AuditError, match="changed by hand or damaged"):
        read_lock(locked)


def test_a_lock_that_is_cut_short(locked: Path) -> None:
    whole = locked.read_bytes()
    for size in range(0, len(whole) - 1, 37):
        locked.write_bytes(whole[:size])
        with pytest.raises(AuditError, match="cut short"):
            read_lock(locked)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is JSON"),
        (b"[]", "JSON object"),
        (b"\xff\xfe\x00", "is JSON"),
        (b"[" * 200_000, "is JSON"),
        (b"x = attn(x)", "is JSON"),
        (b'{"schema": NaN}', "is JSON"),
        (b'{"schema": "sublayer.wiring/2"}', "schema"),
        (b'{"schema": "sublayer.wiring/1"}', "hash"),
        (b'{"schema": "sublayer.wiring/1", "sha256": "x"}', "hash"),
        (b" " * (MOST_BYTES + 1), "bytes"),
    ],
)
def test_what_is_no_lock(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(AuditError, match=said) as error:
        read_lock(tmp_path / "lock")
    assert "--lock" in str(error.value), "the remedy"
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"at": "0-2"', '"at": "0-999999"'),
        ('"at": "0-2"', '"at": "0-5"'),
        ('"at": "0-2"', '"at": "1-2"'),
        ('"at": "0-2"', '"at": "2-0"'),
        ('"at": "0-2"', '"at": "all"'),
        ('"at": "0-2"', '"at": 3'),
        ('"equation": "x = norm(x + attn(x))', '"equation": "x = nothing(x + attn(x))'),
        ('"width": 768', '"width": "wide"'),
        ('"dead_parameters": 0', '"dead_parameters": -1'),
        ('"dead_parameters": 0', '"dead_parameters": 99999999999'),
        ('"dead_inputs": []', '"dead_inputs": 3'),
        ('"norm": "layernorm"', '"strange": "layernorm"'),
        ('"heads": 12', '"heads": ' + "9" * 5000),
    ],
)
def test_a_wrong_lock_with_the_right_hash(old: str, new: str, locked: Path) -> None:
    text = locked.read_text()
    assert old in text
    locked.write_bytes(text.replace(old, new, 1).encode())
    with pytest.raises(AuditError):
        read_lock(locked)
    try:
        locked.write_bytes(resigned(text.replace(old, new, 1)))
    except ValueError:  # Python reads no number of 5,000 digits
        return
    with pytest.raises(AuditError) as error:
        read_lock(locked)
    assert len(str(error.value)) < 800


def test_a_lock_is_written_whole_or_not_at_all(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = locked.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_lock(llama(), locked)
    assert locked.read_bytes() == before
    assert [path.name for path in locked.parent.iterdir()] == ["wiring.lock"]


def test_another_version_is_said(locked: Path) -> None:
    text = locked.read_text().replace('"sublayer": "', '"sublayer": "9.')
    locked.write_bytes(resigned(text))
    assert "the lock is of Sublayer 9." in str(check_lock(audit("input-norm"), locked))
    assert check_lock(audit("mix-ln"), locked)
