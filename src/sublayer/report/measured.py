"""Numbers out of measure records: by term or by layer, pooled over the runs of a design."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from sublayer.report.numbers import known, mean
from sublayer.report.view import Design, Json, Study, TermKey, placed_terms

K = TypeVar("K", bound=Hashable)
ReadTerm = Callable[[Json, Json], object]  # (sum, term) -> number
ReadLayer = Callable[[Json], object]


def by_term(record: Json, read: ReadTerm) -> dict[tuple[TermKey, int], float]:
    """{(term, layer): number} of a record's blocks; unknown numbers are left out."""
    found = {}
    for layer, key, total, term in placed_terms(record):
        value = known(read(total, term))
        if value is not None:
            found[key, layer] = value
    return found


def by_layer(record: Json, read: ReadLayer) -> dict[int, float]:
    """{layer: number} of a record, layers of the stack only."""
    found = {}
    for layer in record.get("layers") or ():
        value = known(read(layer))
        if value is not None:
            found[int(layer["layer"])] = value
    return found


def pooled(found: Iterable[dict[K, float]]) -> dict[K, list[float]]:
    """{key: one number per run that has it}."""
    pool: dict[K, list[float]] = {}
    for values in found:
        for key, value in values.items():
            pool.setdefault(key, []).append(value)
    return pool


def final_terms(design: Design, read: ReadTerm) -> dict[TermKey, dict[int, list[float]]]:
    """{term: {layer: one number per measured run}} of the trained models."""
    nested: dict[TermKey, dict[int, list[float]]] = {}
    pool = pooled(by_term(run.final, read) for run in design.measured if run.final)
    for (key, layer), values in sorted(pool.items(), key=lambda item: item[0][1]):
        nested.setdefault(key, {})[layer] = values
    return nested


def final_layers(study: Study, design: Design, read: ReadLayer) -> dict[int, list[float]]:
    """{layer: one number per measured run} of the trained models, for the layers of the stack."""
    pool = pooled(by_layer(run.final, read) for run in design.measured if run.final)
    return {layer: pool[layer] for layer in sorted(pool) if 0 <= layer < study.depth}


def of_kind(design: Design, kind: str, read: ReadTerm) -> dict[int, list[float]]:
    """{layer: one number per measured run}, averaged over the terms of one kind where a layer has several."""
    per_run = []
    for run in design.measured:
        layers: dict[int, list[float]] = {}
        for (key, layer), value in by_term(run.final or {}, read).items():
            if key.kind == kind:
                layers.setdefault(layer, []).append(value)
        per_run.append({layer: sum(values) / len(values) for layer, values in layers.items()})
    pool = pooled(per_run)
    return {layer: pool[layer] for layer in sorted(pool)}


def history(design: Design, extract: Callable[[Json], dict[int, float]]) -> dict[int, dict[int, float]]:
    """{layer: {step: mean over finished runs}} of the measures taken during training."""
    found: dict[int, dict[int, list[float]]] = {}
    for run in design.finished:
        for record in run.history:
            for layer, value in extract(record).items():
                found.setdefault(layer, {}).setdefault(int(record["step"]), []).append(value)
    return {
        layer: {step: sum(values) / len(values) for step, values in sorted(steps.items())}
        for layer, steps in sorted(found.items())
    }


def kind_by_layer(kind: str, read: ReadTerm) -> Callable[[Json], dict[int, float]]:
    """For `history`: a number of the terms of one kind, averaged where a layer has several."""

    def extract(record: Json) -> dict[int, float]:
        layers: dict[int, list[float]] = {}
        for (key, layer), value in by_term(record, read).items():
            if key.kind == kind:
                layers.setdefault(layer, []).append(value)
        return {layer: sum(values) / len(values) for layer, values in layers.items()}

    return extract


def median_ratio(total: Json, term: Json) -> object:
    """||term|| / ||stream||, median over tokens."""
    return (term.get("ratio") or {}).get("median")


def gradient_norm(layer: Json) -> object:
    return layer.get("gradient_norm")


def stream_norm(layer: Json) -> object:
    return (layer.get("stream_norm") or {}).get("median")


def attention_entropy(layer: Json) -> object:
    return mean(known(site.get("entropy")) for site in layer.get("attention") or ())


def first_token(layer: Json) -> object:
    return mean(known(site.get("first_token")) for site in layer.get("attention") or ())
