"""An audit of a model beside building it: models of the atlas, from their configs, on the meta device.

    python benchmarks/audit.py [--out benchmarks/audit.json] [--rounds 3] [--threads 1] [--clock cpu]

Model types at equal distances in the atlas' list (`--models`: how many), each with the first config that can be read.
`audit` is all that `sublayer.audit(config)` does, building among it; beside it stands transformers' own way to build
the same model without memory, `_from_config` under `torch.device("meta")`, and, in rows without a goal, our building,
which leaves out the initialisation. Both are warm: each model is built and audited once before.
"""

import argparse
import copy
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from pairs import CLOCKS, Row, arguments, turns, write

import sublayer as sl
from sublayer.audit import AuditError, target
from sublayer.audit.configs import quiet
from sublayer.audit.defaults import candidates

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools" / "atlas"))
import survey

COUNT, QUICK = 25, 3  # model types


def chosen(count: int) -> list[dict[str, Any]]:
    """A spread over the atlas that is the same each time."""
    listed = survey.listed()
    return [listed[i * len(listed) // count] for i in range(count)]


def config_of(entry: dict[str, Any]) -> tuple[Any, Any]:
    """The class and the first config of its type that can be audited; the config is None if there is none."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_class = getattr(transformers, entry["class"])
    for config, _ in candidates(CONFIG_MAPPING[entry["model_type"]]):
        config.architectures = [entry["class"]]
        try:
            sl.audit(config)
        except AuditError:
            continue
        return model_class, config
    return model_class, None


def seconds(model_class: Any, config: Any, given: argparse.Namespace) -> dict[str, list[float]]:
    """Of each form in each round."""

    def build() -> Any:
        with torch.device("meta"), quiet():
            return model_class._from_config(copy.deepcopy(config))

    forms = {"audit": lambda: sl.audit(config), "build": build, "ours": lambda: target.build(config, model_class)}
    return turns(forms, given.rounds, CLOCKS[given.clock])


def main() -> None:
    """Build and audit in turns, print the rows, write them."""
    parser = arguments(__doc__, __file__, rounds=3)
    parser.add_argument("--models", type=int, default=COUNT, help="model types")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # those of the models
    if given.quick:
        given.rounds = 1
    models, left_out = [], []
    for entry in chosen(QUICK if given.quick else given.models):
        try:
            model_class, config = config_of(entry)
            spent = seconds(model_class, config, given) if config is not None else None
        except Exception as error:  # a model may refuse to be built in transformers' own way
            left_out.append({"model_type": entry["model_type"], "why": f"{type(error).__name__}: {error}"[:200]})
            continue
        if spent is None:
            left_out.append({"model_type": entry["model_type"], "why": "no config of it could be audited"})
            continue
        medians = {name: statistics.median(times) for name, times in spent.items()}
        models.append({"model_type": entry["model_type"], "class": entry["class"], "seconds": medians})
    rows = []
    for form, name, reach in (
        ("build", "building it as transformers does", 3.0),
        ("ours", "building it without initialisation", None),
    ):
        ours = [model["seconds"]["audit"] for model in models]
        theirs = [model["seconds"][form] for model in models]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        note = "one value a model, and times of the median model"
        rows.append(
            Row(
                "audit of a model", name, ratios, "at most", reach,
                statistics.median(ours), statistics.median(theirs), note=note,
            )
        )  # fmt: skip
        rows.append(Row("audit of all", name, [sum(ours) / sum(theirs)], "at most", reach, sum(ours), sum(theirs)))
    write("audit", rows, given, models=models, left_out=left_out)


if __name__ == "__main__":
    main()
