// How many tokens does a picture deserve? `encode PACKAGE PICTURE` prints it. PACKAGE is encoder.aoti.pt2 of
// `dove export dove-tiny --to aoti`; the picture a PNG, or a binary PPM (P6), of the model's size, 256 x 256 pixels.
#ifdef DOVE_EXAMPLE_PNG
#include <png.h>
#endif

#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dove/encoder.h"

namespace {

// float32 [1, 3, height, width] in [0, 1] of 8-bit colours, row by row.
at::Tensor as_pixels(std::vector<uint8_t>& bytes, int64_t height, int64_t width) {
  return at::from_blob(bytes.data(), {1, height, width, 3}, at::kByte).permute({0, 3, 1, 2}).to(at::kFloat).div_(255);
}

at::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  file >> kind >> width >> height >> most;
  file.get();  // one white space
  if (!file || kind != "P6" || most != 255 || width < 1 || height < 1 || width > 65536 || height > 65536)
    throw std::runtime_error(path + " is neither a PNG nor a binary PPM (P6) of 8 bits; convert it: magick " + path +
                             " -resize 256x256! photo.png");
  std::vector<uint8_t> bytes(width * height * 3);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error(path + " is cut short");
  return as_pixels(bytes, height, width);
}

#ifdef DOVE_EXAMPLE_PNG
at::Tensor read_png(const std::string& path) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  std::vector<uint8_t> bytes;
  if (png_image_begin_read_from_file(&image, path.c_str())) {
    if (image.width > 65536 || image.height > 65536) {
      png_image_free(&image);
      throw std::runtime_error(path + " is larger than 65536 pixels");
    }
    image.format = PNG_FORMAT_RGB;  // grey, palettes and 16 bits, too
    bytes.resize(PNG_IMAGE_SIZE(image));
    const png_color white{255, 255, 255};  // behind what is transparent
    png_image_finish_read(&image, &white, bytes.data(), 0, nullptr);
  }
  if (PNG_IMAGE_FAILED(image)) throw std::runtime_error(path + " cannot be read as PNG: " + image.message);
  return as_pixels(bytes, image.height, image.width);
}
#else
at::Tensor read_png(const std::string& path) {
  throw std::runtime_error(path + " is a PNG, which this program was built without libpng for; convert it: magick " +
                           path + " photo.ppm");
}
#endif

at::Tensor read_picture(const std::string& path) {
  char start[8] = {};
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be opened");
  file.read(start, sizeof start);
  return std::string(start, sizeof start) == "\x89PNG\r\n\x1a\n" ? read_png(path) : read_ppm(path);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: encode PACKAGE PICTURE\n"), 2;
  try {
    dove::Encoder encoder(argv[1]);
    const dove::Tokens tokens = encoder(read_picture(argv[2]));
    std::printf("%d tokens of %d values\n", tokens.cu_seqlens[1].item<int>(), static_cast<int>(tokens.tokens.size(1)));
  } catch (const c10::Error& error) {  // what() of these is a page long
    return std::fprintf(stderr, "encode: %s\n", error.what_without_backtrace()), 1;
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "encode: %s\n", error.what()), 1;
  }
}
