"""Compiled kernels of dove_ext, which take addresses and sizes; call them through `dove_ext.ops`."""

class AttentionArgs:
    def __init__(self) -> None: ...
    batch: int
    cu_seqlens_k: int
    cu_seqlens_q: int
    dtype: int
    grad_k: tuple[int, ...]
    grad_out: tuple[int, ...]
    grad_q: tuple[int, ...]
    grad_v: tuple[int, ...]
    head_dim: int
    heads: int
    k: tuple[int, ...]
    kv_lens: int
    len_k: int
    len_q: int
    lse: int
    out: tuple[int, ...]
    prefix: int
    q: tuple[int, ...]
    rotary: int
    rotary_dim: int
    rotary_rows: int
    scale: float
    threads: int
    v: tuple[int, ...]
    workspace: int
    workspace_bytes: int

def cpu_attention(args: AttentionArgs) -> None: ...
def cpu_attention_backward(args: AttentionArgs) -> None: ...
def cpu_attention_workspace(args: AttentionArgs, backward: bool) -> int: ...
def cpu_conv3x3(
    x: tuple[int, int, int, int],
    norm: tuple[int, int, int, int],
    packed: int,
    bias: int,
    residual: int,
    out: int,
    workspace: int,
    workspace_bytes: int,
    shape: tuple[int, int, int, int, int, int],
    silu: bool,
    dtype: int,
    threads: int,
) -> None: ...
def cpu_conv3x3_pack(weight: int, packed: int, channels_in: int, channels_out: int, threads: int) -> None: ...
def cpu_conv3x3_packed_values(channels_in: int, channels_out: int) -> int: ...
def cpu_conv3x3_workspace(shape: tuple[int, int, int, int, int, int], threads: int) -> int: ...
def cpu_eos_probability(
    hidden: int,
    weight: int,
    bias: int,
    probability: int,
    maximum: int,
    sum: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    positions: int,
    width: int,
    vocabulary: int,
    hidden_stride_image: int,
    hidden_stride_position: int,
    weight_stride_row: int,
    eos_id: int,
    dtype: int,
    threads: int,
) -> None: ...
def cpu_eos_scan(
    hidden: int,
    weight: int,
    bias: int,
    witness: int,
    first: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    positions: int,
    width: int,
    vocabulary: int,
    witness_count: int,
    hidden_stride_image: int,
    hidden_stride_position: int,
    weight_stride_row: int,
    eos_id: int,
    first_round: int,
    dtype: int,
    threads: int,
) -> None: ...
def cpu_eos_workspace(batch: int, positions: int, width: int, vocabulary: int, threads: int) -> int: ...
def cpu_group_norm(
    x: int,
    residual: int,
    weight: int,
    bias: int,
    normed: int,
    summed: int,
    mean: int,
    rstd: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    pixels: int,
    channels: int,
    groups: int,
    x_stride_image: int,
    x_stride_pixel: int,
    residual_stride_image: int,
    residual_stride_pixel: int,
    eps: float,
    silu: bool,
    dtype: int,
    threads: int,
) -> None: ...
def cpu_group_norm_backward(
    grad_normed: tuple[int, int, int],
    grad_summed: tuple[int, int, int],
    x: tuple[int, int, int],
    weight: int,
    bias: int,
    mean: int,
    rstd: int,
    grad_x: int,
    grad_weight: int,
    grad_bias: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    pixels: int,
    channels: int,
    groups: int,
    silu: bool,
    dtype: int,
    threads: int,
) -> None: ...
def cpu_group_norm_backward_workspace(batch: int, pixels: int, channels: int) -> int: ...
def cpu_group_norm_workspace(batch: int, pixels: int, channels: int, groups: int, threads: int) -> int: ...
def cpu_isa() -> str: ...
def cpu_pack(
    source: int,
    target: int,
    cu_seqlens: int,
    batch: int,
    max_len: int,
    width: int,
    element_bytes: int,
    padded_stride_b: int,
    padded_stride_k: int,
    threads: int,
) -> None: ...
def cpu_unpack(
    source: int,
    target: int,
    cu_seqlens: int,
    batch: int,
    max_len: int,
    width: int,
    element_bytes: int,
    padded_stride_b: int,
    padded_stride_k: int,
    threads: int,
) -> None: ...
def cpu_zero_tail(
    source: int,
    target: int,
    lengths: int,
    batch: int,
    max_len: int,
    width: int,
    element_bytes: int,
    source_stride_b: int,
    source_stride_k: int,
    threads: int,
) -> None: ...
def cuda_add_branches(
    x: int,
    a: int,
    b: int,
    bias_a: int,
    bias_b: int,
    out: int,
    rows: int,
    width: int,
    dtype: int,
    parameters: int,
    stream: int,
) -> None: ...
def cuda_archs() -> str: ...
def cuda_attention(args: AttentionArgs, stream: int) -> None: ...
def cuda_attention_backward(args: AttentionArgs, stream: int) -> None: ...
def cuda_attention_workspace(args: AttentionArgs, backward: bool) -> int: ...
def cuda_bias_gelu(
    x: int,
    bias: int,
    grad: int,
    out: int,
    rows: int,
    width: int,
    dtype: int,
    parameters: int,
    stream: int,
) -> None: ...
def cuda_bias_gelu_backward(
    x: int,
    bias: int,
    grad: int,
    out: int,
    rows: int,
    width: int,
    dtype: int,
    parameters: int,
    stream: int,
) -> None: ...
def cuda_cu_seqlens(lengths: int, cu_seqlens: int, batch: int, stream: int) -> None: ...
def cuda_eos_backward_fits(dtype: int) -> bool: ...
def cuda_eos_backward_workspace(batch: int, positions: int, width: int, vocabulary: int) -> int: ...
def cuda_eos_probability(
    hidden: int,
    weight: int,
    bias: int,
    probability: int,
    maximum: int,
    sum: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    positions: int,
    width: int,
    vocabulary: int,
    hidden_stride_image: int,
    hidden_stride_position: int,
    weight_stride_row: int,
    eos_id: int,
    dtype: int,
    stream: int,
) -> None: ...
def cuda_eos_probability_backward(
    hidden: int,
    weight: int,
    bias: int,
    grad: int,
    probability: int,
    maximum: int,
    sum: int,
    grad_hidden: int,
    grad_weight: int,
    grad_bias: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    positions: int,
    width: int,
    vocabulary: int,
    hidden_stride_image: int,
    hidden_stride_position: int,
    weight_stride_row: int,
    eos_id: int,
    block_rows: int,
    dtype: int,
    stream: int,
) -> None: ...
def cuda_eos_probability_workspace(batch: int, positions: int, width: int, vocabulary: int) -> int: ...
def cuda_eos_scan(
    hidden: int,
    weight: int,
    bias: int,
    witness: int,
    first: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    positions: int,
    width: int,
    vocabulary: int,
    witness_count: int,
    hidden_stride_image: int,
    hidden_stride_position: int,
    weight_stride_row: int,
    eos_id: int,
    first_round: int,
    dtype: int,
    stream: int,
) -> None: ...
def cuda_eos_scan_workspace(batch: int, positions: int, width: int, vocabulary: int) -> int: ...
def cuda_group_norm(
    x: int,
    residual: int,
    weight: int,
    bias: int,
    normed: int,
    summed: int,
    mean: int,
    rstd: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    pixels: int,
    channels: int,
    groups: int,
    x_stride_image: int,
    x_stride_pixel: int,
    residual_stride_image: int,
    residual_stride_pixel: int,
    eps: float,
    silu: bool,
    dtype: int,
    parameters: int,
    stream: int,
) -> None: ...
def cuda_group_norm_backward(
    grad: int,
    summed: int,
    grad_summed: int,
    weight: int,
    bias: int,
    mean: int,
    rstd: int,
    grad_x: int,
    grad_weight: int,
    grad_bias: int,
    workspace: int,
    workspace_bytes: int,
    batch: int,
    pixels: int,
    channels: int,
    groups: int,
    grad_stride_image: int,
    grad_stride_pixel: int,
    summed_stride_image: int,
    summed_stride_pixel: int,
    grad_summed_stride_image: int,
    grad_summed_stride_pixel: int,
    silu: bool,
    dtype: int,
    parameters: int,
    stream: int,
) -> None: ...
def cuda_group_norm_workspace(batch: int, pixels: int, channels: int, groups: int) -> int: ...
def cuda_pack(
    source: int,
    target: int,
    cu_seqlens: int,
    batch: int,
    max_len: int,
    width: int,
    element_bytes: int,
    padded_stride_b: int,
    padded_stride_k: int,
    packed_rows: int,
    stream: int,
) -> None: ...
def cuda_pair_norm(
    x: int,
    weight_a: int,
    bias_a: int,
    weight_b: int,
    bias_b: int,
    normed_a: int,
    normed_b: int,
    mean: int,
    rstd: int,
    rows: int,
    width: int,
    eps: float,
    dtype: int,
    parameters: int,
    stream: int,
) -> None: ...
def cuda_pair_norm_backward(
    x: int,
    grad_a: int,
    grad_b: int,
    weight_a: int,
    weight_b: int,
    mean: int,
    rstd: int,
    grad_x: int,
    grad_parameters: int,
    workspace: int,
    workspace_bytes: int,
    rows: int,
    width: int,
    dtype: int,
    parameters: int,
    stream: int,
) -> None: ...
def cuda_pair_norm_backward_workspace(rows: int, width: int) -> int: ...
def cuda_unpack(
    source: int,
    target: int,
    cu_seqlens: int,
    batch: int,
    max_len: int,
    width: int,
    element_bytes: int,
    padded_stride_b: int,
    padded_stride_k: int,
    packed_rows: int,
    stream: int,
) -> None: ...
def cuda_why_not() -> str: ...
def cuda_zero_tail(
    source: int,
    target: int,
    lengths: int,
    batch: int,
    max_len: int,
    width: int,
    element_bytes: int,
    source_stride_b: int,
    source_stride_k: int,
    stream: int,
) -> None: ...
def force_cpu_isa(isa: int) -> bool: ...
