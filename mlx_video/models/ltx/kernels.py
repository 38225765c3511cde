"""CUDA kernels for the passes over tokens between matrix products, and how a kernel is launched.

Each reads and writes a token once. The plain MLX function that it replaces defines it, runs elsewhere and has its gradient.
"""

from dataclasses import dataclass
from functools import cache, wraps
from typing import Callable

import mlx.core as mx

from mlx_video.backend import on_cuda

WARP = 32
WIDTH = 8  # features a thread loads at once: 16 bytes of bfloat16
MAX_THREADS = 1024

# Threads in total, threads per block, and the output's shape.
Launch = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True)
class Kernel:
    """A kernel with a block of threads for each token of x (B, N, D); its output has the shape of x.

    arrays    names of the function's array arguments, x first; the numbers after them are the kernel's ``number``
    source    the kernel's body
    features  how many features of a token one thread handles
    """

    name: str
    arrays: tuple[str, ...]
    source: str
    features: int = WIDTH

    def fits(self, x: mx.array) -> bool:
        """Whether this runs on CUDA, and whole warps cover a token."""
        if not on_cuda():
            return False
        threads, rest = divmod(x.shape[-1], self.features)
        return rest == 0 and threads % WARP == 0 and threads <= MAX_THREADS

    def launch(self, x: mx.array, *_: mx.array | float | None) -> Launch:
        """How to launch it for these arguments of the function."""
        block = x.shape[-1] // self.features
        return block * x.shape[0] * x.shape[1], block, x.shape

    def __call__(self, *arguments: mx.array | float | None) -> mx.array:
        """Call the function: arrays first, then numbers. An array may be ``None`` if the kernel handles that."""
        count = len(self.arrays)
        arrays = [mx.array([0]) if a is None else a for a in arguments[:count]]
        x, numbers = arrays[0], mx.array(arguments[count:], mx.float32)
        threads, block, shape = self.launch(*arguments)
        # MLX caches kernels by name and template, so the template must hold every type.
        types = [(f"T_{n}", a.dtype) for n, a in zip(self.arrays, arrays)]
        return _compiled(self)(
            inputs=[*arrays, numbers],
            template=[("T", x.dtype), *types],
            grid=(threads, 1, 1),
            threadgroup=(block, 1, 1),
            output_shapes=[shape],
            output_dtypes=[x.dtype],
        )[0]


def fused(kernel: Kernel) -> Callable[[Callable], Callable]:
    """Run ``kernel`` instead of the decorated function where it fits, with the function's own gradient.

    The function takes positional arguments only: arrays, x first, then numbers.
    """

    def decorate(plain: Callable) -> Callable:
        launch = mx.custom_function(lambda *arguments: kernel(*arguments))
        launch.vjp(lambda primals, slope, _: _gradients(plain, primals, slope))
        # MLX assembles a kernel's source in every call; in a compiled function, only once.
        launch = mx.compile(launch)

        @wraps(plain)
        def run(x: mx.array, *others: mx.array | float | None) -> mx.array:
            return (launch if kernel.fits(x) else plain)(x, *others)

        return run

    return decorate


def _gradients(
    plain: Callable, primals: tuple, slope: mx.array
) -> tuple[mx.array | None, ...]:
    """Gradients of ``plain``; zeros for integer arrays, ``None`` for arguments that are not arrays."""
    arrays = [(i, p) for i, p in enumerate(primals) if isinstance(p, mx.array)]
    chosen = [i for i, p in arrays if mx.issubdtype(p.dtype, mx.inexact)]

    def of_chosen(*values: mx.array) -> mx.array:
        arguments = dict(enumerate(primals)) | dict(zip(chosen, values))
        return plain(*arguments.values())

    _, slopes = mx.vjp(of_chosen, [primals[i] for i in chosen], [slope])
    found = dict(zip(chosen, slopes))
    return tuple(
        found.get(i, mx.zeros_like(p) if isinstance(p, mx.array) else None)
        for i, p in enumerate(primals)
    )


@cache
def _compiled(kernel: Kernel) -> Callable:
    return mx.fast.cuda_kernel(
        name=kernel.name,
        input_names=[*kernel.arrays, "number"],
        output_names=["out"],
        source=kernel.source,
        header=HEADER,
    )


HEADER = """
template <typename T>
struct alignas(sizeof(T) * 8) Pack { T at[8]; };

template <typename T>
__device__ Pack<T> load(const T* p) { return *reinterpret_cast<const Pack<T>*>(p); }

template <typename T>
__device__ void store(T* p, const Pack<T>& v) { *reinterpret_cast<Pack<T>*>(p) = v; }

// A row of a block's own table plus one that depends on the noise level, rounded as the latter is.
template <typename T, typename S>
__device__ Pack<T> add_rows(const Pack<S>& own, const Pack<T>& shared) {
  Pack<T> sum;
  for (int i = 0; i < 8; ++i) sum.at[i] = T(float(own.at[i]) + float(shared.at[i]));
  return sum;
}

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

# One block per token. The table's rows begin at `own`, those of the token's noise level at
# `shared`. Sizes and row numbers are read at run time: compiling a kernel takes seconds.
TOKEN = """
  const int token = blockIdx.x, feature = threadIdx.x * 8, N = x_shape[1], D = x_shape[2];
  const int batch = rows_shape[0] == 1 ? 0 : token / N, K = rows_shape[1];
  const int level = levels_shape[0] == 1 ? 0 : levels[token % N];
  const auto* own = table + feature;
  const auto* shared = rows + size_t(batch * K + level) * rows_shape[2] * D + feature;
  const size_t at = size_t(token) * D + feature;
"""

# Twice WIDTH features a thread, of either half of the token: 1.2 to 1.3 times as fast on an H200 as WIDTH.
NORM_MODULATE = Kernel(
    "norm_modulate",
    ("x", "table", "rows", "levels"),
    TOKEN + """
  const int s = int(number[0]) * D, m = int(number[1]) * D;
  Pack<T> v[2];
  float squares = 0;
  for (int h = 0; h < 2; ++h) {
    const int half = h * D / 2;
    v[h] = load(x + at + half);
    for (int i = 0; i < 8; ++i) squares += float(v[h].at[i]) * float(v[h].at[i]);
  }
  const float inverse = rsqrtf(block_sum(squares) / D + number[2]);
  for (int h = 0; h < 2; ++h) {
    const int half = h * D / 2;
    const auto shift = add_rows(load(own + s + half), load(shared + s + half)), scale = add_rows(load(own + m + half), load(shared + m + half));
    for (int i = 0; i < 8; ++i) {
      const float normed = float(T(float(v[h].at[i]) * inverse));
      v[h].at[i] = T(normed * (1.0f + float(scale.at[i])) + float(shift.at[i]));
    }
    store(out + at + h * D / 2, v[h]);
  }
""",
    features=2 * WIDTH,
)

ADD_GATED = Kernel(
    "add_gated",
    ("x", "update", "table", "rows", "levels"),
    TOKEN + """
  const int g = int(number[0]) * D;
  auto v = load(x + at);
  const auto u = load(update + at), gate = add_rows(load(own + g), load(shared + g));
  for (int i = 0; i < 8; ++i)
    v.at[i] = T(float(v.at[i]) + float(u.at[i]) * float(gate.at[i]));
  store(out + at, v);
""",
)

# One thread per WIDTH features of a head's first half and the WIDTH of its second half that they rotate with.
NORM_ROTATE = Kernel(
    "norm_rotate",
    ("x", "weight", "cos", "sin"),
    """
  const int token = blockIdx.x, N = x_shape[1], D = x_shape[2], half = cos_shape[3];
  const int head = threadIdx.x * 8 / half, pair = threadIdx.x * 8 % half;
  const int feature = head * 2 * half + pair;
  const size_t at = size_t(token) * D + feature;
  auto a = load(x + at), b = load(x + at + half);
  float squares = 0;
  for (int i = 0; i < 8; ++i)
    squares += float(a.at[i]) * float(a.at[i]) + float(b.at[i]) * float(b.at[i]);
  const float inverse = rsqrtf(block_sum(squares) / D + number[0]);
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
""",
    features=2 * WIDTH,
)
