// DOVE's encoder in a C++20 program, without Python: a package of `dove export MODEL --to aoti`, and this library.
// Header only; it needs libtorch and C++20, which the rest of the library does not.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "dove/common.h"
#include "dove/pack.h"

namespace dove {

// Tokens of B images, packed one image after the other.
struct Tokens {
  at::Tensor tokens;      // [T, D], in the model's dtype
  at::Tensor cu_seqlens;  // int32 [B + 1], from 0 to T: image b has the rows from cu_seqlens[b] to cu_seqlens[b + 1]
};

// A compiled encoder. Calls of one object must not overlap.
class Encoder {
 public:
  // `package`: encoder.aoti.pt2 of `dove export`. Throws what libtorch throws if it cannot be loaded.
  explicit Encoder(const std::string& package) : graph_(package) {}

  // `pixels`: float32 [B, 3, S, S] in [0, 1], S the model's (256). Throws std::invalid_argument for anything else than
  // a batch of square colour pictures of one or more, and std::runtime_error if packing fails.
  Tokens operator()(const at::Tensor& pixels) {
    if (pixels.dim() != 4 || pixels.size(0) < 1 || pixels.size(1) != 3 || pixels.size(2) != pixels.size(3) ||
        pixels.scalar_type() != at::kFloat || !pixels.device().is_cpu())
      throw std::invalid_argument("dove::Encoder: pixels must be float32 [B, 3, S, S] in [0, 1] on the CPU");
    const at::AutoDispatchBelowAutograd no_gradient;
    const std::vector<at::Tensor> made = graph_.run({pixels.contiguous()});
    const at::Tensor padded = made.at(0).contiguous(), lengths = made.at(1).contiguous();  // [B, K, D], int32 [B]
    at::Tensor ends = at::zeros({padded.size(0) + 1}, lengths.options());
    ends.slice(0, 1).copy_(lengths.cumsum(0, at::kInt));
    const at::Tensor packed = at::empty({ends.data_ptr<int32_t>()[padded.size(0)], padded.size(2)}, padded.options());
    PackArgs pack{};
    pack.source = padded.data_ptr(), pack.target = packed.data_ptr(), pack.cu_seqlens = ends.data_ptr<int32_t>();
    pack.batch = padded.size(0), pack.max_len = padded.size(1), pack.width = padded.size(2);
    pack.element_bytes = static_cast<int>(padded.element_size());
    pack.padded_stride_b = padded.stride(0), pack.padded_stride_k = padded.stride(1);
    pack.threads = at::get_num_threads();
    const Status status = cpu::pack(pack);
    if (status != Status::kOk) throw std::runtime_error(std::string("dove::Encoder: ") + status_message(status));
    return {packed, ends};
  }

 private:
  torch::inductor::AOTIModelPackageLoader graph_;
};

}  // namespace dove
