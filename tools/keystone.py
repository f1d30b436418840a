"""Build random designs, audit the models, and compare: `audit(build(design)).design == design`.

    python tools/keystone.py --count 1000 [--seed 0]

Prints how many came back exactly, and every one that did not. Left out, and counted: designs that a model of four
layers cannot show. In some a result does not depend on what its layer was given, so that all but the last are dead. In
others a range holds one layer: a factor's law cannot be seen there, nor two streams that begin as one value told apart.
"""

import argparse
import random
import re
import sys
import time

import torch

import sublayer as sl
from sublayer.audit import audit
from sublayer.model import SublayerConfig, SublayerForCausalLM
from sublayer.notation import Add
from tests.notation.strategies import random_spec

OPS = ("attn", "ffn", "norm", "rmsnorm", "dyt", "scale", "gate", "dot", "stop")
DEPTH = 4


def text(seed: int) -> str:
    """A random design. `layernorm` is left out: the models' `norm` is one, and the two are the same computation."""
    return re.sub(r"\blayernorm\b", "norm", random_spec(random.Random(seed), OPS).text())


def build(design: str) -> SublayerForCausalLM:
    """A small model of a design, without weights."""
    config = SublayerConfig(
        design=design,
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        intermediate_size=64,
        position_embedding="learned",
        max_position_embeddings=128,
    )
    with torch.device("meta"):
        return SublayerForCausalLM(config)


def is_shown(design: sl.Design) -> bool:
    """Whether a model of DEPTH layers can show the whole design."""
    outputs = [value for _, value in design.section("embed").outputs]
    for k, (layers, section) in enumerate(design.blocks):
        start, stop = layers.resolve(DEPTH)
        sums = [step for step in section.steps if isinstance(step, Add)]
        lawful = any(scalar.constant is None for step in sums for scalar, _ in step.terms)
        if stop - start == 1 and (lawful or (k == 0 and len(set(outputs)) < len(outputs))):
            return False
    return is_alive(design)


def is_alive(design: sl.Design) -> bool:
    """Whether the result depends on x at every boundary between layers, and on all streams at the first."""
    needed = {"x", *design.section("final").inputs}
    for layer in reversed(range(DEPTH)):
        section = design.layer(layer, DEPTH)
        reads = set()
        for stream, value in section.outputs:
            if stream in needed:
                reads |= {value, *section.ancestors.get(value, ())} & set(section.inputs)
        needed = reads
        if "x" not in needed:
            return False
    return needed >= set(design.streams)


def main() -> None:
    """Run as many designs as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tried = exact = dead = 0
    seed, begin = args.seed, time.perf_counter()
    while tried < args.count:
        seed += 1
        try:
            design = sl.parse(text(seed - 1))
            design.check_depth(DEPTH)
        except sl.DesignError:
            continue
        if not is_shown(design):
            dead += 1
            continue
        tried += 1
        found = audit(build(str(design)))
        if found.design == design:
            exact += 1
        else:
            why = found.main.unknown if found.main else found.unknown
            print(f"seed {seed - 1}\n  design  {design}\n  audit   {found.design or why}".replace("\n", "\n    "))
        if tried % 50 == 0:
            print(f"{tried} tried, {exact} exact", file=sys.stderr)
    print(
        f"{exact} of {tried} random designs came back exactly ({dead} that no model can show were left out), "
        f"seeds {args.seed} to {seed - 1}, {time.perf_counter() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
