"""The sentences of the attention study: verdicts by the rules of `attention.AttentionCost`, and caveats."""

from collections.abc import Sequence

from sublayer.study.parts.attention_findings import Finding, Formula, Measured

AGREES = 1.25  # factor between a measured crossover and the formula's, and between two rates
SQUARE, LINEAR = 0.5, 0.1  # share of the square term in the peak at the longest sequence
WHOLE = 0.5  # score matrices at the peak from which a backend is said to hold them


def verdicts(name: str, here: Sequence[Finding], formula: Formula) -> list[str]:
    """Growth, crossover and memory: one sentence each for a pass."""
    if not here:
        return []
    start = name[0].upper() + name[1:]
    found = [_growth(here), _crossing(here, formula), _memory(here)]
    return [f"{start}: {sentence}." for sentence in found if sentence]


def _growth(here: Sequence[Finding]) -> str:
    grows = [each.measured.subject for each in here if each.grows]
    rest = [each.measured.subject for each in here if not each.grows]
    if not grows:
        return f"a square term in the time of attention is not shown for {listed(rest)}"
    tail = f"; that is not shown for {listed(rest)}" if rest else ""
    return f"the time of attention grows with the square of the length in {listed(grows)}{tail}"


def _crossing(here: Sequence[Finding], formula: Formula) -> str:
    inside: list[str] = []
    below: list[str] = []
    beyond: list[str] = []
    against: dict[str, list[str]] = {"agrees": [], "comes sooner": [], "comes later": []}
    for each in here:
        subject, place = each.measured.subject, each.within
        if place is not None:
            inside.append(f"{short(place)} tokens in {subject}")
            ratio = place / formula.whole if formula.whole else AGREES + 1
            word = "comes later" if ratio > AGREES else "comes sooner" if ratio < 1 / AGREES else "agrees"
            against[word].append(subject)
        elif each.cross is not None:
            (below if each.cross == 0 else beyond).append(subject)
    lengths = [length for each in here for length in each.measured.times]
    words = [f"from {listed(inside)}"] if inside else []
    words += [f"already at {min(lengths):,} in {listed(below)}"] if below else []
    words += [f"not up to {max(lengths):,} in {listed(beyond)}"] if beyond else []
    if not words:
        return ""
    compared = ", ".join(f"{listed(names)} {_verb(names, word)}" for word, names in against.items() if names)
    said = f"a call site costs as much as the FFN {', '.join(words)}; FLOPs say from {short(formula.whole)}"
    return f"{said}: {compared}" if compared else said


def _verb(names: Sequence[str], word: str) -> str:
    """The verb of one or of several: agrees, agree."""
    first, *rest = word.split()
    return " ".join([first if len(names) == 1 else first.removesuffix("s"), *rest])


def parting(here: Sequence[Finding]) -> str:
    """Why the crossover is not where the FLOPs put it: the rates, and what the memory says of the reason; "" where
    no rate is known."""
    shown = [(each.measured.subject, each.rate, each) for each in here if each.rate is not None and each.ffn_rate]
    if not shown:
        return ""
    base = shown[0][2].ffn_rate or 0.0
    words = listed([f"{short(rate / 1e9)} in {subject}" for subject, rate, _ in shown])
    said = f"In GFLOP/s, the products of the square term run at {words}, and those of the FFN at {short(base / 1e9)}"
    slow = [each for _, rate, each in shown if rate * AGREES < base and each.matrices is not None]
    kept = [each.measured.subject for each in slow if (each.matrices or 0) >= WHOLE]
    blocked = [each.measured.subject for each in slow if each.measured.subject not in kept]
    if kept:
        said += (
            f"; {listed(kept)} {_verb(kept, 'holds')} whole score matrices, which scaling, softmax and copies move "
            "through memory: no count of products knows that"
        )
    if blocked:
        said += (
            f"; {listed(blocked)} {_verb(blocked, 'holds')} no score matrix, so there it is not that traffic: "
            "exponentials, sums, and products no larger than a block remain"
        )
    return said + "."


def _memory(here: Sequence[Finding]) -> str:
    groups: dict[str, list[str]] = {}
    for each in here:
        if each.memory is None or each.matrices is None:
            continue
        share = each.memory.share(max(each.measured.peaks))
        subject = each.measured.subject
        if share >= SQUARE:
            counted = "" if each.counted is None else f", {short(each.counted)} by sublayer cost"
            words = f"{subject} ({short(each.matrices)} score matrices{counted})"
            groups.setdefault("with the square of the length", []).append(words)
        else:
            groups.setdefault("in proportion to it" if share <= LINEAR else "in between", []).append(subject)
    said = [f"{kind} in {listed(names)}" for kind, names in groups.items()]
    return f"peak memory grows {', '.join(said)}" if said else ""


def caveats(measured: Sequence[Measured], findings: Sequence[Finding], causal: bool) -> list[str]:
    """What a reader must know before believing the curves."""
    spread = max((each.spread for each in measured if each.spread is not None), default=None)
    worst = max((each.time.worst for each in findings if each.time), default=0.0)
    noise = "There was one round, so nothing says how much times vary"
    if spread is not None:
        noise = f"Rounds differ by up to {100 * spread:.0f}% at one length"
    lines = [
        "Speeds are of this machine and of one process with the named threads; on a GPU the curves cross elsewhere.",
        "A call site alone stays in the cache better than one among others in a deep model.",
        f"{noise}. A fit is off by up to {100 * worst:.0f}%: caches and blocked kernels make steps that no square has.",
        "Peak memory is that of a process, in pages: below a few MB it says little.",
    ]
    if causal:
        lines.append("The formula counts the whole score matrix; a kernel may leave out the half that the mask hides.")
    return lines


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def short(value: float) -> str:
    """Three digits: 0.123, 12.3, 1,230."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"
