"""Audit vision models and x-transformers, which are not among our dependencies, and print what was read of each.

    pip install --target SITE --no-deps timm torchvision x-transformers einops einx loguru frozendict pillow
    .venv/bin/python tools/beyond.py --site SITE [timm] [torchvision] [x-transformers] [--only TEXT] [--details]

One model a family of timm is built on the meta device, all transformers of torchvision, and x-transformers with one
option set after another.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sublayer.audit import audit
from sublayer.audit.result import Audit, Stack

Case = tuple[str, Callable[[], nn.Module]]

FAMILIES = (
    "vision_transformer deit beit eva cait vision_transformer_hybrid vision_transformer_relpos "
    "vision_transformer_sam naflexvit hiera hieradet_sam2 swin_transformer swin_transformer_v2 "
    "swin_transformer_v2_cr mvitv2 twins pit levit convit crossvit coat volo visformer nest tnt gcvit davit "
    "xcit mlp_mixer tiny_vit vitamin maxxvit pvt_v2 metaformer sequencer efficientformer efficientformer_v2 "
    "edgenext mobilevit nextvit repvit efficientvit_mit efficientvit_msra focalnet swiftformer shvit rdnet "
    "csatv2 fasternet"
).split()
TORCHVISION = ("vit_", "swin_", "maxvit_t")

# x-transformers' options of Decoder; those of its wrapper and its other classes follow below.
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"pre_norm": False},
    {"sandwich_norm": True},
    {"use_rmsnorm": True},
    {"use_simple_rmsnorm": True},
    {"use_scalenorm": True},
    {"use_dynamic_tanh": True},
    {"scale_residual": True},
    {"scale_residual_constant": 2.0},
    {"macaron": True},
    {"residual_attn": True},
    {"gate_residual": True},
    {"use_layerscale": True},
    {"layer_dropout": 0.1},
    {"shift_tokens": 1},
    {"ff_glu": True},
    {"ff_swish": True, "ff_glu": True},
    {"ff_relu_squared": True},
    {"ff_post_act_ln": True},
    {"ff_no_bias": True, "use_rmsnorm": True, "rotary_pos_emb": True, "ff_glu": True},
    {"attn_qk_norm": True},
    {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    {"attn_one_kv_head": True},
    {"attn_kv_heads": 2},
    {"attn_flash": True},
    {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    {"attn_gate_values": True},
    {"attn_gate_value_heads": True},
    {"attn_on_attn": True},
    {"attn_head_scale": True},
    {"attn_num_mem_kv": 4},
    {"attn_sparse_topk": 4},
    {"attn_value_rmsnorm": True},
    {"rotary_pos_emb": True},
    {"alibi_pos_bias": True},
    {"rel_pos_bias": True},
    {"cross_attend": True},
    {"cross_attend": True, "pre_norm": False},
    {"cross_attend": True, "only_cross": True},
    {"sandwich_coef": 1},
    {"par_ratio": 3},
    {"custom_layers": ("a", "f", "f")},
    {"weight_tie_layers": True},
    {"num_residual_streams": 2},
    {"softclamp_output": True},
    {"add_value_residual": True},
    {"unet_skips": True},
    {"integrate_layers": True},
    {"pre_norm": False, "use_layerscale": True},
    {"pre_norm_has_final_norm": False},
)


def timm_models() -> Iterator[Case]:
    timm, registry = import_module("timm"), import_module("timm.models._registry")
    listed: dict[str, list[str]] = {}
    for name in timm.list_models():
        listed.setdefault(registry._model_to_module[name], []).append(name)
    for family in FAMILIES:
        names = listed.get(family, [])
        for size in ("base_patch16_224", "base", "small", "tiny", ""):
            chosen = next((n for n in names if size in n and "test_" not in n), None)
            if chosen:
                yield f"{family}: {chosen}", lambda name=chosen: timm.create_model(name)  # type: ignore[misc]
                break


def torchvision_models() -> Iterator[Case]:
    models = import_module("torchvision.models")
    for name in models.list_models(module=models):
        if name.startswith(TORCHVISION) and not name.endswith("weights"):
            yield name, lambda name=name: models.get_model(name, weights=None)  # type: ignore[misc]


def x_transformers() -> Iterator[Case]:
    x = import_module("x_transformers")
    size: dict[str, Any] = {"dim": 64, "depth": 4, "heads": 4}

    def decoder(options: dict[str, Any]) -> nn.Module:
        return x.TransformerWrapper(num_tokens=256, max_seq_len=64, attn_layers=x.Decoder(**size, **options))

    for options in OPTIONS:
        yield f"Decoder {options or ''}", lambda options=options: decoder(options)  # type: ignore[misc]
    wrapped: tuple[dict[str, Any], ...] = (
        {"num_memory_tokens": 3},
        {"post_emb_norm": True},
        {"emb_dim": 32},
        {"tie_embedding": True},
        {"scaled_sinu_pos_emb": True},
        {"l2norm_embed": True},
        {"emb_frac_gradient": 0.1},
    )
    for options in wrapped:
        yield (
            f"TransformerWrapper {options}",
            lambda options=options: x.TransformerWrapper(  # type: ignore[misc]
                num_tokens=256, max_seq_len=64, attn_layers=x.Decoder(**size), **options
            ),
        )
    yield "Encoder", lambda: x.TransformerWrapper(num_tokens=256, max_seq_len=64, attn_layers=x.Encoder(**size))
    yield (
        "ViTransformerWrapper",
        lambda: x.ViTransformerWrapper(image_size=64, patch_size=16, num_classes=10, attn_layers=x.Encoder(**size)),
    )
    yield (
        "ContinuousTransformerWrapper",
        lambda: x.ContinuousTransformerWrapper(dim_in=24, dim_out=10, max_seq_len=64, attn_layers=x.Encoder(**size)),
    )
    sides = {f"{s}_{k}": v for s in ("enc", "dec") for k, v in {"num_tokens": 99, "depth": 2, "heads": 4}.items()}
    yield "XTransformer", lambda: x.XTransformer(dim=64, enc_max_seq_len=64, dec_max_seq_len=64, **sides)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """The model without memory for its weights, where it can be built so."""
    try:
        with torch.device("meta"):
            return make()
    except Exception:  # it computes something from its weights or buffers while it is built
        return make()


def lines(stack: Stack) -> Iterator[str]:
    """One line for each run of layers with one equation."""
    begin = 0
    for i, layer in enumerate(stack.layers):
        after = stack.layers[i + 1] if i + 1 < len(stack.layers) else None
        if after is None or (after.equation, after.unknown) != (layer.equation, layer.unknown):
            yield f"{begin}-{i}: {layer.equation or 'unknown: ' + layer.unknown}"
            begin = i + 1


def describe(found: Audit, details: bool) -> str:
    if found.unknown:
        return f"unknown: {found.unknown}"
    parts = []
    for stack in found.stacks:
        head = f"{stack.name} ({len(stack.layers)} layers, {stack.norm or 'no norm'})"
        end = f"embed: {stack.embed or '?'} | final: {stack.final or '?'}"
        if stack.design is None:
            end += f" | unknown: {stack.unknown}"
        parts.append("\n    ".join([head, *lines(stack), end]))
    if details:
        parts += [f"finding: {f}" for f in found.findings]
    else:
        parts += [f"finding: {f}" for f in found.findings if f.severity == "error"]
    return "\n    ".join(parts)


SOURCES = {"timm": timm_models, "torchvision": torchvision_models, "x-transformers": x_transformers}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("sources", nargs="*", choices=[*SOURCES, []], help="which packages; all if none is named")
    parser.add_argument("--site", type=Path, required=True, help="the folder that the packages are installed in")
    parser.add_argument("--only", default="", help="cases with this text in their name")
    parser.add_argument("--details", action="store_true", help="print all findings")
    given = parser.parse_args()
    sys.path.append(str(given.site))
    warnings.simplefilter("ignore")
    # A torchvision built for another torch lacks two operators, which no transformer calls.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    read = total = 0
    for source in given.sources or SOURCES:
        for name, make in SOURCES[source]():
            if given.only not in name:
                continue
            total += 1
            begin = time.perf_counter()
            try:
                found = audit(on_meta(make))
            except Exception as error:  # one that cannot be built or run does not end the table
                print(f"{source} {name}\n    failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            read += all(stack.design is not None for stack in found.stacks) and not found.unknown
            seconds = time.perf_counter() - begin
            print(f"{source} {name} [{seconds:.1f} s]\n    {describe(found, given.details)}", flush=True)
    print(f"{read} of {total} read whole")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
