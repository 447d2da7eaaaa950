// One tokenizer file; the build gives its name in CONCLAVE_FUZZ_FILE.
//
// Promises: a file is refused with a reason and a message of printable text, or gives a tokenizer
// that takes any bytes, whose ids are all its own, that gives a plain text back, and that never
// makes a control token of it.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/text/tokenizer.h"

namespace conclave::text {
namespace {

constexpr std::string_view kFile = CONCLAVE_FUZZ_FILE;

// A folder in memory where there is one: every input is written to a file first.
const std::string& Folder() {
  static const std::string folder = [] {
    const bool has_memory = std::filesystem::is_directory("/dev/shm");
    std::string pattern = std::string(has_memory ? "/dev/shm" : "/tmp") + "/conclave-fuzz-XXXXXX";
    CONCLAVE_CHECK(mkdtemp(pattern.data()) != nullptr);
    static const std::string made = pattern;
    std::atexit([] { std::filesystem::remove_all(made); });
    return pattern;
  }();
  return folder;
}

void Write(const std::string& name, std::string_view content) {
  std::ofstream(Folder() + "/" + name, std::ios::binary) << content;
}

// vocab.json, merges.txt, tokenizer_config.json and added_tokens.json stand in one input, with a
// NUL between them.
void WriteInput(std::string_view input) {
  if (kFile != "vocab.json") {
    Write(std::string(kFile), input);
    return;
  }
  for (const char* name :
       {"vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"}) {
    const size_t end = input.find('\0');
    Write(name, input.substr(0, end));
    input.remove_prefix(end == std::string_view::npos ? input.size() : end + 1);
  }
}

void CheckText(const Tokenizer& tokenizer, std::string_view text, bool is_plain) {
  const std::vector<int32_t> ids = tokenizer.Encode(text);
  for (const int32_t id : ids) {
    CONCLAVE_CHECK(id >= 0 && id < tokenizer.size());
    CONCLAVE_CHECK(!tokenizer.IsSpecial(id) || id == tokenizer.bos());
  }
  const std::string decoded = tokenizer.Decode(ids);
  if (is_plain) CONCLAVE_CHECK(decoded == text);
  for (const int32_t id : tokenizer.EncodeWithSpecials(text))
    CONCLAVE_CHECK(id >= 0 && id < tokenizer.size());
}

void CheckFile(std::string_view input) {
  WriteInput(input);
  const auto tokenizer = LoadTokenizerFromFolder(Folder(), kFile);
  if (!tokenizer.ok()) {
    CONCLAVE_CHECK(!ReasonOf(tokenizer.status()).empty());
    for (const char c : MessageOf(tokenizer.status())) CONCLAVE_CHECK(c >= 0x20 && c < 0x7F);
    return;
  }
  CheckText(**tokenizer, "", true);
  CheckText(**tokenizer, "\xFF\x80 a\xE4\xB8", false);
  CheckText(**tokenizer, "ab <|endoftext|></s> 12\n\n", false);
  CheckText(**tokenizer, input.substr(0, 512), false);
}

}  // namespace
}  // namespace conclave::text

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::text::CheckFile({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
