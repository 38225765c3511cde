"""CUDA kernels for the passes over tokens between the matrix products.

Knows rows and registers; what each pass means is said by the plain MLX that it is given with, which runs on every other
backend, and whose gradient is this one's. One kernel in place of several moves every token through memory once.
"""

from functools import cache
from typing import Callable, Sequence

import mlx.core as mx

WARP = 32
WIDTH = 8  # features a thread loads at once: 16 bytes of bfloat16
MAX_THREADS = 1024

HEADER = """
template <typename T>
struct alignas(sizeof(T) * 8) Pack { T at[8]; };

template <typename T>
__device__ Pack<T> load(const T* p) { return *reinterpret_cast<const Pack<T>*>(p); }

template <typename T>
__device__ void store(T* p, const Pack<T>& v) { *reinterpret_cast<Pack<T>*>(p) = v; }

// The sum of every thread's value, known to every thread of the block.
__device__ float block_sum(float value) {
  __shared__ float partial[32];
  for (int lane = 16; lane > 0; lane >>= 1)
    value += __shfl_xor_sync(0xffffffff, value, lane);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) total += partial[warp];
  return total;
}
"""

# One block a token, one thread for WIDTH features. The rows of its noise level begin at `row`. Sizes and row numbers
# are read when the kernel runs: compiling one takes seconds.
TOKEN = """
  const int token = blockIdx.x, feature = threadIdx.x * 8, N = x_shape[1], D = x_shape[2];
  const int batch = rows_shape[0] == 1 ? 0 : token / N, K = rows_shape[1];
  const int level = K == 1 ? 0 : levels[token % N];
  const T* row = rows + size_t(batch * K + level) * rows_shape[2] * D + feature;
  const size_t at = size_t(token) * D + feature;
  auto v = load(x + at);
"""

NORM_MODULATE = """
  float squares = 0;
  for (int i = 0; i < 8; ++i) squares += float(v.at[i]) * float(v.at[i]);
  const float inverse = rsqrtf(block_sum(squares) / D + EPS);
  const auto shift = load(row + number[0] * D), scale = load(row + number[1] * D);
  for (int i = 0; i < 8; ++i)
    v.at[i] = T(float(T(float(v.at[i]) * inverse)) * (1.0f + float(scale.at[i])) + float(shift.at[i]));
  store(out + at, v);
"""

GATED = """
  const auto u = load(update + at), gate = load(row + number[0] * D);
  for (int i = 0; i < 8; ++i)
    v.at[i] = T(float(v.at[i]) + float(u.at[i]) * float(gate.at[i]));
  store(out + at, v);
"""

# One thread for WIDTH features of a head's first half and the WIDTH of its second half that they are turned with.
NORM_ROTATE = """
  const int token = blockIdx.x, N = x_shape[1], D = x_shape[2], half = cos_shape[3];
  const int head = threadIdx.x * 8 / half, pair = threadIdx.x * 8 % half;
  const int feature = head * 2 * half + pair;
  const size_t at = size_t(token) * D + feature;
  auto a = load(x + at), b = load(x + at + half);
  float squares = 0;
  for (int i = 0; i < 8; ++i)
    squares += float(a.at[i]) * float(a.at[i]) + float(b.at[i]) * float(b.at[i]);
  const float inverse = rsqrtf(block_sum(squares) / D + EPS);
  const auto wa = load(weight + feature), wb = load(weight + feature + half);
  const size_t place = cos_shape[0] == 1 ? token % N : token;
  const size_t turn = (place * cos_shape[2] + head) * half + pair;
  const auto c = load(cos + turn), s = load(sin + turn);
  for (int i = 0; i < 8; ++i) {
    const float p = float(T(float(a.at[i]) * inverse * float(wa.at[i])));
    const float q = float(T(float(b.at[i]) * inverse * float(wb.at[i])));
    a.at[i] = T(p * c.at[i] - q * s.at[i]);
    b.at[i] = T(q * c.at[i] + p * s.at[i]);
  }
  store(out + at, a);
  store(out + at + half, b);
"""


def norm_modulate(
    plain: Callable[[mx.array, mx.array], mx.array],
    x: mx.array,
    rows: mx.array,
    index: mx.array | None,
    eps: float,
    shift: int,
    scale: int,
) -> mx.array:
    """``plain(x, rows)``: RMS norm of x (B, N, D), then ``* (1 + scale) + shift`` with rows (B, K, R, D)."""
    if not _fits(x, WIDTH):
        return plain(x, rows)
    source = TOKEN + NORM_MODULATE.replace("EPS", f"{eps}f")
    kernel = _kernel("norm_modulate", ("x", "rows", "levels", "number"), source)

    def run(x: mx.array, rows: mx.array) -> mx.array:
        inputs = [x, rows, _levels(index), _numbers(shift, scale)]
        return _launch(kernel, inputs, x, WIDTH)

    return _with_gradient(run, plain)(x, rows)


def gated(
    plain: Callable[[mx.array, mx.array, mx.array], mx.array],
    x: mx.array,
    update: mx.array,
    rows: mx.array,
    index: mx.array | None,
    gate: int,
) -> mx.array:
    """``plain(x, update, rows)``: x + update * gate, with rows (B, K, R, D)."""
    if not _fits(x, WIDTH):
        return plain(x, update, rows)
    names = ("x", "update", "rows", "levels", "number")
    kernel = _kernel("gated", names, TOKEN + GATED)

    def run(x: mx.array, update: mx.array, rows: mx.array) -> mx.array:
        inputs = [x, update, rows, _levels(index), _numbers(gate)]
        return _launch(kernel, inputs, x, WIDTH)

    return _with_gradient(run, plain)(x, update, rows)


def norm_rotate(
    plain: Callable[[mx.array, mx.array], mx.array],
    x: mx.array,
    weight: mx.array,
    cos: mx.array,
    sin: mx.array,
    eps: float,
) -> mx.array:
    """``plain(x, weight)``: x (B, N, H * D) normed over all heads, turned in split halves -> (B, H, N, D)."""
    half = cos.shape[-1]
    if half % WIDTH or not _fits(x, 2 * WIDTH):
        return plain(x, weight)
    source = NORM_ROTATE.replace("EPS", f"{eps}f")
    kernel = _kernel("norm_rotate", ("x", "weight", "cos", "sin"), source)

    def run(x: mx.array, weight: mx.array) -> mx.array:
        # Token by token, as the tables lie in memory: a copy in another order would cost more than the rotation.
        tables = [cos.swapaxes(1, 2), sin.swapaxes(1, 2)]
        out = _launch(kernel, [x, weight, *tables], x, 2 * WIDTH)
        return mx.unflatten(out, -1, (-1, 2 * half)).swapaxes(1, 2)

    return _with_gradient(run, plain)(x, weight)


def _fits(x: mx.array, features: int) -> bool:
    """Whether this is CUDA, and a block of whole warps covers a token with ``features`` a thread."""
    threads, rest = divmod(x.shape[-1], features)
    whole = rest == 0 and threads % WARP == 0 and threads <= MAX_THREADS
    return whole and mx.default_device() == mx.gpu and mx.cuda.is_available()


def _launch(kernel, inputs: list[mx.array], x: mx.array, features: int) -> mx.array:
    """One block for each token of x (B, N, D), of as many threads as share its features."""
    threads = x.shape[-1] // features
    return kernel(
        inputs=inputs,
        template=[("T", x.dtype)],
        grid=(threads * x.shape[0] * x.shape[1], 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )[0]


def _levels(index: mx.array | None) -> mx.array:
    return _numbers(0) if index is None else index.astype(mx.int32)


@cache
def _numbers(*numbers: int) -> mx.array:
    return mx.array(numbers, mx.int32)


@cache
def _kernel(name: str, inputs: Sequence[str], source: str):
    return mx.fast.cuda_kernel(
        name=name,
        input_names=list(inputs),
        output_names=["out"],
        source=source,
        header=HEADER,
    )


def _with_gradient(run: Callable, plain: Callable) -> Callable:
    """``run`` with the gradient of ``plain``."""
    function = mx.custom_function(run)

    @function.vjp
    def gradient(primals, cotangent, _):
        given = primals if isinstance(primals, (list, tuple)) else [primals]
        return tuple(mx.vjp(plain, list(given), [cotangent])[1])

    return function
