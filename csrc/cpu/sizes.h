// Sizes that no memory has, which dispatchers refuse before they compute with them.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace dove::cpu {

// Whether none of these sizes is negative and no product of them is above 2^46, so that sums and multiples of it, in
// bytes, do not overflow. A size of 0 does not make the others any smaller.
inline bool countable(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size < 0) return false;
    if (size > 1 && (__builtin_mul_overflow(product, size, &product) || product > int64_t{1} << 46)) return false;
  }
  return true;
}

}  // namespace dove::cpu
