#include "text_test_support.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "conclave/base/check.h"

namespace conclave::text {
namespace {

std::string ReadAll(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  CONCLAVE_CHECK(stream.is_open());
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::unique_ptr<Tokenizer> Load(std::string_view folder, std::string_view file) {
  auto tokenizer = LoadTokenizerFromFolder(SourcePath(folder), file);
  CONCLAVE_CHECK(tokenizer.ok());
  return *std::move(tokenizer);
}

int32_t RandomCodePoint(std::mt19937_64& random) {
  struct Range {
    int32_t first;
    int32_t last;
  };
  static constexpr Range kRanges[] = {
      {0x20, 0x7E},        {'a', 'e'},         {' ', ' '},         {0, 0x1F},
      {'0', '9'},          {0x80, 0x2FF},      {0x300, 0x36F},     {0x300, 0x36F},
      {0x370, 0x6FF},      {0x900, 0x97F},     {0x1100, 0x11FF},   {0x1E00, 0x1FFF},
      {0x2000, 0x206F},    {0x2100, 0x214F},   {0x3000, 0x30FF},   {0x4E00, 0x4E40},
      {0xAC00, 0xACFF},    {0xE000, 0xE010},   {0xF900, 0xFAFF},   {0xFE00, 0xFEFF},
      {0x11F00, 0x11F59},  {0x1D15E, 0x1D164}, {0x1F300, 0x1F64F}, {0x2F800, 0x2FA1D},
      {0x10FFF0, 0x10FFFF}};
  const Range range = kRanges[random() % std::size(kRanges)];
  return range.first +
         static_cast<int32_t>(random() % static_cast<uint64_t>(range.last - range.first + 1));
}

void AppendCodePoint(int32_t code_point, std::string& out) {
  const auto push = [&](int32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    push(code_point);
    return;
  }
  if (code_point < 0x800) {
    push(0xC0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      push(0xE0 | code_point >> 12);
    } else {
      push(0xF0 | code_point >> 18);
      push(0x80 | (code_point >> 12 & 0x3F));
    }
    push(0x80 | (code_point >> 6 & 0x3F));
  }
  push(0x80 | (code_point & 0x3F));
}

}  // namespace

std::string SourcePath(std::string_view relative) {
  return std::string(CONCLAVE_SOURCE_DIR) + "/" + std::string(relative);
}

boost::json::value ReadJson(const std::string& file) { return boost::json::parse(ReadAll(file)); }

std::vector<boost::json::object> ReadJsonLines(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  CONCLAVE_CHECK(stream.is_open());
  std::vector<boost::json::object> lines;
  for (std::string line; std::getline(stream, line);)
    lines.push_back(boost::json::parse(line).as_object());
  CONCLAVE_CHECK(!lines.empty());
  return lines;
}

std::vector<int32_t> ToIds(const boost::json::value& array) {
  return boost::json::value_to<std::vector<int32_t>>(array);
}

std::string ToString(const boost::json::value& string) {
  return boost::json::value_to<std::string>(string);
}

std::unique_ptr<Tokenizer> LoadArcade() {
  return Load("tests/golden/data/tokenizers/stablelm", "arcade100k.tiktoken");
}

std::unique_ptr<Tokenizer> LoadQwen() {
  return Load("tests/golden/data/tokenizers/qwen", "qwen.tiktoken");
}

Turn RecordedTurn(bool is_user, const boost::json::value& text) {
  static constexpr std::string_view kImage = "<image>";
  if (text.is_null()) return {is_user, std::nullopt};
  const std::string whole = ToString(text);
  std::string_view rest = whole;
  std::vector<std::string> pieces;
  for (size_t image = rest.find(kImage); image != std::string_view::npos;
       image = rest.find(kImage)) {
    pieces.emplace_back(rest.substr(0, image));
    rest.remove_prefix(image + kImage.size());
  }
  pieces.emplace_back(rest);
  return {is_user, std::move(pieces)};
}

std::string RandomText(std::mt19937_64& random, size_t num_code_points) {
  std::string text;
  for (size_t i = 0; i < num_code_points; ++i) AppendCodePoint(RandomCodePoint(random), text);
  return text;
}

TempFolder::TempFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "conclave-text-XXXXXX").string();
  CONCLAVE_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempFolder::Write(const std::string& name, std::string_view content) const {
  std::string file = path_ + "/" + name;
  std::ofstream stream(file, std::ios::binary);
  stream.write(content.data(), static_cast<std::streamsize>(content.size()));
  stream.close();
  CONCLAVE_CHECK(!stream.fail());
  return file;
}

std::string EncodeBase64(std::string_view bytes) {
  static constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t num_bytes = std::min<size_t>(3, bytes.size() - i);
    uint32_t bits = 0;
    for (size_t k = 0; k < 3; ++k)
      bits = bits << 8 | (k < num_bytes ? static_cast<uint8_t>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k)
      text.push_back(k <= num_bytes ? kAlphabet[bits >> (18 - 6 * k) & 63] : '=');
  }
  return text;
}

std::string RankFile(const std::vector<std::string>& extra) {
  std::string content;
  int rank = 0;
  const auto add = [&](std::string_view token) {
    content += EncodeBase64(token) + " " + std::to_string(rank++) + "\n";
  };
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    add(std::string_view(&text, 1));
  }
  for (const std::string& token : extra) add(token);
  return content;
}

}  // namespace conclave::text
