// The entry points of namespace dove::cpu under libFuzzer, ASAN and UBSAN: an argument struct is made of bytes, and
// each call must be refused or give the right result. tests/fuzz/kernels.py builds and runs it.
//
// Every buffer has exactly the bytes that the contract names, in the heap, so that one byte beyond is noticed; gaps
// between rows and everything that is to be written are NaN before. Sizes are small, or nonsense (negative, or
// products without end), which has to be refused. Wrong dtypes, lengths, indices, strides of any order, and too small
// workspaces come in between.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../../csrc/cpu/isa.h"
#include "dove/attention.h"
#include "dove/conv.h"
#include "dove/eos.h"
#include "dove/group_norm.h"
#include "dove/pack.h"

namespace {

using dove::DType;
using dove::Status;
namespace cpu = dove::cpu;

const float kNaN = std::numeric_limits<float>::quiet_NaN();

[[noreturn]] void fail(const char* op, const char* why, double a = 0, double b = 0) {
  std::fprintf(stderr, "%s: %s (%g, %g)\n", op, why, a, b);
  std::abort();
}

// --- The input ------------------------------------------------------------------------------------------------------

struct Bytes {
  const uint8_t* next;
  size_t left;
  uint32_t state;        // of values, of which there are more than bytes
  bool nonsense{false};  // whether a size is none, so that the call must be refused
  bool flawed{false};    // likewise of something else

  uint8_t byte() {
    if (left == 0) return 0;
    --left;
    return *next++;
  }
  bool seldom() { return byte() >= 236; }
  int64_t upto(int64_t most) { return byte() % (most + 1); }
  // A size, seldom one that is none.
  int64_t size(int64_t least, int64_t most) {
    if (!seldom()) return least + upto(most - least);
    static const int64_t kWild[] = {-1, INT64_MIN, INT64_MAX, int64_t{1} << 62, -(int64_t{1} << 33)};
    nonsense = true;
    return kWild[byte() % 5];
  }
  float value() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(state)) / 2147483648.0f;
  }
  int threads() { return static_cast<int>(upto(3)) - (seldom() ? 2 : 0); }
  DType dtype() {
    const uint8_t kind = byte();
    if (kind < 120) return DType::kFloat32;
    if (kind < 236) return DType::kBFloat16;
    flawed = true;
    return kind < 246 ? DType::kFloat16 : static_cast<DType>(kind < 251 ? -1 : 3);
  }
  int64_t workspace(int64_t wanted) {
    if (!seldom() || wanted == 0) return wanted;
    flawed = true;
    return byte() % 2 ? wanted - 1 : -1;
  }
};

// --- Buffers --------------------------------------------------------------------------------------------------------

uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct Memory {
  std::unique_ptr<void, void (*)(void*)> held{nullptr, std::free};
  int64_t bytes;

  explicit Memory(int64_t size, size_t alignment = 64) : bytes(size) {
    void* made = nullptr;
    if (posix_memalign(&made, alignment, static_cast<size_t>(size > 0 ? size : 1)) != 0) std::abort();
    held.reset(made);
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(held.get());
  }
};

// Values of a dtype in rows: up to four dimensions, the last is dense.
struct Tensor {
  int64_t shape[4];
  int64_t stride[4];
  DType dtype;
  int64_t offset;
  Memory memory;

  int64_t element() const { return dtype == DType::kFloat32 ? 4 : 2; }
  void* data() const { return memory.as<char>() + offset * element(); }
  int64_t at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return offset + a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3];
  }
  float get(int64_t a, int64_t b, int64_t c, int64_t d) const {
    const int64_t i = at(a, b, c, d);
    return dtype == DType::kFloat32 ? memory.as<float>()[i] : from_bf16(memory.as<uint16_t>()[i]);
  }
  void set(int64_t i, float x) const {
    if (dtype == DType::kFloat32) {
      memory.as<float>()[i] = x;
    } else {
      memory.as<uint16_t>()[i] = to_bf16(x);
    }
  }
};

// With gaps and in any order of its outer dimensions if `free`; NaN, but for its values if `filled`.
Tensor tensor(Bytes* in, DType dtype, std::vector<int64_t> shape, bool free, bool filled) {
  Tensor t{{1, 1, 1, 1}, {0, 0, 0, 1}, dtype, 0, Memory(0)};
  const size_t first = 4 - shape.size();
  for (size_t i = 0; i < shape.size(); ++i) t.shape[first + i] = shape[i];
  int order[3] = {2, 1, 0};
  if (free && in->seldom()) std::swap(order[0], order[1]);
  if (free && in->seldom()) std::swap(order[1], order[2]);
  int64_t span = t.shape[3];
  for (const int dimension : order) {
    t.stride[dimension] = span + (free ? in->upto(3) : 0);
    span = t.stride[dimension] * (t.shape[dimension] > 0 ? t.shape[dimension] : 1);
  }
  if (free) t.offset = in->upto(2);
  int64_t end = t.offset;
  if (t.shape[0] * t.shape[1] * t.shape[2] * t.shape[3] > 0) {
    end = t.at(t.shape[0] - 1, t.shape[1] - 1, t.shape[2] - 1, t.shape[3] - 1) + 1;
  }
  t.memory = Memory(end * t.element());
  for (int64_t i = 0; i < end; ++i) t.set(i, kNaN);
  if (!filled) return t;
  for (int64_t a = 0; a < t.shape[0]; ++a) {
    for (int64_t b = 0; b < t.shape[1]; ++b) {
      for (int64_t c = 0; c < t.shape[2]; ++c) {
        for (int64_t d = 0; d < t.shape[3]; ++d) t.set(t.at(a, b, c, d), in->value());
      }
    }
  }
  return t;
}

Tensor floats(Bytes* in, std::vector<int64_t> shape, bool filled) {
  return tensor(in, DType::kFloat32, std::move(shape), false, filled);
}

// Starts of `batch` sequences of at most `most` rows each, seldom of lengths that are none. Exactly as large as it is.
std::vector<int32_t> starts(Bytes* in, int64_t batch, int64_t most) {
  std::vector<int32_t> made{0};
  for (int64_t b = 0; b < batch; ++b) made.push_back(made.back() + static_cast<int32_t>(in->upto(most)));
  return made;
}

void spoil(Bytes* in, std::vector<int32_t>* lengths, int64_t most, bool sequence) {
  if (!in->seldom() || lengths->empty()) return;
  static const int32_t kWild[] = {-1, INT32_MIN, INT32_MAX, 1 << 30};
  in->flawed = true;
  const int32_t wild = kWild[in->byte() % 4];
  const size_t place = in->byte() % lengths->size();
  if (!sequence) {
    (*lengths)[place] = wild;
  } else if (place == 0) {
    (*lengths)[0] = 1 + static_cast<int32_t>(most);
  } else {
    (*lengths)[place] = wild;
  }
}

// A size of a buffer for a call whose sizes are nonsense: it may not be touched, but is there.
int64_t sane(int64_t size) { return size < 0 || size > 512 ? 1 : size; }

void close(const char* op, double found, double expected, double bound) {
  if (!(std::fabs(found - expected) <= bound)) fail(op, "is wrong", found, expected);
}

// Whether a call went as it had to; false where it was refused.
bool passed(const char* op, const Bytes& in, Status status) {
  if (dove::status_message(status) == nullptr) fail(op, "a status has no message", static_cast<int>(status));
  if (status == Status::kOk && (in.nonsense || in.flawed)) fail(op, "was not refused");
  return status == Status::kOk;
}

// Of what is valid but for threads below 1, which some take for one.
void must_pass(const char* op, const Bytes& in, Status status, int threads) {
  if (!in.nonsense && !in.flawed && threads >= 1 && status != Status::kOk) {
    fail(op, "was refused", static_cast<int>(status));
  }
}

double tolerance(DType dtype, double scale) { return scale * (dtype == DType::kFloat32 ? 1e-4 : 2e-2); }

// --- pack, unpack, zero_tail ----------------------------------------------------------------------------------------

void fuzz_pack(Bytes* in, bool forward) {
  const char* op = forward ? "pack" : "unpack";
  const int64_t batch = in->size(0, 4), most = in->size(0, 9), width = in->size(0, 40);
  const int64_t b = sane(batch), k = sane(most), w = sane(width);
  const DType dtype = in->byte() % 2 ? DType::kFloat32 : DType::kBFloat16;
  std::vector<int32_t> cu = starts(in, b, k);
  const int64_t rows = cu.back();
  spoil(in, &cu, k, true);
  const Tensor padded = tensor(in, dtype, {b, k, w}, forward, forward);
  const Tensor packed = tensor(in, dtype, {rows, w}, false, !forward);
  dove::PackArgs args{};
  args.source = forward ? padded.data() : packed.data();
  args.target = forward ? packed.data() : padded.data();
  args.cu_seqlens = cu.data();
  args.batch = batch;
  args.max_len = most;
  args.width = width;
  args.element_bytes = padded.element();
  if (in->seldom()) {
    in->flawed = true;
    args.element_bytes = static_cast<int8_t>(in->byte()) * 2 + 1;
  }
  args.padded_stride_b = padded.stride[1];
  args.padded_stride_k = padded.stride[2];
  args.threads = in->threads();
  const Status status = forward ? cpu::pack(args) : cpu::unpack(args);
  must_pass(op, *in, status, args.threads);
  if (!passed(op, *in, status)) return;
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t d = 0; d < w; ++d) {
        const bool there = j < cu[i + 1] - cu[i];
        const float inside = there ? packed.get(0, 0, cu[i] + j, d) : 0.0f;
        if (forward && !there) continue;
        if (!(padded.get(0, i, j, d) == inside)) fail(op, "is wrong", padded.get(0, i, j, d), inside);
      }
    }
  }
}

void fuzz_zero_tail(Bytes* in) {
  const int64_t batch = in->size(0, 4), most = in->size(0, 9), width = in->size(0, 40);
  const int64_t b = sane(batch), k = sane(most), w = sane(width);
  const DType dtype = in->byte() % 2 ? DType::kFloat32 : DType::kBFloat16;
  std::vector<int32_t> lengths;
  for (int64_t i = 0; i < b; ++i) lengths.push_back(static_cast<int32_t>(in->upto(k)));
  spoil(in, &lengths, k, false);
  const Tensor source = tensor(in, dtype, {b, k, w}, true, true), target = tensor(in, dtype, {b, k, w}, false, false);
  dove::ZeroTailArgs args{};
  args.source = source.data();
  args.target = target.data();
  args.lengths = lengths.data();
  args.batch = batch;
  args.max_len = most;
  args.width = width;
  args.element_bytes = source.element();
  args.source_stride_b = source.stride[1];
  args.source_stride_k = source.stride[2];
  args.threads = in->threads();
  const Status status = cpu::zero_tail(args);
  must_pass("zero_tail", *in, status, args.threads);
  if (!passed("zero_tail", *in, status)) return;
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t d = 0; d < w; ++d) {
        const float expected = j < lengths[i] ? source.get(0, i, j, d) : 0.0f;
        if (!(target.get(0, i, j, d) == expected)) fail("zero_tail", "is wrong", target.get(0, i, j, d), expected);
      }
    }
  }
}

// --- eos_scan, eos_probability --------------------------------------------------------------------------------------

void fuzz_eos(Bytes* in, bool scan) {
  const char* op = scan ? "eos_scan" : "eos_probability";
  const int64_t batch = in->size(0, 3), positions = in->size(0, 40), width = in->size(0, 33);
  const int64_t vocabulary = in->byte() < 8 ? in->size(770, 900) : in->size(1, 60);
  const int64_t b = sane(batch), n = sane(positions), w = sane(width), v = vocabulary > 900 ? 1 : sane(vocabulary);
  const int64_t rows = vocabulary > 0 && vocabulary <= 900 ? vocabulary : v;
  const DType dtype = in->dtype();
  const Tensor hidden = tensor(in, dtype, {b, n, w}, true, true), weight = tensor(in, dtype, {rows, w}, true, true);
  const Tensor bias = floats(in, {rows}, true), maximum = floats(in, {b, n}, false), sum = floats(in, {b, n}, false);
  const Tensor probability = floats(in, {b, n}, false);
  std::vector<int32_t> first(static_cast<size_t>(b), -7), witness;
  dove::EosArgs args{};
  args.hidden = hidden.data();
  args.weight = weight.data();
  args.bias = in->byte() % 2 ? static_cast<const float*>(bias.data()) : nullptr;
  for (int64_t i = in->upto(4); i > 0; --i) witness.push_back(static_cast<int32_t>(in->upto(rows - 1) % rows));
  spoil(in, &witness, rows, false);
  args.witness = witness.empty() ? nullptr : witness.data();
  args.witness_count = static_cast<int64_t>(witness.size());
  args.first = first.data();
  args.probability = static_cast<float*>(probability.data());
  args.maximum = static_cast<float*>(maximum.data());
  args.sum = static_cast<float*>(sum.data());
  args.batch = batch;
  args.positions = positions;
  args.width = width;
  args.vocabulary = vocabulary;
  args.hidden_stride_image = hidden.stride[1];
  args.hidden_stride_position = hidden.stride[2];
  args.weight_stride_row = weight.stride[2];
  args.eos_id = in->upto(rows - 1) % rows;
  if (in->seldom()) {
    in->flawed = true;
    args.eos_id = in->byte() % 2 ? -1 : vocabulary;
  }
  args.first_round = in->upto(20) - (in->seldom() ? 9 : 0);
  args.dtype = dtype;
  args.threads = in->threads();
  const int64_t wanted = cpu::eos_workspace(args);
  const Memory workspace(in->nonsense ? 64 : in->workspace(wanted));
  args.workspace = workspace.as<void>();
  args.workspace_bytes = workspace.bytes;
  const Status status = scan ? cpu::eos_scan(args) : cpu::eos_probability(args);
  must_pass(op, *in, status, args.threads);
  if (!passed(op, *in, status)) return;
  for (int64_t i = 0; i < b; ++i) {
    int64_t low = -1, high = -1;  // the first position that may end the sequence, and the first that must
    for (int64_t m = 0; m < n; ++m) {
      std::vector<double> logits;
      double largest = -1e300, others = -1e300, total = 0;
      for (int64_t r = 0; r < rows; ++r) {
        double logit = args.bias != nullptr ? bias.get(0, 0, 0, r) : 0.0;
        for (int64_t d = 0; d < w; ++d) logit += double{hidden.get(0, i, m, d)} * weight.get(0, 0, r, d);
        logits.push_back(logit);
        largest = std::fmax(largest, logit);
        if (r != args.eos_id) others = std::fmax(others, logit);
      }
      const double eos = logits[static_cast<size_t>(args.eos_id)];
      if (scan) {
        if (low < 0 && eos >= others - 1e-4) low = m;
        if (high < 0 && eos > others + 1e-4) high = m;
        continue;
      }
      for (const double logit : logits) total += std::exp(logit - largest);
      close(op, probability.get(0, 0, i, m), std::exp(eos - largest) / total, 1e-4);
      close(op, maximum.get(0, 0, i, m), largest, 1e-3);
      close(op, sum.get(0, 0, i, m), total, 1e-3 * total);
    }
    if (!scan) continue;
    low = low < 0 ? n : low;
    high = high < 0 ? n : high;
    if (first[i] < low || first[i] > high) fail(op, "is wrong", first[i], static_cast<double>(low));
  }
}

// --- group_norm -----------------------------------------------------------------------------------------------------

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <class Args>
void shape_norm(Bytes* in, Args* args, int64_t* b, int64_t* n, int64_t* c, int64_t* g) {
  args->batch = in->size(0, 3);
  args->pixels = in->size(1, 60);
  args->groups = in->size(1, 4);
  *g = sane(args->groups);
  const int64_t each = in->size(1, 20);
  args->channels = each > 0 && each <= 20 && args->groups > 0 && args->groups <= 4 ? each * args->groups : each;
  *b = sane(args->batch);
  *n = sane(args->pixels);
  *c = sane(args->channels);
  if (*b == 0 || *n == 0) *n = *n == 0 ? 1 : *n;
  if (in->seldom()) {
    in->flawed = true;
    args->groups = in->byte() % 2 ? 0 : *c + 1;
  }
  if (in->seldom()) {
    in->flawed = true;
    args->parameters = DType::kBFloat16;
  }
  if (in->seldom()) {
    in->flawed = true;
    args->pixels = 0;
  }
  if (in->seldom()) {
    in->flawed = true;
    args->channels = 0;
  }
  args->silu = in->byte() % 2 != 0;
  args->threads = in->threads();
}

void fuzz_group_norm(Bytes* in) {
  dove::GroupNormArgs args{};
  int64_t b, n, c, g;
  shape_norm(in, &args, &b, &n, &c, &g);
  args.dtype = in->dtype();
  const Tensor x = tensor(in, args.dtype, {b, n, c}, true, true);
  const Tensor residual = tensor(in, args.dtype, {b, n, c}, true, true);
  const Tensor normed = tensor(in, args.dtype, {b, n, c}, false, false), mean = floats(in, {b, g}, false);
  const Tensor summed = tensor(in, args.dtype, {b, n, c}, false, false), rstd = floats(in, {b, g}, false);
  const Tensor weight = floats(in, {c}, true), bias = floats(in, {c}, true), x_bias = floats(in, {c}, true);
  const uint8_t which = in->byte();
  args.x = x.data();
  if (which & 1) args.residual = residual.data(), args.summed = summed.data();
  if (which & 2) args.x_bias = x_bias.data();
  if (which & 12) args.normed = normed.data();
  args.weight = weight.data();
  args.bias = bias.data();
  args.mean = static_cast<float*>(mean.data());
  args.rstd = static_cast<float*>(rstd.data());
  args.x_stride_image = x.stride[1];
  args.x_stride_pixel = x.stride[2];
  args.residual_stride_image = residual.stride[1];
  args.residual_stride_pixel = residual.stride[2];
  args.eps = 1e-2;
  const int64_t wanted = cpu::group_norm_workspace(args);
  const Memory workspace(in->nonsense ? 64 : in->workspace(wanted));
  args.workspace = workspace.as<void>();
  args.workspace_bytes = workspace.bytes;
  const Status status = cpu::group_norm(args);
  must_pass("group_norm", *in, status, args.threads);
  if (!passed("group_norm", *in, status)) return;
  const int64_t each = c / g;
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t group = 0; group < g; ++group) {
      std::vector<double> values;
      for (int64_t p = 0; p < n; ++p) {
        for (int64_t k = group * each; k < (group + 1) * each; ++k) {
          double value = x.get(0, i, p, k) + (which & 2 ? x_bias.get(0, 0, 0, k) : 0.0f);
          if (which & 1) {
            value += residual.get(0, i, p, k);
            close("group_norm's sum", summed.get(0, i, p, k), value, tolerance(args.dtype, 4));
            value = summed.get(0, i, p, k);
          }
          values.push_back(value);
        }
      }
      double middle = 0, squares = 0;
      for (const double value : values) middle += value / static_cast<double>(values.size());
      for (const double value : values) {
        squares += (value - middle) * (value - middle) / static_cast<double>(values.size());
      }
      const double scale = 1 / std::sqrt(squares + args.eps);
      close("group_norm's mean", mean.get(0, 0, i, group), middle, 1e-4);
      close("group_norm's rstd", rstd.get(0, 0, i, group), scale, 1e-3 * scale);
      if (args.normed == nullptr) continue;
      size_t next = 0;
      for (int64_t p = 0; p < n; ++p) {
        for (int64_t k = group * each; k < (group + 1) * each; ++k) {
          double y = (values[next++] - middle) * scale * weight.get(0, 0, 0, k) + bias.get(0, 0, 0, k);
          if (args.silu) y *= sigmoid(y);
          close("group_norm", normed.get(0, i, p, k), y, tolerance(args.dtype, 10));
        }
      }
    }
  }
}

void fuzz_group_norm_backward(Bytes* in) {
  const char* op = "group_norm_backward";
  dove::GroupNormGradArgs args{};
  int64_t b, n, c, g;
  shape_norm(in, &args, &b, &n, &c, &g);
  args.dtype = in->dtype();
  const Tensor grad = tensor(in, args.dtype, {b, n, c}, true, true);
  const Tensor summed = tensor(in, args.dtype, {b, n, c}, true, true);
  const Tensor beside = tensor(in, args.dtype, {b, n, c}, true, true);
  const Tensor grad_x = tensor(in, args.dtype, {b, n, c}, false, false);
  const Tensor weight = floats(in, {c}, true), bias = floats(in, {c}, true), x_bias = floats(in, {c}, true);
  const Tensor mean = floats(in, {b, g}, true), rstd = floats(in, {b, g}, true);
  const Tensor grads[3] = {floats(in, {c}, false), floats(in, {c}, false), floats(in, {c}, false)};
  const uint8_t which = in->byte();
  args.grad = grad.data();
  args.summed = summed.data();
  if (which & 1) args.grad_summed = beside.data();
  if (which & 2) args.x_bias = x_bias.data();
  if (which & 4) args.grad_x_bias = static_cast<float*>(grads[2].data());
  args.weight = weight.data();
  args.bias = bias.data();
  args.mean = static_cast<const float*>(mean.data());
  args.rstd = static_cast<const float*>(rstd.data());
  args.grad_x = grad_x.data();
  args.grad_weight = static_cast<float*>(grads[0].data());
  args.grad_bias = static_cast<float*>(grads[1].data());
  args.grad_stride_image = grad.stride[1];
  args.grad_stride_pixel = grad.stride[2];
  args.summed_stride_image = summed.stride[1];
  args.summed_stride_pixel = summed.stride[2];
  args.grad_summed_stride_image = beside.stride[1];
  args.grad_summed_stride_pixel = beside.stride[2];
  const int64_t wanted = cpu::group_norm_backward_workspace(args);
  const Memory workspace(in->nonsense ? 64 : in->workspace(wanted));
  args.workspace = workspace.as<void>();
  args.workspace_bytes = workspace.bytes;
  const Status status = cpu::group_norm_backward(args);
  must_pass(op, *in, status, args.threads);
  if (!passed(op, *in, status)) return;
  const int64_t each = c / g;
  std::vector<double> expected[3];
  for (std::vector<double>& sums : expected) sums.assign(static_cast<size_t>(c), 0.0);
  for (int64_t i = 0; i < b; ++i) {
    for (int64_t group = 0; group < g; ++group) {
      const double middle = mean.get(0, 0, i, group), scale = rstd.get(0, 0, i, group);
      double sum = 0, sum_z = 0;
      for (int pass = 0; pass < 2; ++pass) {
        for (int64_t p = 0; p < n; ++p) {
          for (int64_t k = group * each; k < (group + 1) * each; ++k) {
            const double w = weight.get(0, 0, 0, k);
            const double z =
                (summed.get(0, i, p, k) + (which & 2 ? double{x_bias.get(0, 0, 0, k)} : 0.0) - middle) * scale;
            const double y = z * w + bias.get(0, 0, 0, k), s = sigmoid(y);
            const double dy = grad.get(0, i, p, k) * (args.silu ? s * (1 + y * (1 - s)) : 1.0);
            if (pass == 0) {
              sum += dy * w;
              sum_z += dy * w * z;
              expected[0][static_cast<size_t>(k)] += dy * z;
              expected[1][static_cast<size_t>(k)] += dy;
              continue;
            }
            const double count = static_cast<double>(n * each);
            const double dx =
                scale * (dy * w - sum / count - z * sum_z / count) + (which & 1 ? double{beside.get(0, i, p, k)} : 0.0);
            expected[2][static_cast<size_t>(k)] += dx;
            close(op, grad_x.get(0, i, p, k), dx, tolerance(args.dtype, 10));
          }
        }
      }
    }
  }
  for (int which_grad = 0; which_grad < (which & 4 ? 3 : 2); ++which_grad) {
    for (int64_t k = 0; k < c; ++k) {
      close(op, grads[which_grad].get(0, 0, 0, k), expected[which_grad][static_cast<size_t>(k)], 5e-2);
    }
  }
}

// --- conv3x3 --------------------------------------------------------------------------------------------------------

void fuzz_conv(Bytes* in) {
  dove::Conv3x3PackArgs pack{};
  dove::Conv3x3Args args{};
  const auto channels = [&] {
    if (!in->seldom()) return dove::kConv3x3Channels * (1 + in->upto(1));
    in->flawed = true;
    static const int64_t kWrong[] = {0, -32, 31, 33, INT64_MIN};
    return kWrong[in->byte() % 5];
  };
  args.channels_in = pack.channels_in = channels();
  args.channels_out = pack.channels_out = channels();
  const bool served = !in->flawed;
  const int64_t ci = served ? args.channels_in : 32, co = served ? args.channels_out : 32;
  const Tensor weight = floats(in, {co, ci, 9}, true);
  const Memory packed(served ? 4 * cpu::conv3x3_packed_values(ci, co) : 64);
  pack.weight = static_cast<const float*>(weight.data());
  pack.packed = packed.as<float>();
  pack.threads = in->threads();
  if ((cpu::conv3x3_pack(pack) == Status::kOk) != served) fail("conv3x3_pack", "was refused, or not", served);
  args.batch = in->size(0, 2);
  args.height = in->size(1, 21);
  args.width = in->size(1, 21);
  args.dtype = in->dtype();
  const int64_t b = sane(args.batch), h = sane(args.height), w = sane(args.width);
  const int64_t g = int64_t{1} << in->upto(5);
  const Tensor x = tensor(in, args.dtype, {b, h, w, ci}, true, true);
  const Tensor residual = tensor(in, args.dtype, {b, h, w, co}, false, true);
  const Tensor out = tensor(in, args.dtype, {b, h, w, co}, false, false), bias = floats(in, {co}, true);
  const Tensor mean = floats(in, {b, g}, true), rstd = floats(in, {b, g}, true);
  const Tensor norm_weight = floats(in, {ci}, true), norm_bias = floats(in, {ci}, true);
  const uint8_t which = in->byte();
  args.x = x.data();
  args.groups = g;
  if (which & 1) {
    args.mean = static_cast<const float*>(mean.data());
    args.rstd = static_cast<const float*>(rstd.data());
    args.norm_weight = static_cast<const float*>(norm_weight.data());
    args.norm_bias = static_cast<const float*>(norm_bias.data());
    args.silu = (which & 2) != 0;
    if (in->seldom()) {
      in->flawed = true;
      args.groups = in->byte() % 2 ? -1 : ci + 1;
    }
  }
  if (which & 4) args.residual = residual.data();
  args.packed = packed.as<float>();
  args.bias = static_cast<const float*>(bias.data());
  args.out = out.data();
  args.x_stride_image = x.stride[0];
  args.x_stride_row = x.stride[1];
  args.x_stride_pixel = x.stride[2];
  args.threads = in->threads();
  const int64_t wanted = cpu::conv3x3_workspace(args);
  const Memory workspace(in->nonsense || !served ? 64 : in->workspace(wanted));
  args.workspace = workspace.as<void>();
  args.workspace_bytes = workspace.bytes;
  const Status status = cpu::conv3x3(args);
  must_pass("conv3x3", *in, status, args.threads);
  if (!passed("conv3x3", *in, status)) return;
  const auto normed = [&](int64_t i, int64_t r, int64_t q, int64_t k) -> double {
    if (r < 0 || q < 0 || r >= h || q >= w) return 0;
    const double value = x.get(i, r, q, k);
    if (args.mean == nullptr) return value;
    const int64_t group = k / (ci / g);
    const double y = (value - mean.get(0, 0, i, group)) * rstd.get(0, 0, i, group) * norm_weight.get(0, 0, 0, k) +
                     norm_bias.get(0, 0, 0, k);
    return args.silu ? y * sigmoid(y) : y;
  };
  for (int trial = 0; trial < 24 && b > 0; ++trial) {  // all of them would take far longer than the convolution
    const int64_t i = in->upto(b - 1), r = in->upto(h - 1), q = in->upto(w - 1), k = in->upto(co - 1);
    double sum = bias.get(0, 0, 0, k) + (args.residual != nullptr ? residual.get(i, r, q, k) : 0.0f);
    for (int64_t tap = 0; tap < 9; ++tap) {
      for (int64_t channel = 0; channel < ci; ++channel) {
        sum += normed(i, r + tap / 3 - 1, q + tap % 3 - 1, channel) * weight.get(0, k, channel, tap);
      }
    }
    close("conv3x3", out.get(i, r, q, k), sum, tolerance(args.dtype, 20));
  }
  for (int64_t i = 0; i < b * h * w * co; ++i) {
    const float value = args.dtype == DType::kFloat32 ? static_cast<const float*>(out.data())[i]
                                                      : from_bf16(static_cast<const uint16_t*>(out.data())[i]);
    if (!std::isfinite(value)) fail("conv3x3", "left a value unwritten", static_cast<double>(i));
  }
}

// --- attention ------------------------------------------------------------------------------------------------------

struct Sequence {
  int64_t start_q, start_k, queries, keys, limit;
};

void fuzz_attention(Bytes* in, bool backward) {
  const char* op = backward ? "attention_backward" : "attention";
  dove::AttentionArgs args{};
  args.batch = in->size(0, 3);
  args.heads = in->size(0, 3);
  args.len_q = in->size(0, 40);
  args.len_k = in->size(0, 40);
  const int64_t batch = sane(args.batch), heads = sane(args.heads);
  int64_t len_q = sane(args.len_q), len_k = sane(args.len_k);
  args.dtype = in->dtype();
  args.head_dim = 16 * (1 + in->upto(3));
  const int64_t dim = args.head_dim;
  if (in->seldom()) {
    in->flawed = true;
    static const int64_t kWrong[] = {0, -16, 15, 24, 272, INT64_MAX};
    args.head_dim = kWrong[in->byte() % 6];
  }
  const bool packed = in->byte() % 2 != 0;
  std::vector<int32_t> cu_q, cu_k, limits;
  if (packed) {
    cu_q = starts(in, batch, len_q);
    cu_k = starts(in, batch, len_k);
    args.len_q = in->nonsense ? args.len_q : (len_q = cu_q.back());
    args.len_k = in->nonsense ? args.len_k : (len_k = cu_k.back());
  }
  args.prefix = in->byte() % 3 == 0 ? 1000 : in->upto(20);
  if (in->seldom()) args.prefix = INT64_MAX;
  if (in->seldom()) {
    in->flawed = true;
    args.prefix = in->byte() % 2 ? -1 : INT64_MIN;
  }
  const auto sequence = [&](int64_t b) {
    Sequence s{0, 0, len_q, len_k, len_k};
    if (packed) s = {cu_q[b], cu_k[b], cu_q[b + 1] - cu_q[b], cu_k[b + 1] - cu_k[b], cu_k[b + 1] - cu_k[b]};
    if (!limits.empty()) s.limit = limits[b];
    return s;
  };
  if (!packed && in->byte() % 2 != 0) {
    for (int64_t b = 0; b < batch; ++b) limits.push_back(static_cast<int32_t>(in->upto(len_k)));
  }
  int64_t longest = 1;
  bool behind = false;  // a query stands in front of the first position
  for (int64_t b = 0; b < batch; ++b) {
    const Sequence s = sequence(b);
    longest = std::max({longest, s.queries, s.keys});
    behind = behind || (s.queries > s.keys && args.prefix < s.keys);
  }
  args.rotary_dim = 2 * in->upto(dim / 2);
  args.rotary_rows = longest + in->upto(3);
  const Tensor angles = floats(in, {args.rotary_rows, args.rotary_dim}, true);
  const bool rotated = in->byte() % 2 != 0;
  if (rotated) {
    args.rotary = static_cast<const float*>(angles.data());
    if (behind) in->flawed = true;
    if (in->seldom()) {
      in->flawed = true;
      args.rotary_dim = in->byte() % 2 ? dim + 2 : 3;
    }
  }
  args.scale = in->value() / 4 + 0.5f;
  if (in->seldom()) {
    in->flawed = true;
    args.scale = in->byte() % 2 ? kNaN : -1.0f;
  }
  const std::vector<int32_t> good_q = cu_q, good_k = cu_k, good_limits = limits;
  spoil(in, &cu_q, len_q, true);
  spoil(in, &cu_k, len_k, true);
  spoil(in, &limits, len_k, false);
  if (in->flawed && !in->nonsense && packed && in->byte() < 20) args.len_q += 1;
  args.cu_seqlens_q = packed ? cu_q.data() : nullptr;
  args.cu_seqlens_k = packed ? cu_k.data() : nullptr;
  args.kv_lens = limits.empty() ? nullptr : limits.data();

  const int64_t outer = packed ? 1 : batch;
  const auto rows = [&](int64_t positions, bool filled) {
    return tensor(in, args.dtype, {outer, positions, heads, dim}, true, filled);
  };
  const auto as_rows = [&](const Tensor& t) {
    return dove::AttentionRows{t.data(), packed ? 0 : t.stride[0], t.stride[1], t.stride[2]};
  };
  const Tensor q = rows(len_q, true), k = rows(len_k, true), v = rows(len_k, true), out = rows(len_q, false);
  const Tensor grad_out = rows(len_q, true), grad_q = rows(len_q, false), grad_k = rows(len_k, false);
  const Tensor grad_v = rows(len_k, false), lse = floats(in, {outer * heads * len_q}, false);
  args.q = as_rows(q), args.k = as_rows(k), args.v = as_rows(v), args.out = as_rows(out);
  args.grad_out = as_rows(grad_out), args.grad_q = as_rows(grad_q);
  args.grad_k = as_rows(grad_k), args.grad_v = as_rows(grad_v);
  args.lse = static_cast<float*>(lse.data());
  args.threads = in->threads();
  if (args.threads < 1) in->flawed = true;
  const auto run = [&](bool second) {
    const int64_t wanted = second ? cpu::attention_backward_workspace(args) : cpu::attention_workspace(args);
    const Memory workspace(in->nonsense || in->flawed ? 64 : in->workspace(wanted));
    args.workspace = workspace.as<void>();
    args.workspace_bytes = workspace.bytes;
    const Status status = second ? cpu::attention_backward(args) : cpu::attention(args);
    must_pass(op, *in, status, args.threads);
    return passed(op, *in, status);
  };
  const bool went = run(false);
  if (!went && !backward) return;
  if (!went) {  // its backward must refuse it, too
    run(true);
    return;
  }
  limits = good_limits;
  const auto turned = [&](const Tensor& t, int64_t b, int64_t row, int64_t position, int64_t head) {
    std::vector<double> x;
    for (int64_t d = 0; d < dim; ++d) x.push_back(t.get(packed ? 0 : b, row, head, d));
    const std::vector<double> before = x;
    const int64_t half = args.rotary_dim / 2;
    for (int64_t d = 0; rotated && d < half; ++d) {
      const double c = angles.get(0, 0, position, d), s = angles.get(0, 0, position, d + half);
      x[d] = before[d] * c - before[d + half] * s;
      x[d + half] = before[d + half] * c + before[d] * s;
    }
    return x;
  };
  for (int64_t b = 0; b < batch; ++b) {
    const Sequence s = sequence(b);
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = 0; i < s.queries; ++i) {
        int64_t offset = s.keys - s.queries;
        if (args.prefix >= s.keys && offset < 0) offset = 0;
        const int64_t p = offset + i;
        const std::vector<double> query = turned(q, b, s.start_q + i, p, head);
        std::vector<double> scores, sum(static_cast<size_t>(dim), 0.0);
        double largest = -1e300, total = 0;
        std::vector<int64_t> seen;
        for (int64_t j = 0; j < s.keys && j < s.limit; ++j) {
          if (j > p && j >= args.prefix) continue;
          const std::vector<double> key = turned(k, b, s.start_k + j, j, head);
          double score = 0;
          for (int64_t d = 0; d < dim; ++d) score += query[d] * key[d];
          scores.push_back(score * args.scale);
          largest = std::fmax(largest, scores.back());
          seen.push_back(j);
        }
        for (size_t j = 0; j < seen.size(); ++j) {
          const double weight = std::exp(scores[j] - largest);
          total += weight;
          for (int64_t d = 0; d < dim; ++d) sum[d] += weight * v.get(packed ? 0 : b, s.start_k + seen[j], head, d);
        }
        for (int64_t d = 0; d < dim; ++d) {
          const double expected = seen.empty() ? 0 : sum[d] / total;
          close(op, out.get(packed ? 0 : b, s.start_q + i, head, d), expected, tolerance(args.dtype, 5));
        }
      }
    }
  }
  if (!backward || !run(true)) return;
  // With the sums of all rows: sum_i grad_out[i] . out[i] = sum_j grad_v[j] . v[j], head by head; and all is written.
  for (int64_t b = 0; b < outer; ++b) {
    for (int64_t head = 0; head < heads; ++head) {
      double left = 0, right = 0, size = 1;
      for (int64_t d = 0; d < dim; ++d) {
        for (int64_t i = 0; i < len_q; ++i) {
          left += double{grad_out.get(b, i, head, d)} * out.get(b, i, head, d);
          size += std::fabs(grad_out.get(b, i, head, d));
          if (!std::isfinite(grad_q.get(b, i, head, d))) fail(op, "grad_q is not finite");
        }
        for (int64_t j = 0; j < len_k; ++j) {
          right += double{grad_v.get(b, j, head, d)} * v.get(b, j, head, d);
          if (!std::isfinite(grad_k.get(b, j, head, d)) || !std::isfinite(grad_v.get(b, j, head, d))) {
            fail(op, "grad_k or grad_v is not finite");
          }
        }
      }
      close(op, right, left, tolerance(args.dtype, 1) * size);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes in{data, size, static_cast<uint32_t>(size) * 2654435761u};
  for (size_t i = 0; i < size; ++i) in.state = in.state * 31 + data[i];
  const auto isa = static_cast<cpu::Isa>(in.byte() % 3);
  if (!cpu::force_isa(isa)) cpu::force_isa(cpu::Isa::kPortable);
  switch (in.byte() % 10) {
    case 0:
      fuzz_pack(&in, true);
      break;
    case 1:
      fuzz_pack(&in, false);
      break;
    case 2:
      fuzz_zero_tail(&in);
      break;
    case 3:
      fuzz_eos(&in, true);
      break;
    case 4:
      fuzz_eos(&in, false);
      break;
    case 5:
      fuzz_group_norm(&in);
      break;
    case 6:
      fuzz_group_norm_backward(&in);
      break;
    case 7:
      fuzz_conv(&in);
      break;
    case 8:
      fuzz_attention(&in, false);
      break;
    case 9:
      fuzz_attention(&in, true);
      break;
  }
  return 0;
}
