// The CUDA kernels of the smooth activations: a 16-byte vector of each tensor a thread, and one pass.
#include "ops/activation_formulas.h"
#include "ops/activation_launch.h"
#include "ops/cuda_kernels.h"

namespace gpfast {
namespace {

enum class Task { kSlope, kAddSlope, kSlopeAndCurve };

// The elements of one thread, in the type they are computed in.
template <typename T>
struct Piece {
  using A = Wide<T>;
  static constexpr int kWidth = kVector<T>;
  A lane[kWidth];

  // Element by element at the end, and where 16-byte accesses are not possible; beyond the end there are ones.
  __device__ static Piece read(const T* from, int64_t left, bool wide) {
    Piece piece;
    if (wide && left >= kWidth) {
      const auto loaded = load(from);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) piece.lane[k] = widen(loaded.lane[k]);
    } else {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) piece.lane[k] = k < left ? widen(from[k]) : A(1);
    }
    return piece;
  }

  __device__ void write(T* to, int64_t left, bool wide) const {
    if (wide && left >= kWidth) {
      Vector<T, kWidth> stored;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) stored.lane[k] = narrow<T>(lane[k]);
      store(to, stored);
    } else {
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        if (k < left) to[k] = narrow<T>(lane[k]);
    }
  }
};

template <typename T>
struct Derivatives {
  Piece<T> slope, curve;
};

template <template <typename> class Formula, bool kSecond, typename T, typename A = Wide<T>>
__device__ Derivatives<T> derived(const Piece<T>& x, const formulas::Parameters<A>& by) {
  Derivatives<T> found;
#pragma unroll
  for (int k = 0; k < Piece<T>::kWidth; ++k) {
    found.slope.lane[k] = Formula<A>::slope(x.lane[k], by);
    if constexpr (kSecond) found.curve.lane[k] = Formula<A>::curve(x.lane[k], by);
  }
  return found;
}

// kFused: one of the fused activations. The others are in kernels of their own, since their functions take a stack in memory.
template <bool kFused, bool kSecond, typename T, typename A = Wide<T>>
__device__ Derivatives<T> derivatives(const Piece<T>& x, Activation kind, const formulas::Parameters<A>& by) {
#define GPFAST_CASE(name) \
  case Activation::k##name: return derived<formulas::name, kSecond>(x, by);
  if constexpr (kFused) {
    switch (kind) {
      GPFAST_FOR_EACH_FUSED_ACTIVATION(GPFAST_CASE)
      default: return {};
    }
  } else {
    switch (kind) {
      GPFAST_FOR_EACH_OTHER_ACTIVATION(GPFAST_CASE)
      default: return {};
    }
  }
#undef GPFAST_CASE
}

// With room for two blocks the compiler does not spill registers to fit more.
// kSlope: out = s z; kAddSlope: out += s z; kSlopeAndCurve: out = s z and bend = c a z.
template <typename T, Task kTask, bool kFused>
__global__ void __launch_bounds__(kThreads, 2) smooth(const T* z, const T* a, const T* saved, T* out, T* bend, int64_t n,
                                                      bool wide, Activation kind, formulas::Parameters<Wide<T>> by) {
  constexpr int kWidth = kVector<T>;
  constexpr bool kSecond = kTask == Task::kSlopeAndCurve;
  const int64_t first = first_element(kWidth), left = n - first;
  if (left <= 0) return;
  const auto x = Piece<T>::read(saved + first, left, wide);
  auto made = Piece<T>::read(z + first, left, wide);
  Piece<T> other;
  if constexpr (kTask == Task::kAddSlope) other = Piece<T>::read(out + first, left, wide);
  if constexpr (kSecond) other = Piece<T>::read(a + first, left, wide);
  const auto found = derivatives<kFused, kSecond>(x, kind, by);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    if constexpr (kSecond) other.lane[k] = found.curve.lane[k] * other.lane[k] * made.lane[k];
    made.lane[k] *= found.slope.lane[k];
    if constexpr (kTask == Task::kAddSlope) made.lane[k] += other.lane[k];
  }
  made.write(out + first, left, wide);
  if constexpr (kSecond) other.write(bend + first, left, wide);
}

template <Task kTask>
int launch_smooth(Dtype dtype, const void* z, const void* a, const void* saved, void* out, void* bend, int64_t n, const Curve& by,
                  void* stream) {
  return with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Wide<T>;
    const formulas::Parameters<A> parameters{static_cast<A>(by.p), static_cast<A>(by.q), static_cast<A>(by.r)};
    return launch(fused(by.kind) ? smooth<T, kTask, true> : smooth<T, kTask, false>, n, kVector<T>, stream,
                  static_cast<const T*>(z), static_cast<const T*>(a), static_cast<const T*>(saved), static_cast<T*>(out),
                  static_cast<T*>(bend), n, aligned(z, a, saved, out, bend), by.kind, parameters);
  });
}

}  // namespace
}  // namespace gpfast

extern "C" int gpfast_slope_cuda(gpfast::Dtype dtype, const void* z, const void* saved, void* out, int64_t n,
                                 const gpfast::Curve* by, void* stream) {
  using namespace gpfast;
  return launch_smooth<Task::kSlope>(dtype, z, nullptr, saved, out, nullptr, n, *by, stream);
}

extern "C" int gpfast_slope_and_curve_cuda(gpfast::Dtype dtype, const void* t, const void* a, const void* saved, void* out,
                                           void* bend, int64_t n, const gpfast::Curve* by, void* stream) {
  using namespace gpfast;
  return launch_smooth<Task::kSlopeAndCurve>(dtype, t, a, saved, out, bend, n, *by, stream);
}

extern "C" int gpfast_add_slope_cuda(gpfast::Dtype dtype, void* into, const void* z, const void* saved, int64_t n,
                                     const gpfast::Curve* by, void* stream) {
  using namespace gpfast;
  return launch_smooth<Task::kAddSlope>(dtype, z, nullptr, saved, into, nullptr, n, *by, stream);
}
