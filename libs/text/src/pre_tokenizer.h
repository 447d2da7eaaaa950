// Cuts text into pre-tokens: BPE merges never cross their borders.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;

namespace conclave::text {

// The patterns of spec 6.1, with Unicode 15 classes.
enum class SplitPattern {
  kQwen,  // shared by Arcade100k and all Qwen
  kGpt2,  // Phi
};

// Any thread.
class PreTokenizer {
 public:
  explicit PreTokenizer(SplitPattern pattern);
  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

  // State of one pass over one text; not thread-safe. The PreTokenizer and the text outlive it.
  class Cursor {
   public:
    // `text` is valid UTF-8: it is not checked again, since a check per match would be quadratic.
    Cursor(const PreTokenizer& pre_tokenizer, std::string_view text);
    ~Cursor();
    Cursor(const Cursor&) = delete;
    Cursor& operator=(const Cursor&) = delete;

    // The next pre-token; empty at the end of the text. Together they are the whole text.
    std::string_view Next();

   private:
    size_t MatchLength() const;

    const PreTokenizer& pre_tokenizer_;
    std::string_view text_;
    size_t pos_ = 0;
    pcre2_real_match_data_8* match_ = nullptr;
    pcre2_real_match_context_8* context_ = nullptr;
  };

 private:
  pcre2_real_code_8* code_ = nullptr;
  bool has_jit_ = false;
};

}  // namespace conclave::text
