"""Compiled kernels of dove_ext, which take addresses and sizes; call them through `dove_ext.ops`.

The classes are the structs of csrc/include/dove, with pointers as addresses; fields that the constructor
is not told of are zero. `dove_ext.ops.library.call` makes them.
"""

class AttentionArgs:
    def __init__(self, **fields: object) -> None: ...
    dtype: int
    batch: int
    heads: int
    head_dim: int
    len_q: int
    len_k: int
    prefix: int
    scale: float
    cu_seqlens_q: int
    cu_seqlens_k: int
    kv_lens: int
    rotary: int
    rotary_dim: int
    rotary_rows: int
    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    out: tuple[int, ...]
    lse: int
    grad_out: tuple[int, ...]
    grad_q: tuple[int, ...]
    grad_k: tuple[int, ...]
    grad_v: tuple[int, ...]
    threads: int
    workspace: int
    workspace_bytes: int

class PairNormArgs:
    def __init__(self, **fields: object) -> None: ...
    x: int
    weight: tuple[int, ...]
    bias: tuple[int, ...]
    normed: tuple[int, ...]
    mean: int
    rstd: int
    rows: int
    width: int
    eps: float
    dtype: int
    parameters: int

class PairNormGradArgs:
    def __init__(self, **fields: object) -> None: ...
    x: int
    grad: tuple[int, ...]
    weight: tuple[int, ...]
    mean: int
    rstd: int
    grad_x: int
    grad_parameters: int
    workspace: int
    workspace_bytes: int
    rows: int
    width: int
    dtype: int
    parameters: int

class BiasGeluArgs:
    def __init__(self, **fields: object) -> None: ...
    x: int
    bias: int
    grad: int
    out: int
    rows: int
    width: int
    dtype: int
    parameters: int

class AddBranchesArgs:
    def __init__(self, **fields: object) -> None: ...
    x: int
    a: int
    b: int
    bias_a: int
    bias_b: int
    out: int
    rows: int
    width: int
    dtype: int
    parameters: int

class Conv3x3Args:
    def __init__(self, **fields: object) -> None: ...
    x: int
    mean: int
    rstd: int
    norm_weight: int
    norm_bias: int
    packed: int
    bias: int
    residual: int
    out: int
    workspace: int
    workspace_bytes: int
    batch: int
    height: int
    width: int
    channels_in: int
    channels_out: int
    groups: int
    x_stride_image: int
    x_stride_row: int
    x_stride_pixel: int
    silu: bool
    dtype: int
    threads: int

class Conv3x3PackArgs:
    def __init__(self, **fields: object) -> None: ...
    weight: int
    packed: int
    channels_in: int
    channels_out: int
    threads: int

class EosArgs:
    def __init__(self, **fields: object) -> None: ...
    hidden: int
    weight: int
    bias: int
    witness: int
    first: int
    probability: int
    maximum: int
    sum: int
    workspace: int
    workspace_bytes: int
    batch: int
    positions: int
    width: int
    vocabulary: int
    witness_count: int
    hidden_stride_image: int
    hidden_stride_position: int
    weight_stride_row: int
    eos_id: int
    first_round: int
    dtype: int
    threads: int

class EosGradArgs:
    def __init__(self, **fields: object) -> None: ...
    hidden: int
    weight: int
    bias: int
    grad: int
    probability: int
    maximum: int
    sum: int
    grad_hidden: int
    grad_weight: int
    grad_bias: int
    workspace: int
    workspace_bytes: int
    batch: int
    positions: int
    width: int
    vocabulary: int
    hidden_stride_image: int
    hidden_stride_position: int
    weight_stride_row: int
    eos_id: int
    block_rows: int
    dtype: int

class GroupNormArgs:
    def __init__(self, **fields: object) -> None: ...
    x: int
    residual: int
    x_bias: int
    weight: int
    bias: int
    normed: int
    summed: int
    mean: int
    rstd: int
    workspace: int
    workspace_bytes: int
    batch: int
    pixels: int
    channels: int
    groups: int
    x_stride_image: int
    x_stride_pixel: int
    residual_stride_image: int
    residual_stride_pixel: int
    eps: float
    silu: bool
    dtype: int
    threads: int
    parameters: int

class GroupNormGradArgs:
    def __init__(self, **fields: object) -> None: ...
    grad: int
    summed: int
    grad_summed: int
    x_bias: int
    weight: int
    bias: int
    mean: int
    rstd: int
    grad_x: int
    grad_weight: int
    grad_bias: int
    grad_x_bias: int
    workspace: int
    workspace_bytes: int
    batch: int
    pixels: int
    channels: int
    groups: int
    grad_stride_image: int
    grad_stride_pixel: int
    summed_stride_image: int
    summed_stride_pixel: int
    grad_summed_stride_image: int
    grad_summed_stride_pixel: int
    silu: bool
    dtype: int
    threads: int
    parameters: int

class ResidualSumArgs:
    def __init__(self, **fields: object) -> None: ...
    x: int
    residual: int
    bias: int
    out: int
    batch: int
    height: int
    width: int
    channels: int
    pad: int
    x_stride_image: int
    x_stride_row: int
    x_stride_pixel: int
    residual_stride_image: int
    residual_stride_row: int
    residual_stride_pixel: int
    dtype: int
    parameters: int

class PackArgs:
    def __init__(self, **fields: object) -> None: ...
    source: int
    target: int
    cu_seqlens: int
    batch: int
    max_len: int
    width: int
    element_bytes: int
    padded_stride_b: int
    padded_stride_k: int
    threads: int
    packed_rows: int

class ZeroTailArgs:
    def __init__(self, **fields: object) -> None: ...
    source: int
    target: int
    lengths: int
    batch: int
    max_len: int
    width: int
    element_bytes: int
    source_stride_b: int
    source_stride_k: int
    threads: int

class CuSeqlensArgs:
    def __init__(self, **fields: object) -> None: ...
    lengths: int
    cu_seqlens: int
    batch: int

def cpu_attention(args: AttentionArgs) -> None: ...
def cpu_attention_backward(args: AttentionArgs) -> None: ...
def cpu_attention_backward_workspace(args: AttentionArgs) -> int: ...
def cpu_attention_workspace(args: AttentionArgs) -> int: ...
def cpu_conv3x3(args: Conv3x3Args) -> None: ...
def cpu_conv3x3_pack(args: Conv3x3PackArgs) -> None: ...
def cpu_conv3x3_packed_values(channels_in: int, channels_out: int) -> int: ...
def cpu_conv3x3_workspace(args: Conv3x3Args) -> int: ...
def cpu_eos_probability(args: EosArgs) -> None: ...
def cpu_eos_probability_workspace(args: EosArgs) -> int: ...
def cpu_eos_scan(args: EosArgs) -> None: ...
def cpu_eos_scan_workspace(args: EosArgs) -> int: ...
def cpu_group_norm(args: GroupNormArgs) -> None: ...
def cpu_group_norm_backward(args: GroupNormGradArgs) -> None: ...
def cpu_group_norm_backward_workspace(args: GroupNormGradArgs) -> int: ...
def cpu_group_norm_workspace(args: GroupNormArgs) -> int: ...
def cpu_isa() -> str: ...
def cpu_pack(args: PackArgs) -> None: ...
def cpu_unpack(args: PackArgs) -> None: ...
def cpu_zero_tail(args: ZeroTailArgs) -> None: ...
def cuda_add_branches(args: AddBranchesArgs, stream: int) -> None: ...
def cuda_archs() -> str: ...
def cuda_attention(args: AttentionArgs, stream: int) -> None: ...
def cuda_attention_backward(args: AttentionArgs, stream: int) -> None: ...
def cuda_attention_backward_workspace(args: AttentionArgs) -> int: ...
def cuda_bias_gelu(args: BiasGeluArgs, stream: int) -> None: ...
def cuda_bias_gelu_backward(args: BiasGeluArgs, stream: int) -> None: ...
def cuda_cu_seqlens(args: CuSeqlensArgs, stream: int) -> None: ...
def cuda_eos_backward_fits(dtype: int) -> bool: ...
def cuda_eos_probability(args: EosArgs, stream: int) -> None: ...
def cuda_eos_probability_backward(args: EosGradArgs, stream: int) -> None: ...
def cuda_eos_probability_backward_workspace(args: EosGradArgs) -> int: ...
def cuda_eos_probability_workspace(args: EosArgs) -> int: ...
def cuda_eos_scan(args: EosArgs, stream: int) -> None: ...
def cuda_eos_scan_workspace(args: EosArgs) -> int: ...
def cuda_group_norm(args: GroupNormArgs, stream: int) -> None: ...
def cuda_group_norm_backward(args: GroupNormGradArgs, stream: int) -> None: ...
def cuda_group_norm_backward_workspace(args: GroupNormGradArgs) -> int: ...
def cuda_group_norm_workspace(args: GroupNormArgs) -> int: ...
def cuda_pack(args: PackArgs, stream: int) -> None: ...
def cuda_pair_norm(args: PairNormArgs, stream: int) -> None: ...
def cuda_pair_norm_backward(args: PairNormGradArgs, stream: int) -> None: ...
def cuda_pair_norm_backward_workspace(args: PairNormGradArgs) -> int: ...
def cuda_residual_sum(args: ResidualSumArgs, stream: int) -> None: ...
def cuda_unpack(args: PackArgs, stream: int) -> None: ...
def cuda_why_not() -> str: ...
def cuda_zero_tail(args: ZeroTailArgs, stream: int) -> None: ...
def force_cpu_isa(isa: int) -> bool: ...
