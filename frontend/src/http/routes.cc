#include "http/routes.h"

#include <charconv>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

constexpr std::string_view kPlaceholder = "{id}";

constexpr Route kRoutes[] = {
    {RouteId::kChat, "POST", "/v1/chat/completions", Scope::kInfer, true, true},
    {RouteId::kModels, "GET", "/v1/models", Scope::kModels, true, false},
    {RouteId::kModel, "GET", "/v1/models/{id}", Scope::kModels, true, false},
    {RouteId::kTokenize, "POST", "/tokenize", Scope::kInfer, true, true},
    {RouteId::kDetokenize, "POST", "/detokenize", Scope::kInfer, true, true},
    {RouteId::kLive, "GET", "/health/live", Scope::kPublic, false, false},
    {RouteId::kReady, "GET", "/health/ready", Scope::kPublic, false, false},
    {RouteId::kVersion, "GET", "/version", Scope::kModels, false, false},
    {RouteId::kMetrics, "GET", "/metrics", Scope::kMetrics, false, false},
};

// The characters of `path` that "{id}" stands for; nullopt when the path is another one.
std::optional<std::string_view> Match(const Route& route, std::string_view path) {
  const size_t placeholder = route.path.find(kPlaceholder);
  if (placeholder == std::string_view::npos) {
    return path == route.path ? std::optional<std::string_view>("") : std::nullopt;
  }
  const std::string_view prefix = route.path.substr(0, placeholder);
  if (path.size() <= prefix.size() || path.substr(0, prefix.size()) != prefix) {
    return std::nullopt;
  }
  return path.substr(prefix.size());
}

bool Equals(std::string_view a, std::string_view b) {
  return absl::EqualsIgnoreCase({a.data(), a.size()}, {b.data(), b.size()});
}

bool IsJson(std::string_view content_type) {
  const size_t semicolon = content_type.find(';');
  const auto trim = [](std::string_view text) {
    const auto stripped = absl::StripAsciiWhitespace({text.data(), text.size()});
    return std::string_view(stripped.data(), stripped.size());
  };
  if (!Equals(trim(content_type.substr(0, semicolon)), "application/json")) {
    return false;
  }
  if (semicolon == std::string_view::npos) {
    return true;
  }
  const std::string_view parameter = trim(content_type.substr(semicolon + 1));
  return parameter.empty() || Equals(parameter, "charset=utf-8") ||
         Equals(parameter, "charset=\"utf-8\"");
}

}  // namespace

std::span<const Route> Routes() { return kRoutes; }

RouteMatch FindRoute(std::string_view method, std::string_view target, bool has_metrics) {
  const std::string_view path = target.substr(0, target.find('?'));
  RouteMatch match;
  for (const Route& route : kRoutes) {
    if (route.id == RouteId::kMetrics && !has_metrics) {
      continue;
    }
    const std::optional<std::string_view> rest = Match(route, path);
    if (!rest.has_value()) {
      continue;
    }
    if (route.method == method) {
      match.route = &route;
      match.rest = *rest;
      match.allow.clear();
      return match;
    }
    match.allow += (match.allow.empty() ? "" : ", ") + std::string(route.method);
  }
  return match;
}

std::optional<std::string> DecodePercent(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    unsigned value = 0;
    if (i + 2 >= text.size()) {
      return std::nullopt;
    }
    const char* end = text.data() + i + 3;
    if (std::from_chars(text.data() + i + 1, end, value, 16).ptr != end) {
      return std::nullopt;
    }
    out += static_cast<char>(value);
    i += 2;
  }
  if (FindInvalidUtf8(out) != std::string_view::npos) {
    return std::nullopt;
  }
  return out;
}

HttpError BodyTooLarge(int64_t body_bytes_max) {
  return {413, "body_too_large",
          "request body: too large; expected at most " + std::to_string(body_bytes_max) + " bytes",
          ""};
}

std::optional<HttpError> CheckBody(const Route& route, const BodyFields& fields,
                                   int64_t body_bytes_max) {
  if (!fields.expect.empty() && !Equals(fields.expect, "100-continue")) {
    return HttpError{417, "expectation_failed", "Expect: only 100-continue is known", ""};
  }
  if (!route.has_body) {
    if (fields.is_chunked || fields.content_length.value_or(0) != 0) {
      return HttpError{400, "body_not_allowed", "request body: this path takes none", ""};
    }
    return std::nullopt;
  }
  if (!fields.content_length.has_value() && !fields.is_chunked) {
    return HttpError{411, "length_required", "request body: expected a Content-Length", ""};
  }
  if (fields.content_length.value_or(0) > static_cast<uint64_t>(body_bytes_max)) {
    return BodyTooLarge(body_bytes_max);
  }
  if (!fields.content_encoding.empty() && !Equals(fields.content_encoding, "identity")) {
    return HttpError{
        415, "content_encoding_unsupported",
        "Content-Encoding: expected none, found \"" + Excerpt(fields.content_encoding) + "\"", ""};
  }
  if (!IsJson(fields.content_type)) {
    return HttpError{415, "content_type_unsupported",
                     "Content-Type: expected application/json in UTF-8", ""};
  }
  return std::nullopt;
}

}  // namespace conclave::frontend
