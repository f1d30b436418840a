"""Which models the atlas holds, and the workers that audit them; a run goes on where the last one stopped."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import queue
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TASKS = {"causal": "CAUSAL_LM", "masked": "MASKED_LM", "seq2seq": "SEQ_TO_SEQ_CAUSAL_LM"}
LIMIT = 120.0  # seconds a model
WIRINGS = ROOT / "tests" / "audit" / "wirings.json"
LLAMA_405B = {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class Job:
    """A class in one configuration: its default one, or that with other values in some fields.

    ``verify`` asks for the second witness too, ``torch.export``.
    """

    model_class: str
    model_type: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    verify: bool = False

    def text(self) -> str:
        """The job as the worker reads it."""
        job = {"class": self.model_class, "model_type": self.model_type, "overrides": self.overrides}
        return json.dumps(job | {"verify": True} if self.verify else job)


def versions() -> dict[str, str]:
    """What the answers depend on beside our own code."""
    found = {name: importlib.metadata.version(name) for name in ("sublayer", "transformers", "torch")}
    return {**found, "python": platform.python_version()}


def code() -> str:
    """A hash of the sources that decide an answer: the auditor, the notation, the worker, the table's fields."""
    import sublayer

    package = Path(sublayer.__file__).parent
    files = [*(package / "audit").glob("**/*.py"), *(package / "notation").glob("**/*.py")]
    files += [HERE / "worker.py", HERE / "against.py", ROOT / "tests" / "audit" / "truth.py"]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def listed() -> list[dict[str, Any]]:
    """Every model type with its class of the three mappings, in their order, with the tasks that list it."""
    from transformers.models.auto import modeling_auto

    found: dict[tuple[str, str], dict[str, Any]] = {}
    for task, name in TASKS.items():
        for model_type, model_class in getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES").items():
            entry = {"model_type": model_type, "class": model_class, "tasks": []}
            found.setdefault((model_type, model_class), entry)["tasks"].append(task)
    return list(found.values())


def truths() -> list[dict[str, Any]]:
    """The rows of the tests' table of wirings; none where there is no table."""
    if not WIRINGS.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(WIRINGS.read_text(encoding="utf-8"))["rows"]
    return rows


class Worker:
    """A process that audits. It is ended and begun anew when a model takes too long or brings it down."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def ask(self, job: Job, limit: float) -> dict[str, Any]:
        """The answer to one job, or why there is none."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
            )
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(job.text() + "\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            ready = selector.select(limit)
        line = self.process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.end()
        said = "the process ended, perhaps for want of memory" if ready else f"it took more than {limit:.0f} s"
        return {"state": "failed", "reason": said, "seconds": {}}

    def end(self) -> None:
        """Stop the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def run(jobs: list[Job], store: Path, workers: int, limit: float = LIMIT) -> dict[str, dict[str, Any]]:
    """Answers by the text of the job. Those that ``store`` has of the same code and versions are not asked again."""
    stamp = {"code": code(), "versions": versions()}
    answers: dict[str, dict[str, Any]] = {}
    store.parent.mkdir(parents=True, exist_ok=True)
    if store.exists():
        for line in store.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line of a run that was cut off
                record = json.loads(line)
                if record["stamp"] == stamp:
                    answers[record["job"]] = record["answer"]
    wanted = list(dict.fromkeys(job.text() for job in jobs))
    by_text = {job.text(): job for job in jobs}
    waiting: queue.Queue[str] = queue.Queue()
    for text in wanted:
        if text not in answers:
            waiting.put(text)
    print(f"{len(wanted)} models, {len(wanted) - waiting.qsize()} of them read before", file=sys.stderr)
    lock, begun = threading.Lock(), time.monotonic()

    def work() -> None:
        worker = Worker()
        try:
            while True:
                try:
                    text = waiting.get_nowait()
                except queue.Empty:
                    return
                answer = worker.ask(by_text[text], limit)
                with lock, store.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"stamp": stamp, "job": text, "answer": answer}) + "\n")
                    answers[text] = answer
                    _progress(by_text[text], answer, len(answers), len(wanted), time.monotonic() - begun)
        finally:
            worker.end()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if code() != stamp["code"]:
        print("the auditor's source changed during the run: run it again for answers of one kind", file=sys.stderr)
    return {text: answers[text] for text in wanted}


def _progress(job: Job, answer: dict[str, Any], done: int, count: int, elapsed: float) -> None:
    state = answer["state"] if answer["state"] == "traced" else f"{answer['state']}: {answer['reason'][:120]}"
    seconds = answer.get("seconds", {}).get("total", 0.0)
    print(f"[{done}/{count}, {elapsed:.0f} s] {job.model_class}: {state}, {seconds:.2f} s", file=sys.stderr, flush=True)


def largest() -> dict[str, Any]:
    """Llama 3.1 405B in a process of its own: seconds after import, and the peak of memory with all imports."""
    worker = Worker()
    try:
        begun = time.monotonic()
        answer = worker.ask(Job("LlamaForCausalLM", "llama", LLAMA_405B), LIMIT)
        return {
            "state": answer["state"],
            "seconds": answer.get("seconds", {}).get("total"),
            "seconds_with_imports": round(time.monotonic() - begun, 2),
            "peak_mb": answer.get("peak_mb"),
            "equation": [g["equation"] for s in answer.get("stacks", ()) for g in s["layers"]],
        }
    finally:
        worker.end()
