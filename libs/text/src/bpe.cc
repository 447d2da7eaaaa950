#include "bpe.h"

#include "conclave/base/check.h"

namespace conclave::text {

BpeTable::BpeTable(const std::vector<std::string>& tokens) : merger_({}, {}) {
  begins_.reserve(tokens.size() + 1);
  for (const std::string& token : tokens) {
    begins_.push_back(static_cast<uint32_t>(bytes_.size()));
    bytes_.append(token);
  }
  begins_.push_back(static_cast<uint32_t>(bytes_.size()));
  id_of_.reserve(tokens.size());
  for (int32_t id = 0; id < size(); ++id) {
    CONCLAVE_CHECK(!Bytes(id).empty() && id_of_.emplace(Bytes(id), id).second);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    const auto found = id_of_.find(std::string_view(&text, 1));
    CONCLAVE_CHECK(found != id_of_.end());
    id_of_byte_[byte] = found->second;
  }
  merger_ = MakeMerger();
}

PairMerger BpeTable::MakeMerger() const {
  std::vector<uint32_t> lengths;
  std::vector<PairMerger::Pair> pairs;
  for (int32_t id = 0; id < size(); ++id) {
    const std::string_view token = Bytes(id);
    lengths.push_back(static_cast<uint32_t>(token.size()));
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = id_of_.find(token.substr(0, cut));
      if (left == id_of_.end()) continue;
      const auto right = id_of_.find(token.substr(cut));
      if (right != id_of_.end()) pairs.push_back({left->second, right->second, id, id});
    }
  }
  return {std::move(lengths), pairs};
}

void BpeTable::EncodePiece(std::string_view piece, Scratch& scratch,
                           std::vector<int32_t>& out) const {
  if (const auto whole = id_of_.find(piece); whole != id_of_.end()) {
    out.push_back(whole->second);
    return;
  }
  merger_.MergeBytes(piece, id_of_byte_, scratch, out);
}

}  // namespace conclave::text
