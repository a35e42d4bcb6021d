#pragma once

#include <cstddef>
#include <string>

namespace simt_selftest {
void run(const std::string& what, float* a, float* b, float* c);
// float32 to bfloat16 (1) or float16 (2), and back (-1, -2).
void convert(int kind, const void* from, void* to, size_t count);
}  // namespace simt_selftest
