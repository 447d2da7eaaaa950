// Text to ids and back, or with CONCLAVE_FUZZ_STREAMS ids to streamed text, by the tokenizers of
// the recordings.
//
// Promises, for any bytes: ids are the tokenizer's own and none is a control token; decoding gives
// the text back, in normal form C where the tokenizer has one, invalid UTF-8 as U+FFFD; and the
// streamed text is the whole text, valid at every step, however it is cut into tokens.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/text/detokenizer.h"
#include "conclave/text/tokenizer.h"
#include "nfc.h"
#include "utf8.h"

namespace conclave::text {
namespace {

struct Subject {
  std::unique_ptr<Tokenizer> tokenizer;
  bool uses_nfc;
  bool has_pieces;  // SentencePiece: spaces in front may go, U+2581 is a space
};

Subject Load(const char* family, const char* file, bool uses_nfc, bool has_pieces) {
  auto tokenizer = LoadTokenizerFromFolder(
      std::string(CONCLAVE_SOURCE_DIR "/tests/golden/data/tokenizers/") + family, file);
  CONCLAVE_CHECK(tokenizer.ok());
  return {*std::move(tokenizer), uses_nfc, has_pieces};
}

const std::vector<Subject>& Subjects() {
  static const std::vector<Subject> subjects = [] {
    std::vector<Subject> loaded;
    loaded.push_back(Load("qwen", "qwen.tiktoken", true, false));
    loaded.push_back(Load("phi", "vocab.json", false, false));
    loaded.push_back(Load("openchat", "tokenizer.model", false, true));
    loaded.push_back(Load("json-llama", "tokenizer.json", false, true));
    return loaded;
  }();
  return subjects;
}

std::string Unspaced(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    if (text.substr(pos).starts_with("\xE2\x96\x81")) {
      out.push_back(' ');
      pos += 3;
    } else {
      out.push_back(text[pos++]);
    }
  }
  return out.substr(std::min(out.find_first_not_of(' '), out.size()));
}

void CheckText(const Subject& subject, std::string_view text) {
  const Tokenizer& tokenizer = *subject.tokenizer;
  const std::vector<int32_t> ids = tokenizer.Encode(text);
  for (const int32_t id : ids) {
    CONCLAVE_CHECK(id >= 0 && id < tokenizer.size());
    CONCLAVE_CHECK(!tokenizer.IsSpecial(id) || id == tokenizer.bos());
  }
  std::string expected = ReplaceInvalidUtf8(text);
  if (subject.uses_nfc) expected = ToNfc(expected);
  const std::string decoded = tokenizer.Decode(ids);
  if (subject.has_pieces) {
    CONCLAVE_CHECK(Unspaced(decoded) == Unspaced(expected));
  } else {
    CONCLAVE_CHECK(decoded == expected);
  }
}

// The bytes as ids, in pairs; the first byte says which stop strings and whether control tokens
// show.
void CheckStream(const Subject& subject, std::string_view bytes) {
  if (bytes.empty()) return;
  const bool keeps_special = (bytes.front() & 1) != 0;
  std::vector<int32_t> ids;
  for (size_t i = 1; i + 1 < bytes.size(); i += 2) {
    const int32_t number = static_cast<uint8_t>(bytes[i]) << 8 | static_cast<uint8_t>(bytes[i + 1]);
    ids.push_back(number % (subject.tokenizer->size() + 2) - 1);
  }
  std::vector<std::string> stops;
  if ((bytes.front() & 2) != 0) stops = {"e", "\xC3\xA9", "ab", "###"};
  IncrementalDetokenizer detokenizer(*subject.tokenizer, stops, keeps_special);
  std::string streamed;
  bool has_stopped = false;
  for (const int32_t id : ids) {
    const IncrementalDetokenizer::Delta delta = detokenizer.Push(id);
    CONCLAVE_CHECK(ValidUtf8Prefix(delta.text) == delta.text.size());
    streamed += delta.text;
    has_stopped = has_stopped || delta.hit_stop;
  }
  streamed += detokenizer.Finish();
  const std::string whole = subject.tokenizer->Decode(ids, keeps_special);
  if (stops.empty()) {
    CONCLAVE_CHECK(streamed == whole);
    return;
  }
  CONCLAVE_CHECK(whole.starts_with(streamed));
  for (const std::string& stop : stops) CONCLAVE_CHECK(streamed.find(stop) == std::string::npos);
  CONCLAVE_CHECK(has_stopped || streamed == whole);
}

}  // namespace
}  // namespace conclave::text

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(bytes), size);
  for (const auto& subject : conclave::text::Subjects()) {
    if (CONCLAVE_FUZZ_STREAMS) {
      conclave::text::CheckStream(subject, input);
    } else {
      conclave::text::CheckText(subject, input);
    }
  }
  return 0;
}
