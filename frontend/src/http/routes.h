// Every path the API port answers, as data. What is not in the table does not exist.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "http/api_error.h"

namespace conclave::frontend {

enum class RouteId {
  kChat,
  kModels,
  kModel,
  kTokenize,
  kDetokenize,
  kLive,
  kReady,
  kVersion,
  kMetrics,
};

// Who may call: kPublic needs no key in any configuration and tells no more than a state.
enum class Scope { kPublic, kInfer, kModels, kMetrics };

struct Route {
  RouteId id;
  std::string_view method;
  // "{id}" at the end matches one or more characters.
  std::string_view path;
  Scope scope;
  bool needs_backend;
  bool has_body;
};

std::span<const Route> Routes();

struct RouteMatch {
  const Route* route = nullptr;
  std::string_view rest;  // what "{id}" stands for, as it came
  std::string allow;      // the path exists with these methods only: 405
};

// `target` is the request target; what follows '?' is ignored. Compared byte by byte: nothing is
// decoded or normalised, so there is no second spelling of a path. `has_metrics`: whether /metrics
// exists.
RouteMatch FindRoute(std::string_view method, std::string_view target, bool has_metrics);

// "%2F" and the like decoded; nullopt when malformed or not UTF-8.
std::optional<std::string> DecodePercent(std::string_view text);

// The header fields that say whether and how a body follows.
struct BodyFields {
  std::string_view content_type;
  std::string_view content_encoding;
  std::string_view expect;
  std::optional<uint64_t> content_length;
  bool is_chunked = false;
};

// What is wrong before the first byte of the body is read: 400, 411, 413, 415, 417.
std::optional<HttpError> CheckBody(const Route& route, const BodyFields& fields,
                                   int64_t body_bytes_max);

HttpError BodyTooLarge(int64_t body_bytes_max);

}  // namespace conclave::frontend
