#include "special_tokens.h"

namespace conclave::text {
namespace {

constexpr int kNumArcadeReserved = 8;
constexpr int kNumQwenExtra = 205;

SpecialTokens ArcadeSpecials(int32_t num_ranks) {
  SpecialTokens specials{
      num_ranks + 1,
      {"<|endoftext|>",   "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",   "<|fim_pad|>",
       "<gh_stars>",      "<filename>",     "<issue_start>",  "<issue_comment>",  "<issue_closed>",
       "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>",
       "<commit_before>", "<commit_msg>",   "<commit_after>", "<reponame>",       "<|endofprompt|>",
       "<|im_start|>",    "<|im_end|>",     "<|pause|>"}};
  for (int i = 0; i < kNumArcadeReserved; ++i)
    specials.strings.push_back("<|reg" + std::to_string(i) + "|>");
  specials.strings.emplace_back("<|extra0|>");
  return specials;
}

SpecialTokens QwenSpecials(int32_t num_ranks) {
  SpecialTokens specials{num_ranks, {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}};
  for (int i = 0; i < kNumQwenExtra; ++i)
    specials.strings.push_back("<|extra_" + std::to_string(i) + "|>");
  return specials;
}

}  // namespace

SpecialTokens SpecialTokensOf(TiktokenFlavor flavor, int32_t num_ranks) {
  return flavor == TiktokenFlavor::kArcade100k ? ArcadeSpecials(num_ranks)
                                               : QwenSpecials(num_ranks);
}

}  // namespace conclave::text
