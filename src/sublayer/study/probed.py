"""The two claims, answered for one probed model by the same written rules as for a study's runs."""

from collections.abc import Mapping
from typing import Any

from sublayer.study.claims import answer_claims


def answer_probe(record: Mapping[str, Any], name: str = "model") -> list[dict[str, Any]]:
    """The claims `ffn-isotropy` and `attention-small` for one model.

    Args:
        record: what `sl.probe(...).to_dict()` gives (schema `sublayer.probe/1`).
        name: what the model is called in the answers.

    Returns:
        What `sublayer.study.claims.answer_claims` gives, one answer each; where the record has intervals over texts,
        the answer's `low` and `high` are those of the median layer (for a study they are over seeds), and `over` says
        "texts".
    """
    run = {"design": name, "seed": 0, "lr": 0.0, "status": "ok", "measures": record}
    found = answer_claims([run], [name])
    middle = (record.get("intervals") or {}).get("median_layer") or {}
    for claim, key in zip(found, ("ffn_change", "attention_ratio"), strict=True):
        answer = claim["answers"][0]
        answer["detail"] = answer["detail"].replace(" One run: no interval over seeds.", "")
        interval = middle.get(key)
        if interval is not None and interval["low"] is not None:
            answer |= {"low": interval["low"], "high": interval["high"], "over": "texts"}
    return found
