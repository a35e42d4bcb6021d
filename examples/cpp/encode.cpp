// How many tokens does a picture deserve? `encode PACKAGE PICTURE.ppm` prints it. PACKAGE is encoder.aoti.pt2 of
// `dove export dove-tiny --to aoti`; the picture a binary PPM (P6) of the model's size, 256 x 256 pixels.
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dove/encoder.h"

namespace {

at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  file >> kind >> width >> height >> most;
  file.get();  // one white space
  if (!file || kind != "P6" || most != 255 || width < 1 || height < 1 || width > 65536 || height > 65536)
    throw std::runtime_error(
        path + " is no binary PPM (P6) of 8 bits; convert it: magick photo.jpg -resize 256x256! photo.ppm");
  std::vector<uint8_t> bytes(width * height * 3);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error(path + " is cut short");
  return at::from_blob(bytes.data(), {1, height, width, 3}, at::kByte).permute({0, 3, 1, 2}).to(at::kFloat).div_(255);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: encode PACKAGE PICTURE.ppm\n"), 2;
  try {
    dove::Encoder encoder(argv[1]);
    const dove::Tokens tokens = encoder(read_ppm(argv[2]));
    std::printf("%d tokens of %d values\n", tokens.cu_seqlens[1].item<int>(), static_cast<int>(tokens.tokens.size(1)));
  } catch (const c10::Error& error) {  // what() of these is a page long
    return std::fprintf(stderr, "encode: %s\n", error.what_without_backtrace()), 1;
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "encode: %s\n", error.what()), 1;
  }
}
