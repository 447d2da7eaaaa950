#include "conversation.h"

#include <sys/stat.h>

#include <boost/json.hpp>
#include <fstream>

#include "conclave/base/status.h"
#include "conclave/service/units.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;

constexpr int64_t kImageBytesMax = int64_t{10} << 20;

std::string Base64(std::string_view bytes) {
  constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t left = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) {
      group = group << 8 | (k < left ? static_cast<unsigned char>(bytes[i + k]) : 0U);
    }
    for (size_t k = 0; k < 4; ++k) {
      out += k <= left ? kDigits[group >> (18 - 6 * k) & 63] : '=';
    }
  }
  return out;
}

json::value Content(const Turn& turn) {
  if (turn.images.empty()) {
    return json::value(turn.text);
  }
  json::array parts;
  for (const std::string& image : turn.images) {
    const std::string uri = "data:" + std::string(MimeOf(image)) + ";base64," + Base64(image);
    parts.push_back(json::object{{"type", "image_url"}, {"image_url", json::object{{"url", uri}}}});
  }
  parts.push_back(json::object{{"type", "text"}, {"text", turn.text}});
  return parts;
}

}  // namespace

absl::StatusOr<std::string> ReadImageFile(const std::string& file) {
  struct stat status {};
  if (::stat(file.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) {
    return InvalidArgument("usage", service::Quoted(file) + ": expected an image file");
  }
  if (status.st_size > kImageBytesMax) {
    return InvalidArgument("usage", service::Quoted(file) + ": expected at most 10MiB, found " +
                                        std::to_string(status.st_size) + "B");
  }
  std::ifstream stream(file, std::ios::binary);
  std::string bytes(static_cast<size_t>(status.st_size), '\0');
  if (!stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    return InvalidArgument("usage", service::Quoted(file) + ": cannot be read");
  }
  return bytes;
}

std::string_view MimeOf(std::string_view bytes) {
  if (bytes.starts_with("\x89PNG\r\n\x1a\n")) {
    return "image/png";
  }
  if (bytes.starts_with("\xff\xd8\xff")) {
    return "image/jpeg";
  }
  if (bytes.starts_with("RIFF") && bytes.substr(0, 12).ends_with("WEBP")) {
    return "image/webp";
  }
  if (bytes.starts_with("GIF8")) {
    return "image/gif";
  }
  if (bytes.starts_with("BM")) {
    return "image/bmp";
  }
  return "application/octet-stream";
}

std::string ChatRequestBody(const std::string& model, const std::vector<Turn>& turns,
                            const AskParams& params) {
  json::array messages;
  for (const Turn& turn : turns) {
    messages.push_back(
        json::object{{"role", turn.is_user ? "user" : "assistant"}, {"content", Content(turn)}});
  }
  json::object body{{"model", model},
                    {"stream", true},
                    {"temperature", params.temperature},
                    {"messages", std::move(messages)}};
  if (params.max_tokens > 0) {
    body["max_tokens"] = params.max_tokens;
  }
  if (params.seed.has_value()) {
    body["seed"] = *params.seed;
  }
  return json::serialize(body);
}

}  // namespace conclave::cli
