"""What each finding says: what is there, what is usual, what follows. The names are those of ``Finding.rule``."""

_SENTENCES = {
    "unknown-layer": "the wiring of this layer is unknown: {reason}",
    "unknown-stack": "the stack as a whole is unknown: {reason}",
    "branch-dropped": (
        "{what} is computed and added to nothing: what a sub-layer writes goes to the stream, and without that its "
        "weights have no effect and learn nothing"
    ),
    "residual-from-norm": (
        "the residual is the normed value that the sub-layer reads, n = norm(x); x = n + F(n): the usual input norm "
        "keeps x itself, x = x + F(norm(x)), and here no path leaves the input untouched"
    ),
    "residual-from-norm (hybrid)": (
        "the residual is the norm of the sum before, which the sub-layer reads as well, as in HybridNorm: in an "
        "input-norm model it is the sum itself, and here no path leaves the input untouched"
    ),
    "no-residual": (
        "it replaces the stream: elsewhere in this stack a sub-layer's output is added to what it reads, and without "
        "that neither the input nor the gradient has a way past"
    ),
    "no-residual (everywhere)": (
        "no layer of this stack has a residual round it: most models add what a sub-layer writes to what it reads, "
        "and stacks without it need a careful start to train at depth"
    ),
    "norm-on-skip": (
        "a norm stands on the skip path beside the sub-layer: the skip usually passes x on as it is, and here its "
        "scale and the untouched path are lost at this sum"
    ),
    "norm-twice": (
        "a norm is applied to the result of a norm that nothing else reads: one is usual, and the second undoes all "
        "of the first but its gains"
    ),
    "norm-shared": (
        "one norm with one set of parameters stands at two places of the layer: each place usually has its own, "
        "since the values there differ in scale"
    ),
    "block-end-norm": (
        "a norm of the stream ends the block although every sub-layer has a norm of its own: input-norm and sandwich "
        "blocks leave the stream as it is, and here the identity path is cut once a block{beside}"
    ),
    "stream-norm": (
        "a norm stands on the stream after the sum that takes in {after}, although every sub-layer has a norm of its "
        "own: an output norm belongs on the sub-layer's output, before the sum, and here the identity path is cut once "
        "a block"
    ),
    "no-output-projection": (
        "{heads} concatenated and no output matrix W_o follows: {usual}, and without it each head writes to its own "
        "channels only"
    ),
    "no-final-norm": (
        "the stream leaves the last layer un-normalised and no norm follows: input-norm and sandwich models end in "
        "one (a few published ones do not), and without it the output grows with depth"
    ),
    "residual-factor": (
        "factors on the residual make the input's part of the stream {change} over {depth} layers: usually the "
        "residual has factor 1, or a norm follows the sum"
    ),
    "odd-layer": (
        "{what} is {here} where the {count} others have {usual}: a lone layer within a stack of equal ones is often "
        "a slip"
    ),
    "odd-layer (pattern)": (
        "{what} is {here} where the {count} others have {usual}: several layers, or one at an end of the stack, "
        "which is usually intended"
    ),
    "mixed-norms": (
        "LayerNorm stands at {centred} and RMSNorm at {plain}: a layer usually has one kind, and RMSNorm leaves in "
        "the mean that LayerNorm takes out, a shift of all channels"
    ),
    "mixed-norms (layers)": (
        "the norm is {few} where other layers have {many}: one kind is usual, and RMSNorm leaves in the mean that "
        "LayerNorm takes out"
    ),
    "dead-parameter": (
        "in this run its parameters reach no output: usually all do, and parameters that never do are stored and "
        "counted but learn nothing"
    ),
    "dead-parameter (chosen)": (
        "in this run its parameters reach no output: the layer has a mixture of experts, and which of them are used is "
        "up to the data"
    ),
    "dead-parameter (outside)": (
        "outside the layers, parameters reach none of the outputs: so it is with a pooler or a head not in use, "
        "and then nothing follows"
    ),
    "dead-input": "this input changes no output: what is passed in it is ignored",
    "broken-shape": (
        "{path} ({size}) {takes} {expected} channels and is given {found}{maker}: what is written must be as wide as "
        "what reads it, so the model cannot run"
    ),
    "broken-shape (sum)": (
        "in {path} a value of size {a} meets one of size {b}{writer}: the terms of a sum must be equally wide, so "
        "the model cannot run"
    ),
    "broken-shape (other)": "in {path} two shapes do not fit, so that the model cannot run: {error}",
}

RULES = tuple(dict.fromkeys(name.partition(" ")[0] for name in _SENTENCES))


def said(sentence: str, **values: object) -> str:
    """The sentence with its values filled in."""
    return _SENTENCES[sentence].format(**values)
