"""Triton kernels of the pair decode on a GPU, launched by model/triton_decoder.py.

Together they compute what model/transformer.py's `step` and model/sampling.py compute. Row 2 i + s
of every activation is stream s of sequence i. Matrices, caches and what a matrix multiplies are
bf16; sums, the residual stream and everything else are fp32.

Every output element is one sum in one fixed order: a matrix product runs along the inner dimension
in tiles of one constant shape, attention along the sequence's own positions in chunks of one
constant length. More sequences only add programs to the grid, so a row has the same bits at any
load. Nothing is tuned by timing, and `rows` is never specialised on: it would compile another
kernel.

A layer norm costs no kernel: LN(x) W = (x g W - mean(x) g W) / deviation(x) + b W. Whoever writes
the residual stream x also writes x g in bf16, g being the next norm's gain, and the sums of x and
x^2 in its columns; the product that follows reads those.

Knows no slots' life, no graphs and no Python objects: tensors in, tensors out.
"""

from __future__ import annotations

import triton
import triton.language as tl

FREE = tl.constexpr(-1)  # model.decoder.FREE
EPSILON = tl.constexpr(1e-5)  # torch's LayerNorm
LOWEST = tl.constexpr(-1e30)  # below every score, and finite so that differences are too


@triton.jit
def _after_previous(OVERLAP: tl.constexpr) -> None:
    """Wait for the kernel before this one; let the one after it be set up meanwhile.

    OVERLAP: programmatic dependent launch, which Hopper has. Every program of every kernel waits
    before it reads or writes anything, so a kernel that has ended implies all those before it.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


# ---- the input of a step ------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows"])
def embed(
    rows: tl.tensor,
    sequence_slot: tl.tensor,
    sequence_label: tl.tensor,
    position: tl.tensor,
    inputs: tl.tensor,
    table: tl.tensor,
    places: tl.tensor,
    gain: tl.tensor,
    at: tl.tensor,
    x: tl.tensor,
    scaled: tl.tensor,
    moments: tl.tensor,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    STRUCTURE: tl.constexpr,
    APPEARANCE: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Both positions of every sequence, as `Prior.embed_pair`; notes each sequence's position in
    `at`.

    `table` stacks the embeddings of labels, structure (from row STRUCTURE on) and appearance (from
    row APPEARANCE on). Grid: row tiles, column tiles.
    """
    _after_previous(OVERLAP)
    row = tl.program_id(0) * ROW_TILE + tl.arange(0, ROW_TILE)
    inside = row < rows
    sequence, stream = row // 2, row % 2
    slot = tl.load(sequence_slot + sequence, inside, 0)
    label = tl.load(sequence_label + sequence, inside, 0)
    p = tl.load(position + slot, inside, 0)
    token = tl.load(inputs + (slot * (STEPS + 1) + p) * 2 + stream, inside, 0)
    structure = tl.where(p == 0, label, STRUCTURE + token)
    entry = tl.where(stream == 0, structure, APPEARANCE + token)
    column = tl.program_id(1) * COLUMN_TILE + tl.arange(0, COLUMN_TILE)
    content = tl.load(table + entry[:, None] * WIDTH + column[None], inside[:, None], 0.0)
    place = places + (stream * STEPS + p)[:, None] * WIDTH + column[None]
    value = content.to(tl.float32) + tl.load(place, inside[:, None], 0.0)
    tl.store(at + sequence, p, inside)
    _keep(value, row, column, inside, gain, x, scaled, moments, WIDTH, COLUMN_TILE)


@triton.jit
def _keep(
    value: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    gain: tl.tensor,
    x: tl.tensor,
    scaled: tl.tensor,
    moments: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
) -> None:
    """Write a tile of the residual stream and what the next layer norm needs of it."""
    at = row[:, None] * WIDTH + column[None]
    tl.store(x + at, value, inside[:, None])
    gained = value * tl.load(gain + column)[None]
    tl.store(scaled + at, gained.to(scaled.dtype.element_ty), inside[:, None])
    tiles: tl.constexpr = WIDTH // COLUMN_TILE
    to = moments + row * 2 * tiles + tl.min(column, 0) // COLUMN_TILE
    tl.store(to, tl.sum(value, 1), inside)
    tl.store(to + tiles, tl.sum(value * value, 1), inside)


# ---- matrix products ----------------------------------------------------------------------------


@triton.jit
def _product(
    x: tl.tensor,
    weight: tl.tensor,
    row: tl.tensor,
    inside: tl.tensor,
    column: tl.tensor,
    INNER: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    INNER_TILE: tl.constexpr,
) -> tl.tensor:
    """Rows of x [., INNER] times rows of weight [., INNER], summed in order of INNER."""
    inner = tl.arange(0, INNER_TILE)
    x_at = x + row[:, None] * INNER + inner[None]
    weight_at = weight + column[None] * INNER + inner[:, None]
    total = tl.zeros((ROW_TILE, COLUMN_TILE), tl.float32)
    for _ in range(0, INNER, INNER_TILE):
        total = tl.dot(tl.load(x_at, inside[:, None], 0.0), tl.load(weight_at), total)
        x_at += INNER_TILE
        weight_at += INNER_TILE
    return total


@triton.jit
def _normed_product(
    scaled: tl.tensor,
    moments: tl.tensor,
    weight: tl.tensor,
    weight_sum: tl.tensor,
    shift: tl.tensor,
    row: tl.tensor,
    inside: tl.tensor,
    column: tl.tensor,
    INNER: tl.constexpr,
    MOMENTS: tl.constexpr,
    MOMENTS_TILE: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    INNER_TILE: tl.constexpr,
) -> tl.tensor:
    """A tile of a linear layer after a layer norm: `weight_sum` is g W, `shift` is b W + bias."""
    tile = tl.arange(0, MOMENTS_TILE)
    of_tile = moments + row[:, None] * 2 * MOMENTS + tile[None]
    known = inside[:, None] & (tile < MOMENTS)[None]
    mean = tl.sum(tl.load(of_tile, known, 0.0), 1) / INNER
    square = tl.sum(tl.load(of_tile + MOMENTS, known, 0.0), 1) / INNER
    inverse = tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + EPSILON)
    value = _product(scaled, weight, row, inside, column, INNER, ROW_TILE, COLUMN_TILE, INNER_TILE)
    value = inverse[:, None] * (value - mean[:, None] * tl.load(weight_sum + column)[None])
    return value + tl.load(shift + column)[None]


@triton.jit(do_not_specialize=["rows"])
def normed_linear(
    rows: tl.tensor,
    scaled: tl.tensor,
    moments: tl.tensor,
    weight: tl.tensor,
    weight_sum: tl.tensor,
    shift: tl.tensor,
    out: tl.tensor,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
    STREAMS: tl.constexpr,
    SQUARED_RELU: tl.constexpr,
    MOMENTS: tl.constexpr,
    MOMENTS_TILE: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    INNER_TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Layer norm, then a linear layer: out [rows, COLUMNS], with a squared ReLU if asked for.

    STREAMS 2: a matrix of its own for each stream, stacked. Grid: column tiles, row tiles, STREAMS.
    """
    _after_previous(OVERLAP)
    stream = tl.program_id(2)
    row = (tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)) * STREAMS + stream
    inside = row < rows
    column = tl.program_id(0) * COLUMN_TILE + tl.arange(0, COLUMN_TILE)
    value = _normed_product(
        *(scaled, moments, weight, weight_sum, shift, row, inside, stream * COLUMNS + column),
        *(INNER, MOMENTS, MOMENTS_TILE, ROW_TILE, COLUMN_TILE, INNER_TILE),
    )
    if SQUARED_RELU:
        value = tl.maximum(value, 0.0)
        value *= value
    to = out + row[:, None] * COLUMNS + column[None]
    tl.store(to, value.to(out.dtype.element_ty), inside[:, None])


@triton.jit(do_not_specialize=["rows"])
def qkv_linear(
    rows: tl.tensor,
    scaled: tl.tensor,
    moments: tl.tensor,
    weight: tl.tensor,
    weight_sum: tl.tensor,
    shift: tl.tensor,
    sequence_row: tl.tensor,
    at: tl.tensor,
    cosine: tl.tensor,
    sine: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    INNER: tl.constexpr,
    STEPS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    MOMENTS: tl.constexpr,
    MOMENTS_TILE: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    INNER_TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Layer norm, the queries, keys and values of both positions, and their rotary turn.

    The columns of a head's queries and keys are ordered so that those that `rotate` turns together
    are neighbours. Queries go to `queries` [rows, INNER], times SCALE; keys and values straight to
    their place in the cache [cache rows, heads, 2, STEPS, HEAD_WIDTH]. Grid: column tiles, row
    tiles, and 3 for queries, keys and values.
    """
    _after_previous(OVERLAP)
    row = tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)
    inside = row < rows
    first, part = tl.program_id(0) * COLUMN_TILE, tl.program_id(2)
    column = first + tl.arange(0, COLUMN_TILE)
    sequence, stream = row // 2, row % 2
    p = tl.load(at + sequence, inside, 0)
    value = _normed_product(
        *(scaled, moments, weight, weight_sum, shift, row, inside, part * INNER + column),
        *(INNER, MOMENTS, MOMENTS_TILE, ROW_TILE, COLUMN_TILE, INNER_TILE),
    )
    # How many columns lie side by side in one head, which the compiler cannot know.
    together: tl.constexpr = min(HEAD_WIDTH, COLUMN_TILE)
    half: tl.constexpr = HEAD_WIDTH // 2
    if part < 2:
        pair = (first // 2 + tl.arange(0, COLUMN_TILE // 2)) % half
        pair = tl.max_contiguous(tl.multiple_of(pair, together // 2), together // 2)
        angle = ((2 * part + stream) * STEPS + p)[:, None] * half + pair[None]
        c, s = tl.load(cosine + angle, inside[:, None]), tl.load(sine + angle, inside[:, None])
        a, b = tl.split(tl.reshape(value, (ROW_TILE, COLUMN_TILE // 2, 2)))
        value = tl.reshape(tl.join(a * c - b * s, a * s + b * c), (ROW_TILE, COLUMN_TILE))
    if part == 0:
        tl.store(queries + row[:, None] * INNER + column[None], value * SCALE, inside[:, None])
    else:
        d = tl.max_contiguous(tl.multiple_of(column % HEAD_WIDTH, together), together)
        of_head = column // HEAD_WIDTH * (2 * STEPS * HEAD_WIDTH) + d
        of_sequence = (
            tl.load(sequence_row + sequence, inside, 0) * (2 * INNER) + stream * HEAD_WIDTH
        ) * STEPS
        to = (of_sequence + p * HEAD_WIDTH)[:, None] + of_head[None]
        if part == 1:
            tl.store(keys + to, value.to(keys.dtype.element_ty), inside[:, None])
        else:
            tl.store(values + to, value.to(values.dtype.element_ty), inside[:, None])


@triton.jit(do_not_specialize=["rows"])
def residual_linear(
    rows: tl.tensor,
    branch: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    x: tl.tensor,
    scaled: tl.tensor,
    moments: tl.tensor,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROW_TILE: tl.constexpr,
    COLUMN_TILE: tl.constexpr,
    INNER_TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Add a linear layer of `branch` [rows, INNER] to x [rows, COLUMNS], in place.

    `gain` is the next layer norm's. Grid: column tiles, row tiles.
    """
    _after_previous(OVERLAP)
    row = tl.program_id(1) * ROW_TILE + tl.arange(0, ROW_TILE)
    inside = row < rows
    column = tl.program_id(0) * COLUMN_TILE + tl.arange(0, COLUMN_TILE)
    before = tl.load(x + row[:, None] * COLUMNS + column[None], inside[:, None], 0.0)
    before += tl.load(bias + column)[None]
    value = _product(branch, weight, row, inside, column, INNER, ROW_TILE, COLUMN_TILE, INNER_TILE)
    value += before
    _keep(value, row, column, inside, gain, x, scaled, moments, COLUMNS, COLUMN_TILE)


# ---- attention ----------------------------------------------------------------------------------


@triton.jit
def attend(
    at: tl.tensor,
    sequence_row: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    mixed: tl.tensor,
    STEPS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Both queries of one sequence and head, over the cache up to the sequence's own position.

    The structure query meets structure keys and values alone; they are read once for both queries.
    Place i of a chunk keeps a softmax of its own over all chunks, and all places are joined at the
    end, so that in the loop threads exchange nothing but what makes a score. Scores are in units of
    log 2: weights are powers of two. Grid: sequences, heads.
    """
    _after_previous(OVERLAP)
    sequence, head = tl.program_id(0), tl.program_id(1)
    p = tl.load(at + sequence)
    cached = (tl.load(sequence_row + sequence) * HEADS + head) * (2 * STEPS * HEAD_WIDTH)
    d = tl.arange(0, HEAD_WIDTH)
    row = sequence * 2 * HEADS * HEAD_WIDTH + head * HEAD_WIDTH
    query_s = tl.load(queries + row + d)
    query_a = tl.load(queries + row + HEADS * HEAD_WIDTH + d)

    place = tl.arange(0, CHUNK)
    top_s = tl.full((CHUNK,), LOWEST, tl.float32)
    top_a = tl.full((CHUNK,), LOWEST, tl.float32)
    total_s = tl.zeros((CHUNK,), tl.float32)
    total_a = tl.zeros((CHUNK,), tl.float32)
    sum_s = tl.zeros((CHUNK, HEAD_WIDTH), tl.float32)
    sum_a = tl.zeros((CHUNK, HEAD_WIDTH), tl.float32)
    for start in tl.range(0, p + 1, CHUNK, num_stages=STAGES):
        position = start + place
        seen = position <= p
        # Appearance position 0 does not exist.
        seen_a = seen & (position > 0)
        structure = cached + position[:, None] * HEAD_WIDTH + d[None]
        appearance = structure + STEPS * HEAD_WIDTH
        key_s = tl.load(keys + structure, seen[:, None], 0.0).to(tl.float32)
        key_a = tl.load(keys + appearance, seen[:, None], 0.0).to(tl.float32)
        value_s = tl.load(values + structure, seen[:, None], 0.0).to(tl.float32)
        value_a = tl.load(values + appearance, seen[:, None], 0.0).to(tl.float32)

        score = tl.where(seen, tl.sum(query_s[None] * key_s, 1), LOWEST)
        top = tl.maximum(top_s, score)
        kept = tl.exp2(top_s - top)
        weight = tl.where(seen, tl.exp2(score - top), 0.0)
        total_s = total_s * kept + weight
        sum_s = sum_s * kept[:, None] + weight[:, None] * value_s
        top_s = top

        score = tl.where(seen, tl.sum(query_a[None] * key_s, 1), LOWEST)
        other = tl.where(seen_a, tl.sum(query_a[None] * key_a, 1), LOWEST)
        top = tl.maximum(top_a, tl.maximum(score, other))
        kept = tl.exp2(top_a - top)
        weight = tl.where(seen, tl.exp2(score - top), 0.0)
        other = tl.where(seen_a, tl.exp2(other - top), 0.0)
        total_a = total_a * kept + weight + other
        sum_a = sum_a * kept[:, None] + weight[:, None] * value_s + other[:, None] * value_a
        top_a = top

    to = mixed + row + d
    tl.store(to, _joined(top_s, total_s, sum_s).to(mixed.dtype.element_ty))
    to += HEADS * HEAD_WIDTH
    tl.store(to, _joined(top_a, total_a, sum_a).to(mixed.dtype.element_ty))


@triton.jit
def _joined(top: tl.tensor, total: tl.tensor, weighted: tl.tensor) -> tl.tensor:
    """One attention from those of all places: maxima, sums of weights, weighted values."""
    share = tl.exp2(top - tl.max(top, 0))
    return tl.sum(weighted * share[:, None], 0) / tl.sum(total * share, 0)


# ---- sampling -----------------------------------------------------------------------------------


@triton.jit
def uniform(seed: tl.tensor, location: tl.tensor, stream: tl.tensor) -> tl.tensor:
    """`model.sampling.noise_table` at one place, bit for bit: int64 seed, int32 counter."""
    zero = location * 0
    word, _, _, _ = tl.philox(seed, location, stream, zero, zero)
    return ((word >> 9).to(tl.float32) + 0.5) * (2.0**-23)


@triton.jit
def _exchanged(
    key: tl.tensor, STAGE: tl.constexpr, BIT: tl.constexpr, SIZE: tl.constexpr
) -> tl.tensor:
    """One exchange of a bitonic sort: between places that differ in BIT."""
    distance: tl.constexpr = 2**BIT
    pairs = tl.reshape(key, (SIZE // (2 * distance), 2, distance))
    both = tl.broadcast_to(tl.sum(pairs, 1, keep_dims=True), pairs.shape)
    other = tl.reshape(both, (SIZE,)) - key
    place = tl.arange(0, SIZE)
    lower, upward = (place & distance) == 0, (place & 2**STAGE) == 0
    return tl.where((key > other) == (lower == upward), other, key)


@triton.jit
def _sorted(key: tl.tensor, SIZE: tl.constexpr, BITS: tl.constexpr) -> tl.tensor:
    """Int64 keys [SIZE = 2^BITS] in ascending order.

    `tl.sort` does the same; its exclusive-or reductions take seconds in Triton's interpreter.
    """
    for stage in tl.static_range(1, BITS + 1):
        for step in tl.static_range(1, stage + 1):
            key = _exchanged(key, stage, stage - step, SIZE)
    return key


@triton.jit
def choose(
    logits: tl.tensor,
    noise: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    SIZE: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tensor:
    """One token of logits [SIZE], as `model.sampling.sample`."""
    # A key that sorts by value, largest first, then by id, lowest first; -0 equals 0.
    bits = tl.where(logits == 0.0, 0.0, logits).to(tl.int32, bitcast=True)
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    key = (falling.to(tl.int64) << 32) | tl.arange(0, SIZE).to(tl.int64)
    key = _sorted(key, SIZE, BITS)
    ids = (key & 0xFFFFFFFF).to(tl.int32)
    rising = ~(key >> 32).to(tl.int32)
    ranked = (rising ^ ((rising >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    greedy = temperature == 0.0
    scaled = (ranked - tl.max(ranked, 0)) / tl.where(greedy, 1.0, temperature)
    rank = tl.arange(0, SIZE)
    allowed = rank < tl.where(top_k == 0, SIZE, top_k)
    weight = tl.where(allowed, tl.exp(scaled), 0.0)
    reached = tl.cumsum(weight, 0)
    enough = tl.where(top_p < 1.0, top_p * tl.sum(weight, 0), float("inf"))
    kept = allowed & ((rank == 0) | (reached - weight < enough))  # the least top_p are 0 in fp32
    last = tl.sum(kept.to(tl.int32), 0) - 1
    target = noise * tl.sum(tl.where(rank == last, reached, 0.0), 0)
    passed = tl.sum((kept & (reached <= target)).to(tl.int32), 0)
    chosen = tl.where(greedy, 0, tl.minimum(passed, last))
    return tl.sum(tl.where(rank == chosen, ids, 0), 0)


@triton.jit
def draw(
    image_slot: tl.tensor,
    label_row: tl.tensor,
    null_row: tl.tensor,
    seed: tl.tensor,
    top_k: tl.tensor,
    cfg_scale: tl.tensor,
    temperature: tl.tensor,
    top_p: tl.tensor,
    at: tl.tensor,
    logits: tl.tensor,
    targets: tl.tensor,
    given: tl.tensor,
    inputs: tl.tensor,
    log_probability: tl.tensor,
    position: tl.tensor,
    STEPS: tl.constexpr,
    SIZE: tl.constexpr,
    BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Guide and sample one token of one image, and advance its slot.

    Row p + 1 of a slot's `inputs` [., STEPS + 1, 2] takes s_(p+1) and a_p, and the same row of
    `log_probability` their log probabilities by the label alone; `given` tokens [., STEPS, 2]
    stand. Grid: images (a slot below 0 is none), streams.
    """
    _after_previous(OVERLAP)
    image, stream = tl.program_id(0), tl.program_id(1)
    slot = tl.load(image_slot + image)
    if slot < 0:
        return
    of_stream = 2 * image + stream
    label, null = tl.load(label_row + image), tl.load(null_row + of_stream)
    p = tl.load(at + label)
    entry = tl.arange(0, SIZE)
    of_label = tl.load(logits + (2 * label + stream) * SIZE + entry)
    of_null = tl.load(logits + (2 * null + stream) * SIZE + entry)
    guided = of_null + tl.load(cfg_scale + of_stream) * (of_label - of_null)
    noise = uniform(tl.load(seed + image), tl.load(targets + p * 2 + stream), stream)
    warmth, most = tl.load(temperature + of_stream), tl.load(top_k + of_stream)
    token = choose(guided, noise, warmth, most, tl.load(top_p + of_stream), SIZE, BITS)
    fixed = tl.load(given + (slot * STEPS + p) * 2 + stream)
    token = tl.where(fixed == FREE, token, fixed)
    place = (slot * (STEPS + 1) + p + 1) * 2 + stream
    tl.store(inputs + place, token)
    most = tl.max(of_label, 0)
    total = tl.sum(tl.exp(of_label - most), 0)
    of_token = tl.sum(tl.where(entry == token, of_label, 0.0), 0)
    tl.store(log_probability + place, of_token - most - tl.log(total))
    tl.store(position + slot, p + 1, stream == 0)
