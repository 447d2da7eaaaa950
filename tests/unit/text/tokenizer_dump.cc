// Encodes and decodes lines for a comparison with other programs:
//
//   tokenizer_dump FOLDER FILE < lines
//
// Each line is a text in hexadecimal. Each line of the output: ids with special strings live, ids
// of plain text, and what the first decode to, in hexadecimal, with '|' between them.
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/text/tokenizer.h"

namespace {

std::string FromHex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  return bytes;
}

std::string ToHex(std::string_view bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  for (const char c : bytes) {
    hex.push_back(kDigits[static_cast<uint8_t>(c) >> 4]);
    hex.push_back(kDigits[static_cast<uint8_t>(c) & 15]);
  }
  return hex;
}

void Print(const std::vector<int32_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) std::cout << (i > 0 ? " " : "") << ids[i];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: tokenizer_dump FOLDER FILE < lines\n";
    return 2;
  }
  const auto tokenizer = conclave::text::LoadTokenizerFromFolder(argv[1], argv[2]);
  if (!tokenizer.ok()) {
    std::cerr << conclave::MessageOf(tokenizer.status()) << "\n";
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    const std::string text = FromHex(line);
    const std::vector<int32_t> ids = (*tokenizer)->EncodeWithSpecials(text);
    Print(ids);
    std::cout << '|';
    Print((*tokenizer)->Encode(text));
    std::cout << '|' << ToHex((*tokenizer)->Decode(ids)) << '\n';
  }
  return 0;
}
