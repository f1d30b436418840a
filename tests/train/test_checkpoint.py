import json
import logging

import pytest

from sublayer.train import TrainError, checkpoint


def make(out, step, content=b"weights"):
    folder = out / f"checkpoint-{step}"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content * 100)
    (folder / "sub" / "state.json").write_text("{}")
    checkpoint.commit(folder, {"step": step, "spec_sha256": "abc"})
    return folder


def test_a_committed_checkpoint_is_found_with_its_facts(tmp_path):
    make(tmp_path, 2)
    make(tmp_path, 10)
    folder, facts = checkpoint.latest(tmp_path)
    assert folder.name == "checkpoint-10"
    assert facts["step"] == 10
    assert set(facts["files"]) == {"model.safetensors", "sub/state.json"}


@pytest.mark.parametrize("victim", ["model.safetensors", "sub/state.json", "manifest.json"])
def test_every_single_bit_matters(tmp_path, victim):
    folder = make(tmp_path, 1)
    original = (folder / victim).read_bytes()
    for place in range(0, len(original), 7):
        damaged = bytearray(original)
        damaged[place] ^= 1 << place % 8
        (folder / victim).write_bytes(damaged)
        with pytest.raises(TrainError):
            checkpoint.verify(folder)
    (folder / victim).write_bytes(original)
    checkpoint.verify(folder)


@pytest.mark.parametrize("change", ["cut", "missing", "added"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path, caplog, change):
    make(tmp_path, 5)
    folder = make(tmp_path, 9)
    if change == "cut":
        (folder / "model.safetensors").write_bytes(b"weights")
    elif change == "missing":
        (folder / "sub" / "state.json").unlink()
    else:
        (folder / "sub" / "more.bin").write_bytes(b"1")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0].name == "checkpoint-5"
    assert "checkpoint of step 9 is damaged" in caplog.text
    assert (tmp_path / "damaged-checkpoint-9-1").is_dir()


def test_a_folder_without_a_manifest_does_not_exist(tmp_path):
    make(tmp_path, 3)
    half = tmp_path / "checkpoint-7"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint-best").mkdir()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0].name == "checkpoint-3"
    assert not half.exists()
    assert (tmp_path / "checkpoint-best").exists(), "not one of ours"
    assert checkpoint.latest(tmp_path / "checkpoint-best") is None


def test_rotation_keeps_the_newest_by_number(tmp_path):
    for step in (5, 20, 100):
        make(tmp_path, step)
    checkpoint.rotate(tmp_path, 2)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [100, 20]


def test_a_manifest_with_other_facts_and_an_old_hash_is_refused(tmp_path):
    folder = make(tmp_path, 5)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["step"] = 6
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainError, match="does not match its own hash"):
        checkpoint.verify(folder)
