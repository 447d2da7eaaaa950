// Shared by the tests of text: recordings, tokenizers and seeded text.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/text/prompt_template.h"
#include "conclave/text/tokenizer.h"

namespace conclave::text {

// Absolute path of a file of the checkout.
std::string SourcePath(std::string_view relative);

// Recorded JSON; the test aborts when the file is not there or broken.
boost::json::value ReadJson(const std::string& file);
std::vector<boost::json::object> ReadJsonLines(const std::string& file);

std::vector<int32_t> ToIds(const boost::json::value& array);
std::string ToString(const boost::json::value& string);

// Tokenizers of the recordings: 3,000 ranks and few, trained on the same text as the strings.
std::unique_ptr<Tokenizer> LoadArcade();
std::unique_ptr<Tokenizer> LoadQwen();

// A turn whose text holds "<image>" where an image stands, as the recordings write it.
Turn RecordedTurn(bool is_user, const boost::json::value& text);

// `num_code_points` of valid UTF-8, of many scripts, marks, spaces, digits, control characters and
// unassigned ones.
std::string RandomText(std::mt19937_64& random, size_t num_code_points);

// Writes `content` to a fresh file named `name` and returns its path; the folder goes when the
// object does.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string Write(const std::string& name, std::string_view content) const;

 private:
  std::string path_;
};

std::string EncodeBase64(std::string_view bytes);

// A rank file of the 256 single bytes followed by `extra`, ranks in order.
std::string RankFile(const std::vector<std::string>& extra);

}  // namespace conclave::text
