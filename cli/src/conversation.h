// A conversation as `conclave ask` holds it, and where answers come from: an embedded engine or a
// server.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::cli {

struct Turn {
  bool is_user = true;
  std::string text;
  std::vector<std::string> images;  // encoded, before the text
};

struct AskParams {
  double temperature = 0.0;
  int32_t max_tokens = 0;  // 0: what the context leaves
  std::optional<int64_t> seed;
};

// Takes the pieces of an answer; an error ends the answer.
using TakeText = std::function<absl::Status(std::string_view)>;

class AnswerSource {
 public:
  virtual ~AnswerSource() = default;
  // Streams the answer to the last turn and returns when it is complete. Any error, also one after
  // the first piece, carries a reason; what `take` returned comes back as it is.
  virtual absl::Status Ask(const std::vector<Turn>& turns, const AskParams& params,
                           const TakeText& take) = 0;
};

// A conclave frontend, or anything that speaks /v1/chat/completions, at `url`
// ("http://HOST[:PORT][/v1]"). Asks /v1/models for the model's name. kInvalidArgument ("usage") for
// other URLs; kUnavailable ("connect", "http").
absl::StatusOr<std::unique_ptr<AnswerSource>> ConnectTo(const std::string& url);

// The contents of an image file: a regular file of at most 10 MiB. kInvalidArgument ("usage").
absl::StatusOr<std::string> ReadImageFile(const std::string& file);

// "image/png" and so on by the first bytes; "application/octet-stream" for what is no known
// picture.
std::string_view MimeOf(std::string_view bytes);

// The body of a streaming chat request: images become data URIs.
std::string ChatRequestBody(const std::string& model, const std::vector<Turn>& turns,
                            const AskParams& params);

}  // namespace conclave::cli
