// Metal's types that C++ lacks: half, bfloat, vectors.
#pragma once

#include <limits>
#include <type_traits>

#include "fibers.h"

namespace metal {

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;

template <typename To, typename From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// A 16-bit float. It becomes a float by itself, and is made of one only explicitly, rounding to nearest
// even; two of a kind are computed in float and rounded.
template <int exponent_bits>
struct small_float {
  uint16_t bits;

  static constexpr int kMantissa = 15 - exponent_bits;
  static constexpr int kDropped = 23 - kMantissa;  // mantissa bits that float has more
  static constexpr int kBias = (1 << (exponent_bits - 1)) - 1;

  small_float() = default;
  template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
  explicit small_float(Number number) : bits(round(float(number))) {}
  template <int other>
  explicit small_float(small_float<other> number) : bits(round(float(number))) {}
  static constexpr small_float of_bits(uint16_t bits) { return small_float(bits, 0); }

  operator float() const {
    uint32_t sign = uint32_t(bits >> 15) << 31, rest = bits & 0x7fffu;
    if constexpr (kBias == 127) return as_type<float>(sign | rest << kDropped);
    if (rest >> kMantissa == (1u << exponent_bits) - 1)
      return as_type<float>(sign | 0x7f800000u | rest << kDropped);
    // Shifted into place, the exponent is off by the difference of the biases; multiplying corrects it,
    // and makes subnormal numbers right as well.
    float scale = as_type<float>(uint32_t(127 + 127 - kBias) << 23);
    return as_type<float>(sign | as_type<uint32_t>(as_type<float>(rest << kDropped) * scale));
  }
  template <typename Number>
  small_float& operator+=(Number n) {
    return *this = small_float(*this + n);
  }
  template <typename Number>
  small_float& operator-=(Number n) {
    return *this = small_float(*this - n);
  }
  template <typename Number>
  small_float& operator*=(Number n) {
    return *this = small_float(*this * n);
  }
  template <typename Number>
  small_float& operator/=(Number n) {
    return *this = small_float(*this / n);
  }
  friend small_float operator+(small_float a, small_float b) { return small_float(float(a) + float(b)); }
  friend small_float operator-(small_float a, small_float b) { return small_float(float(a) - float(b)); }
  friend small_float operator*(small_float a, small_float b) { return small_float(float(a) * float(b)); }
  friend small_float operator/(small_float a, small_float b) { return small_float(float(a) / float(b)); }
  friend small_float operator-(small_float a) { return of_bits(uint16_t(a.bits ^ 0x8000u)); }

 private:
  constexpr small_float(uint16_t b, int) : bits(b) {}

  static uint16_t round(float number) {
    uint32_t all = as_type<uint32_t>(number), magnitude = all & 0x7fffffffu, result;
    constexpr uint32_t infinity = ((1u << exponent_bits) - 1) << kMantissa;
    if (magnitude > 0x7f800000u) {
      result = infinity | 1u << (kMantissa - 1);
    } else if (int(magnitude >> 23) + kBias - 127 > 0) {
      magnitude -= uint32_t(127 - kBias) << 23;
      result = (magnitude + (1u << (kDropped - 1)) - 1 + (magnitude >> kDropped & 1)) >> kDropped;
      if (result > infinity) result = infinity;
    } else {  // subnormal: adding a power of two lets the processor round at the right bit
      float unit = as_type<float>(uint32_t(127 - kBias + 1 + kDropped) << 23);
      result = as_type<uint32_t>(as_type<float>(magnitude) + unit) - as_type<uint32_t>(unit);
    }
    return uint16_t(all >> 31 << 15 | result);
  }
};

using half = small_float<5>;
using bfloat = small_float<8>;
using float16_t = half;
using bfloat16_t = bfloat;

template <typename T>
constexpr bool is_small_float = std::is_same_v<T, half> || std::is_same_v<T, bfloat>;

template <typename T, int n>
struct components;
template <typename T>
struct alignas(2 * sizeof(T)) components<T, 2> {
  T x, y;
};
template <typename T>
struct alignas(4 * sizeof(T)) components<T, 3> {
  T x, y, z;
};
template <typename T>
struct alignas(4 * sizeof(T)) components<T, 4> {
  T x, y, z, w;
};

template <typename T, int n>
struct vec : components<T, n> {
  vec() = default;
  vec(T all) {
    for (int i = 0; i < n; i++) (*this)[i] = all;
  }
  vec(T a, T b) : components<T, n>{a, b} { static_assert(n == 2, "as many values as components"); }
  vec(T a, T b, T c) : components<T, n>{a, b, c} { static_assert(n == 3, "as many values as components"); }
  vec(T a, T b, T c, T d) : components<T, n>{a, b, c, d} {
    static_assert(n == 4, "as many values as components");
  }
  template <typename U>
  explicit vec(vec<U, n> other) {
    for (int i = 0; i < n; i++) (*this)[i] = T(other[i]);
  }

  T& operator[](int i) {
    if (unsigned(i) >= unsigned(n)) emulator::fault("component %d of a vector of %d", i, n);
    return (&this->x)[i];
  }
  const T& operator[](int i) const { return const_cast<vec&>(*this)[i]; }
#define EMULATOR_COMPONENTWISE(op)                      \
  friend vec operator op(vec a, vec b) {                \
    for (int i = 0; i < n; i++) a[i] = T(a[i] op b[i]); \
    return a;                                           \
  }                                                     \
  vec& operator op## = (vec b) { return *this = *this op b; }
  EMULATOR_COMPONENTWISE(+)
  EMULATOR_COMPONENTWISE(-)
  EMULATOR_COMPONENTWISE(*)
  EMULATOR_COMPONENTWISE(/)
#undef EMULATOR_COMPONENTWISE
};

#define EMULATOR_VECTORS(T) \
  using T##2 = vec<T, 2>;   \
  using T##3 = vec<T, 3>;   \
  using T##4 = vec<T, 4>;
EMULATOR_VECTORS(float)
EMULATOR_VECTORS(half)
EMULATOR_VECTORS(bfloat)
EMULATOR_VECTORS(int)
EMULATOR_VECTORS(uint)
#undef EMULATOR_VECTORS

using std::numeric_limits;

}  // namespace metal

template <int e>
struct std::numeric_limits<metal::small_float<e>> {
  using type = metal::small_float<e>;
  static constexpr uint16_t kInfinity = uint16_t(((1 << e) - 1) << type::kMantissa);
  static constexpr type infinity() { return type::of_bits(kInfinity); }
  static constexpr type max() { return type::of_bits(kInfinity - 1); }
  static constexpr type lowest() { return type::of_bits(uint16_t(0x8000 | (kInfinity - 1))); }
  static constexpr type quiet_NaN() {
    return type::of_bits(uint16_t(kInfinity | 1 << (type::kMantissa - 1)));
  }
};
