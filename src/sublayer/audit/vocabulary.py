"""What each ATen operator means for the wiring. An operator that is not listed is taken by its shapes.

Kinds of nodes:
    source, embedding   where the data comes in
    sum                 numbers times nodes, added
    factor              times something learned that does not depend on the data
    masked              times a mask or a table that does not depend on data or weights
    norm, stop          as in the notation
    linear              times a matrix of weights, over channels; also a part of such
    conv, fixed_mix     a convolution; a product with a table that mixes places
    product             of two nodes, element by element
    matmul, core        a product of two nodes over an axis; fused attention
    pool                pooling or resampling of places
    softmax, reduce, route, shift, slice, join, pick, scan, pointwise, opaque
"""

from sublayer.audit.tape import ALIAS


def _table(**kinds: str) -> dict[str, str]:
    return {name: kind for kind, names in kinds.items() for name in names.split()}


KIND: dict[str, str] = _table(
    same=(
        "view _unsafe_view reshape transpose permute t expand expand_as unsqueeze squeeze clone contiguous _to_copy to "
        "alias lift lift_fresh lift_fresh_copy flatten unflatten dropout native_dropout type_as movedim swapaxes mT "
        "_reshape_alias as_strided as_strided_ repeat tile repeat_interleave view_as view_as_real view_as_complex real "
        "copy resize_ unsqueeze_ squeeze_ transpose_ t_ broadcast_to detach_ _conj resolve_conj resolve_neg "
        "_assert_async "
        f"convert_element_type pin_memory atleast_3d copy_ {ALIAS}"
    ),
    add="add add_ sub sub_ rsub neg neg_ subtract",
    mul="mul mul_ multiply",
    div="div div_ divide true_divide",
    lerp="lerp lerp_",
    addcmul="addcmul addcmul_",
    matmul="mm bmm addmm baddbmm linear matmul mv dot addmv addmm_ addbmm",
    convolution="convolution conv1d conv2d conv3d",
    slice="slice select narrow split split_with_sizes unbind chunk diagonal tensor_split unsafe_split unsafe_chunk",
    norm="native_layer_norm layer_norm _fused_rms_norm rms_norm native_group_norm group_norm",
    batchnorm="native_batch_norm",
    sdpa=(
        "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_cudnn_attention "
        "_scaled_dot_product_attention_math _scaled_dot_product_fused_attention_overrideable _flash_attention_forward "
        "_efficient_attention_forward flex_attention"
    ),
    embedding="embedding one_hot",
    stop="detach",
    softmax="softmax _softmax _safe_softmax log_softmax _log_softmax",
    reduce=(
        "sum mean var var_mean std std_mean amax amin max min norm linalg_vector_norm logsumexp prod argmax argmin "
        "any all count_nonzero"
    ),
    route="topk sort argsort scatter scatter_ scatter_add scatter_add_ index_add index_add_ bincount nonzero "
    "_grouped_mm multinomial histc kthvalue",
    pick="index gather index_select take take_along_dim index_put index_put_ masked_select _unsafe_index",
    join="cat stack hstack vstack partly_written",
    scan="cumsum cumprod _fft_r2c _fft_c2c _fft_c2r fft_fft cummax logcumsumexp cumsum_ associative_scan "
    "lstm gru rnn_tanh rnn_relu",
    shift="roll flip constant_pad_nd pad unfold im2col col2im reflection_pad1d",
    pool="avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool2d_with_indices _adaptive_avg_pool2d "
    "adaptive_avg_pool2d adaptive_max_pool2d upsample_bilinear2d upsample_bicubic2d upsample_nearest2d "
    "_upsample_bicubic2d_aa _upsample_bilinear2d_aa upsample_nearest1d upsample_linear1d _upsample_nearest_exact2d",
)

OVERWRITES = frozenset({"copy_", "fill_", "zero_", ALIAS})

SHAPE_ONLY = frozenset(
    "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty rand_like randn_like sym_size "
    "new_empty_strided bernoulli".split()
)

# Element by element, or over the last axis: what a norm written by hand is made of.
ROW_WISE = frozenset(
    "add add_ sub sub_ rsub neg mul mul_ div div_ pow square sqrt rsqrt reciprocal mean sum var std norm "
    "linalg_vector_norm clamp clamp_min clamp_ clamp_min_ maximum abs amax amin var_mean std_mean "
    "sqrt_ rsqrt_ pow_ true_divide reciprocal_ max where eq lt gt ge le sign".split()
)
