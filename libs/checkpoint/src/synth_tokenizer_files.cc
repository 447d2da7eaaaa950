// The tokenizer files of a synthetic checkpoint, as the family's tokenizer class writes them (spec
// 2.4, 6).
#include <string>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "json.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;
using enum SynthFamily;

constexpr std::string_view kEndOfText = "<|endoftext|>";

// A token besides the tokenizer's own entries.
struct AddedToken {
  int32_t id = 0;
  std::string text;
  bool is_special = true;
};

// Phi's runs of white space (spec 6.3), from 31 spaces down to 2, then from 9 tabs down to 2.
void AddWhiteSpace(int32_t first, std::vector<AddedToken>& tokens) {
  for (size_t count = 31; count >= 2; --count) {
    tokens.push_back({first++, std::string(count, ' '), false});
  }
  for (size_t count = 9; count >= 2; --count) {
    tokens.push_back({first++, std::string(count, '\t'), false});
  }
}

std::vector<AddedToken> AddedTokens(const SynthModel& model) {
  const int32_t n = model.num_pieces;
  switch (model.family) {
    case kPhi: {
      std::vector<AddedToken> tokens = {{n - 1, std::string(kEndOfText)}};
      AddWhiteSpace(n, tokens);
      tokens.push_back({n + 38, "<|extra_0|>"});
      return tokens;
    }
    case kQwen15:
      return {{n, std::string(kEndOfText)},
              {n + 1, "<|im_start|>"},
              {n + 2, "<|im_end|>"},
              {n + 3, "<|extra_0|>"}};
    case kMistral:
      return {{0, "<unk>"}, {1, "<s>"}, {2, "</s>"}, {n, "<|end_of_turn|>"}, {n + 1, "<|pad_0|>"}};
    case kLlama:
    case kMiniCpm:
      return {{0, "<unk>"}, {1, "<s>"}, {2, "</s>"}};
    default:
      return {};  // The tiktoken classes have theirs in code.
  }
}

json::object Decoder(const std::vector<AddedToken>& tokens) {
  json::object out;
  for (const AddedToken& token : tokens) {
    out[std::to_string(token.id)] = {{"content", Word(token.text)},
                                     {"lstrip", false},
                                     {"normalized", !token.is_special},
                                     {"rstrip", false},
                                     {"single_word", false},
                                     {"special", token.is_special}};
  }
  return out;
}

// Those that are no entries of the tokenizer's own file.
json::object AddedFile(const SynthModel& model, const std::vector<AddedToken>& tokens) {
  json::object out;
  for (const AddedToken& token : tokens) {
    if (token.id >= model.num_pieces || (model.family == kQwen15)) {
      out[Word(token.text)] = token.id;
    }
  }
  return out;
}

// The roles of special tokens.
json::object SpecialTokens(SynthFamily family) {
  const auto roles = [](std::string_view bos, std::string_view eos, std::string_view pad) {
    json::object out = {{"eos_token", Word(eos)}, {"pad_token", Word(pad)}};
    out["unk_token"] = Word(bos == "<s>" ? "<unk>" : pad);
    if (!bos.empty()) {
      out["bos_token"] = Word(bos);
    }
    return out;
  };
  switch (family) {
    case kStablelm:
      return roles("", kEndOfText, "<|reg0|>");
    case kPhi:
      return roles(kEndOfText, kEndOfText, "<|extra_0|>");
    case kMistral:
      return roles("<s>", "<|end_of_turn|>", "<unk>");
    case kLlama:
    case kMiniCpm:
      return roles("<s>", "</s>", "<unk>");
    default:
      return roles("", kEndOfText, "<|extra_0|>");
  }
}

json::object TokenizerConfig(const SynthModel& model, const std::vector<AddedToken>& tokens) {
  json::object out = {{"added_tokens_decoder", Decoder(tokens)},
                      {"model_max_length", 2048},
                      {"padding_side", "right"}};
  const json::object roles = SpecialTokens(model.family);
  out.insert(roles.begin(), roles.end());
  switch (model.family) {
    case kStablelm:
      out["tokenizer_class"] = "Arcade100kTokenizer";
      out["errors"] = "replace";
      break;
    case kQwen:
      out["tokenizer_class"] = "QWenTokenizer";
      break;
    case kPhi:
      out["tokenizer_class"] = "CodeGenTokenizer";
      out["add_bos_token"] = false;
      out["add_prefix_space"] = false;
      break;
    case kQwen15:
      out["tokenizer_class"] = "Qwen2Tokenizer";
      break;
    default:
      out["tokenizer_class"] = "LlamaTokenizer";
      out["add_bos_token"] = true;
      out["add_eos_token"] = false;
      out["legacy"] = true;
      break;
  }
  return out;
}

// The file or files of the tokenizer's own entries.
std::vector<SynthFile> Entries(const SynthModel& model, uint64_t seed) {
  const int32_t n = model.num_pieces;
  switch (model.family) {
    case kStablelm:
      return {{"arcade100k.tiktoken", TiktokenText(SynthPieces(n, seed))}};
    case kQwen:
      return {{"qwen.tiktoken", TiktokenText(SynthPieces(n, seed))}};
    case kPhi: {
      const std::vector<std::string> pieces = SynthPieces(n - 1, seed);
      const std::string last(kEndOfText);
      return {BpeVocabulary(pieces, std::span(&last, 1)), BpeMerges(pieces)};
    }
    case kQwen15: {
      const std::vector<std::string> pieces = SynthPieces(n, seed);
      return {BpeVocabulary(pieces, {}), BpeMerges(pieces)};
    }
    case kMistral:
    case kLlama:
    case kMiniCpm:
      return {{"tokenizer.model", SentencePieceModel(n, seed)}};
  }
  CONCLAVE_CHECK(false);
}

}  // namespace

SynthTokenIds TokenIdsOf(const SynthModel& model) {
  const int32_t n = model.num_pieces;
  switch (model.family) {
    case kStablelm:  // Id n stays unused; <|reg0|> is the 24th special (spec 6.2).
      return {.bos = n + 1, .eos = n + 1, .pad = n + 24};
    case kQwen:  // <|endoftext|>, <|im_start|>, <|im_end|>, <|extra_0|>
      return {.bos = -1, .eos = n, .pad = n + 3};
    case kPhi:
      return {.bos = n - 1, .eos = n - 1, .pad = n + 38};
    case kQwen15:
      return {.bos = n, .eos = n, .pad = n + 3};
    case kMistral:
      return {.bos = 1, .eos = n, .pad = 0};
    case kLlama:
    case kMiniCpm:
      return {.bos = 1, .eos = 2, .pad = 0};
  }
  CONCLAVE_CHECK(false);
}

std::vector<SynthFile> SynthTokenizer(const SynthModel& model, uint64_t seed) {
  const std::vector<AddedToken> tokens = AddedTokens(model);
  std::vector<SynthFile> files = Entries(model, seed);
  files.emplace_back("tokenizer_config.json", Pretty(TokenizerConfig(model, tokens)));
  files.emplace_back("special_tokens_map.json", Pretty(SpecialTokens(model.family)));
  if (json::object added = AddedFile(model, tokens); !added.empty()) {
    files.emplace_back("added_tokens.json", Pretty(added));
  }
  return files;
}

}  // namespace conclave::checkpoint
