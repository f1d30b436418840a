"""Facts of an audit held against the numbers that the config names: heads, key-value heads, widths, experts.

A fact that the config does not hold is not always wrong (a model may halve a width, or count an expert that does
nothing), so each is listed for a person to look at. Names of fields decide nothing in the auditor; here they check it.
"""

from collections.abc import Iterable
from typing import Any

FIELDS = {
    "heads": (
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads"
    ),
    "kv_heads": "num_key_value_heads num_kv_heads kv_n_heads n_head_kv multi_query_group_num swa_num_key_value_heads",
    "head_dim": (
        "head_dim d_kv qk_head_dim dim_head v_head_dim kv_channels global_head_dim attention_head_dim swa_head_dim "
        "swa_qk_head_dim d_head"
    ),
    "width": (
        "intermediate_size ffn_dim d_ff d_inner n_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dim_ff "
        "moe_intermediate_size shared_expert_intermediate_size dense_intermediate_size dff feed_forward_size"
    ),
    "experts": "num_experts num_local_experts n_routed_experts moe_num_experts moe_num_primary_experts",
}
WIDTHS = "hidden_size d_model n_embd emb_dim"
CHECKED = {
    "attn": ("heads", "kv_heads", "head_dim"),
    "cross": ("heads", "kv_heads", "head_dim"),
    "ffn": ("width",),
    "moe": ("experts",),
}


def apart(configs: Iterable[Any], stacks: list[dict[str, Any]]) -> list[str]:
    """What differs between the facts of the stacks and all numbers of a config and those inside it."""
    parts = [*configs]
    known = {fact: _values(parts, names) for fact, names in FIELDS.items()}
    widths = _values(parts, WIDTHS)
    known["head_dim"] |= {width // heads for width in widths for heads in known["heads"] if heads}
    known["width"] |= {4 * width for width in widths}
    if not known["kv_heads"]:
        known["kv_heads"] = known["heads"]
    found = []
    branches = [b for stack in stacks for group in stack["layers"] for b in group["branches"]]
    for branch in branches:
        for fact in CHECKED.get(branch["op"], ()):
            value = branch.get(fact)
            if value is None and known[fact]:
                found.append(f"{branch['site']}: {fact} unknown (config: {_listed(known[fact])})")
            elif value is not None and known[fact] and value not in known[fact]:
                found.append(f"{branch['site']}: {fact} {value} (config: {_listed(known[fact])})")
    if known["experts"] - {0, 1} and branches and not any(b["op"] == "moe" for b in branches):
        found.append(f"no mixture of experts (config: {_listed(known['experts'])} experts)")
    return list(dict.fromkeys(found))


def _values(parts: list[Any], names: str) -> set[int]:
    found: set[int] = set()
    for part in parts:
        for name in names.split():
            try:
                value = getattr(part, name, None)
            except Exception:  # a config whose layers differ refuses some of its fields
                continue
            values = value if isinstance(value, list | tuple) else (value,)
            found |= {v for v in values if isinstance(v, int) and not isinstance(v, bool)}
    return found


def _listed(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))
