"""One process that audits models: reads jobs from standard input, a JSON object a line, and answers each with a line.

A job names a class and a model type, and may override fields of the config, or asks for the config alone. The answer
holds what the atlas keeps of an audit, the fields that the table of truth knows, and what it cost.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from against import apart

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"\.\d+(?=[.\s),]|$)")  # the number of a layer in a module's path


class Clock:
    """Seconds spent inside functions that it has wrapped."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - begun

        return timed


def main() -> int:
    """Answer jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a model prints goes to standard error
    warnings.simplefilter("ignore")
    from sublayer.audit import read, target

    clock = Clock()
    for name, module in (("trace", read), ("build", target)):  # building again at other depths counts too
        vars(module)[name] = clock.around(name, vars(module)[name])
    fields = _truth()
    for line in sys.stdin:
        job = json.loads(line)
        clock.spent.clear()
        _forget_peak()
        with contextlib.redirect_stdout(io.StringIO()):
            answer = _answer(job, clock, fields)
        answer["peak_mb"] = _peak()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def _truth() -> Callable[..., dict[str, Any]]:
    """What turns an audit into the fields of the table of truth: the tests' own function."""
    spec = importlib.util.spec_from_file_location("truth", ROOT / "tests" / "audit" / "truth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., dict[str, Any]] = module.fields
    return function


def _answer(job: dict[str, Any], clock: Clock, fields: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Audit one model with the first config that can be built and run."""
    import transformers

    begun = time.perf_counter()
    model_class = getattr(transformers, job["class"])
    answer: dict[str, Any] = {"state": "not built", "reason": "", "import_seconds": time.perf_counter() - begun}
    begun = time.perf_counter()
    try:
        for config, repairs in _configs(job, model_class):
            begun = time.perf_counter()
            clock.spent.clear()
            if _one(answer, model_class, config, fields, bool(job.get("verify"))):
                answer["repairs"] = [*repairs]
                break
    except Exception as error:  # a config's own checks raise what they like
        answer["reason"] = answer["reason"] or f"{type(error).__name__}: {_short(error)}"
    total = time.perf_counter() - begun
    spent = {name: clock.spent.get(name, 0.0) for name in ("build", "trace")}
    seconds = {**spent, "read": max(0.0, total - sum(spent.values())), "total": total}
    answer["seconds"] = {name: round(value, 3) for name, value in seconds.items()}
    return answer


def _configs(job: dict[str, Any], model_class: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from sublayer.audit.defaults import candidates

    config_class = CONFIG_MAPPING[job["model_type"]] if job.get("model_type") else model_class.config_class
    if job.get("overrides"):
        yield config_class(**job["overrides"]), ()
        return
    yield from candidates(config_class)


def _one(
    answer: dict[str, Any], model_class: Any, config: Any, fields: Callable[..., dict[str, Any]], verify: bool
) -> bool:
    """Build and audit one config; whether it was traced."""
    from sublayer.audit import AuditError, read, target
    from sublayer.audit.configs import configs_in

    answer["state"] = "not built"
    try:
        module = target.build(config, model_class)
        answer["state"] = "not traced"
        audit = read.audit(module, verify=verify)
    except AuditError as error:
        answer["reason"] = str(error)
        return False
    if not audit.stacks and any(f.severity == "error" for f in audit.findings):
        answer["reason"] = audit.unknown
        return False
    answer.update(state="traced", reason="", **_record(audit))
    answer["apart"] = apart(configs_in(module.config), answer["stacks"])
    try:
        answer["fields"] = fields(audit)
    except AssertionError as error:
        answer["fields"] = {"unknown": str(error)}
    answer["parameters"] = sum(p.numel() for p in module.parameters())
    return True


# --- what is kept of an audit -------------------------------------------------------------------------------------


def _record(audit: Any) -> dict[str, Any]:
    from sublayer.audit.record import plain

    return {
        "stacks": [_stack(stack) for stack in audit.stacks],
        "findings": plain(audit.findings),
        "dead_parameters": len(audit.dead_parameters),
        "dead_inputs": list(audit.dead_inputs),
        "assumptions": list(audit.assumptions),
        "unknown": audit.unknown,
        "text": str(audit),
    }


def _stack(stack: Any) -> dict[str, Any]:
    from sublayer.audit import phrases

    groups: dict[tuple[str, str], list[Any]] = {}
    for layer in stack.layers:
        groups.setdefault((layer.equation, PLACE.sub(".*", layer.unknown)), []).append(layer)
    names, apart = phrases.standing(stack.design) if stack.design else ((), "")
    outside = [n for layer in stack.layers for n in phrases.outside(layer.norms)]
    return {
        "name": stack.name,
        "depth": len(stack.layers),
        "width": stack.width,
        "embed": stack.embed,
        "layers": [_group(stack, unknown, members) for (_, unknown), members in groups.items()],
        "final": stack.final,
        "norms": list(dict.fromkeys(phrases.norm(n) for n in (*outside, *stack.norms))),
        "known": stack.design is not None,
        "unknown": stack.unknown,
        "names": list(names),
        "apart": apart,
        "group": _family(stack.design),
        "notes": list(stack.notes),
    }


def _group(stack: Any, unknown: str, members: list[Any]) -> dict[str, Any]:
    """Layers of one equation, with every form that their sub-layers have."""
    from sublayer.audit import phrases
    from sublayer.audit.record import plain

    branches: dict[str, dict[str, Any]] = {}
    for layer in members:
        for name, branch in zip(phrases.sites(layer.branches), layer.branches, strict=True):
            said = phrases.branch(branch, stack.width, layer.norms)
            form = {"site": name, "said": said, "op": branch.op, **plain(branch.details)}
            branches.setdefault(json.dumps(form), {**form, "layers": []})["layers"].append(layer.index)
    for form in branches.values():
        form["layers"] = phrases.numbers(form["layers"]) if len(form["layers"]) < len(members) else "all"
    dropped = {f"{b.op} {b.module.rpartition('.')[2]}" for layer in members for b in layer.dropped}
    shared = [layer.index for layer in members if layer.shares is not None]
    return {
        "layers": phrases.numbers(layer.index for layer in members),
        "count": len(members),
        "equation": members[0].equation,
        "unknown": unknown,
        "branches": list(branches.values()),
        "notes": list(dict.fromkeys(note for layer in members for note in layer.notes)),
        "dropped": sorted(dropped),
        "shared": phrases.numbers(shared),
    }


def _family(design: Any) -> str:
    """The first named design with this block; empty if there is none."""
    from sublayer.notation import designs, parse

    if design is None or design.streams != ("x",):
        return ""
    return next((entry.name for entry in designs() if parse(entry.name).block == design.block), "")


# --- memory -------------------------------------------------------------------------------------------------------


def _forget_peak() -> None:
    """Start counting the peak of resident memory anew, where the system lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """The peak of resident memory in MB since then."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) // 1024
    return None


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] if lines else "no message"


if __name__ == "__main__":
    sys.exit(main())
