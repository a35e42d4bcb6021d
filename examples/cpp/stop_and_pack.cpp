// Finds where each image's tokens end and packs them, in plain C++: `stop_and_pack STATES PACKED` prints one length a
// line. STATES is what states.py writes; PACKED becomes float32 [sum of lengths, width], image after image.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "dove/eos.h"
#include "dove/pack.h"

namespace {

void check(dove::Status status) {
  if (status == dove::Status::kOk) return;
  std::fprintf(stderr, "stop_and_pack: %s\n", dove::status_message(status));
  std::exit(1);
}

template <class T>
std::vector<T> read(std::ifstream& file, int64_t count) {
  std::vector<T> values(count);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(T)));
  if (!file) std::fprintf(stderr, "stop_and_pack: the file of states cannot be read or is cut short\n"), std::exit(1);
  return values;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: stop_and_pack STATES PACKED\n"), 2;
  std::ifstream file(argv[1], std::ios::binary);
  const auto header = read<int64_t>(file, 5);
  dove::EosArgs eos{};
  eos.batch = header[0], eos.positions = header[1], eos.width = header[2], eos.vocabulary = header[3];
  eos.eos_id = header[4];
  const auto hidden = read<float>(file, eos.batch * eos.positions * eos.width);
  const auto weight = read<float>(file, eos.vocabulary * eos.width);
  const auto bias = read<float>(file, eos.vocabulary);
  std::vector<int32_t> lengths(eos.batch), cu_seqlens(eos.batch + 1);
  eos.hidden = hidden.data(), eos.weight = weight.data(), eos.bias = bias.data(), eos.first = lengths.data();
  eos.hidden_stride_image = eos.positions * eos.width;
  eos.hidden_stride_position = eos.weight_stride_row = eos.width;
  eos.threads = static_cast<int>(std::thread::hardware_concurrency());
  eos.workspace_bytes = dove::cpu::eos_workspace(eos);  // a multiple of 64
  const std::unique_ptr<void, void (*)(void*)> workspace(std::aligned_alloc(64, eos.workspace_bytes), std::free);
  eos.workspace = workspace.get();
  check(dove::cpu::eos_scan(eos));

  for (int64_t b = 0; b < eos.batch; ++b) {
    if (lengths[b] < 1) lengths[b] = 1;  // an image keeps at least one token
    cu_seqlens[b + 1] = cu_seqlens[b] + lengths[b];
    std::printf("%d\n", lengths[b]);
  }
  dove::PackArgs pack{};
  std::vector<float> packed(cu_seqlens.back() * eos.width);
  pack.source = hidden.data(), pack.target = packed.data(), pack.cu_seqlens = cu_seqlens.data();
  pack.batch = eos.batch, pack.max_len = eos.positions, pack.width = eos.width, pack.element_bytes = sizeof(float);
  pack.padded_stride_b = eos.hidden_stride_image, pack.padded_stride_k = eos.width, pack.threads = eos.threads;
  check(dove::cpu::pack(pack));
  std::ofstream(argv[2], std::ios::binary)
      .write(reinterpret_cast<const char*>(packed.data()), static_cast<std::streamsize>(packed.size() * sizeof(float)));
}
