// Vectors of the instruction set a kernel file is being compiled for: `Vec` is kLanes floats.
//
// Arithmetic on Vec is plain + - * / and comparison (GCC and Clang vector extensions); this header adds what
// the extensions lack: bfloat16 memory, fused multiply-add, min and max, exponentials, reductions. Everything
// is static inline inside DOVE_ISA, because a function shared between instruction sets would be linked once,
// from whichever object the linker meets first.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
// GCC 12 warns of its own _mm512_undefined_ps() in whatever inlines it.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace dove::cpu::DOVE_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecInt __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t VecHalf __attribute__((vector_size(kLanes * 2)));

// The upper half of a float. Only a storage type: values are converted on load and rounded on store.
struct BFloat16 {
  uint16_t bits;
};

// --- scalars ----------------------------------------------------------------------------------------

static inline float to_float(float x) { return x; }

static inline float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline void from_float(float* to, float x) { *to = x; }

// Rounds to nearest, ties to even; a NaN stays a NaN even where its payload sits in the dropped bits.
static inline void from_float(BFloat16* to, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) {
    to->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);
  } else {
    to->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

// --- memory -----------------------------------------------------------------------------------------

static inline Vec splat(float x) { return x - Vec{}; }

static inline Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

static inline VecBits load_bits(const void* from) {
  VecBits v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// kLanes 16-bit values, each zero-extended to 32 bits.
static inline VecBits load_halves(const void* from) {
#if defined(__AVX512F__)  // the conversion of the extensions goes through two half vectors
  __m256i v;
  std::memcpy(&v, from, sizeof v);
  return reinterpret_cast<VecBits>(_mm512_cvtepu16_epi32(v));
#else
  VecHalf v;
  std::memcpy(&v, from, sizeof v);
  return __builtin_convertvector(v, VecBits);
#endif
}

static inline Vec load(const BFloat16* from) { return reinterpret_cast<Vec>(load_halves(from) << 16); }

static inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
static inline void store_bits(void* to, VecBits v) { std::memcpy(to, &v, sizeof v); }

// The bfloat16 bits of each lane, rounded to nearest even, in the low half of 32 bits.
static inline VecBits round_to_bfloat16(Vec v) {
  const VecBits bits = reinterpret_cast<VecBits>(v);
  const VecBits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecBits quiet = (bits >> 16) | 0x40u;
  const VecBits is_nan = reinterpret_cast<VecBits>(v != v);
  return (rounded & ~is_nan) | (quiet & is_nan);
}

static inline void store(BFloat16* to, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(to, &halves, sizeof halves);
#else
  const VecHalf halves = __builtin_convertvector(round_to_bfloat16(v), VecHalf);
  std::memcpy(to, &halves, sizeof halves);
#endif
}

// --- arithmetic -------------------------------------------------------------------------------------

// a * b + c, fused where the instruction set has it. By name, since EOS logits must be the same in every kernel; where
// the name is not known, the build contracts the expression.
static inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

// A NaN in `x` comes through; one in `bound` does not.
static inline Vec at_least(Vec x, Vec bound) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_max_ps(reinterpret_cast<__m512>(bound), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(_mm256_max_ps(reinterpret_cast<__m256>(bound), reinterpret_cast<__m256>(x)));
#else
  return x < bound ? bound : x;
#endif
}

// A NaN in `x` comes through; one in `bound` does not.
static inline Vec at_most(Vec x, Vec bound) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_min_ps(reinterpret_cast<__m512>(bound), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(_mm256_min_ps(reinterpret_cast<__m256>(bound), reinterpret_cast<__m256>(x)));
#else
  return x > bound ? bound : x;
#endif
}

// `yes` in the lanes whose index is below `count`, `no` in the others.
static inline Vec select_first(int64_t count, Vec yes, Vec no) {
  VecInt lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const int32_t bound = static_cast<int32_t>(count < 0 ? 0 : (count > kLanes ? kLanes : count));
  return lane < bound ? yes : no;
}

static inline float reduce_sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
  // Halves are added in a fixed tree, so that the order does not depend on the compiler.
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
#endif
}

// Undefined if a lane is NaN.
static inline float reduce_max(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
#endif
}

// --- exponentials -----------------------------------------------------------------------------------

// p * 2^n for integral n, where p is within a factor of 2 of 1. `shifted` is n + kRoundingShift: its low
// mantissa bits are n.
constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits behind the point

static inline Vec scale_by_power(Vec p, Vec shifted) {
  return reinterpret_cast<Vec>(reinterpret_cast<VecBits>(p) + (reinterpret_cast<VecBits>(shifted) << 23));
}

// 2^x with a relative error of at most 2.4e-7. -inf gives 0, results below 2^-126 may be flushed to 0, NaN
// stays NaN, and x above 127 is taken as 127.
static inline Vec exp2(Vec x) {
  // Minimax polynomial of 2^r on [-1/2, 1/2]; the constant is 1 so that exp2(0) is exactly 1.
#if defined(__AVX512F__)
  const Vec bounded = at_least(at_most(x, splat(127.0f)), splat(-200.0f));
  const __m512 n =
      _mm512_roundscale_ps(reinterpret_cast<__m512>(bounded), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec r = bounded - reinterpret_cast<Vec>(n);
#else
  const Vec bounded = at_least(at_most(x, splat(127.0f)), splat(-126.0f));
  const Vec shifted = bounded + kRoundingShift;
  const Vec r = bounded - (shifted - kRoundingShift);
#endif
  Vec p = splat(0.0013276472454890609f);
  p = fma(p, r, splat(0.009675541892647743f));
  p = fma(p, r, splat(0.05550713092088699f));
  p = fma(p, r, splat(0.24022120237350464f));
  p = fma(p, r, splat(0.6931469440460205f));
  p = fma(p, r, splat(1.0f));
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_scalef_ps(reinterpret_cast<__m512>(p), n));
#else
  const Vec result = scale_by_power(p, shifted);
  return x < -126.0f ? Vec{} : result;
#endif
}

// e^x with a relative error of about 1e-7, also for large |x|: the multiple of ln 2 is taken off in two
// parts. Results below 2^-126 are 0, NaN stays NaN, and x above 88 is taken as 88.
static inline Vec exp(Vec x) {
  const Vec bounded = at_least(at_most(x, splat(88.0f)), splat(-87.3f));
  const Vec shifted = bounded * 1.44269504f + kRoundingShift;
  const Vec n = shifted - kRoundingShift;
  // 0.693359375 has ten bits, so its product with n is exact even where multiply and add are not fused.
  const Vec r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(0.0013836845755577087f);
  p = fma(p, r, splat(0.008374815806746483f));
  p = fma(p, r, splat(0.04166822507977486f));
  p = fma(p, r, splat(0.16666419804096222f));
  p = fma(p, r, splat(0.49999991059303284f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return x < -87.3f ? Vec{} : scale_by_power(p, shifted);
}

}  // namespace dove::cpu::DOVE_ISA
