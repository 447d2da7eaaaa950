// The strict JSON reader of request bodies, against Boost.JSON's own parser.
//
// Promises: what it accepts, Boost.JSON accepts as an object with the same values (numbers may
// differ in the last place, and one that no double holds is NaN); what it refuses, Boost.JSON
// refuses too or reads as another kind, but for the extra rules, each of which has a reason of its
// own.
#include <boost/json.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "http/json_reader.h"

namespace conclave::frontend {
namespace {

namespace json = boost::json;

constexpr int kDepthMax = 32;

bool IsSameNumber(const json::value& a, const json::value& b) {
  if (a.kind() != b.kind() || !a.is_double()) {
    return a == b;
  }
  const double ours = a.get_double();
  const double theirs = b.get_double();
  // Boost.JSON 1.81 reads 0e400 as 0 · ∞.
  return std::isnan(ours) || (ours == 0 && std::isnan(theirs)) ||
         std::abs(ours - theirs) <= 1e-12 * std::abs(theirs);
}

// Recursion is bounded by the depth that both parsers have checked.
// NOLINTNEXTLINE(misc-no-recursion)
bool IsSame(const json::value& a, const json::value& b) {
  if (a.is_array() && b.is_array()) {
    const json::array& x = a.get_array();
    const json::array& y = b.get_array();
    bool is_same = x.size() == y.size();
    for (size_t i = 0; is_same && i < x.size(); ++i) {
      is_same = IsSame(x[i], y[i]);
    }
    return is_same;
  }
  if (a.is_object() && b.is_object()) {
    const json::object& x = a.get_object();
    const json::object& y = b.get_object();
    bool is_same = x.size() == y.size();
    for (const json::key_value_pair& pair : x) {
      const json::value* other = y.if_contains(pair.key());
      is_same = is_same && other != nullptr && IsSame(pair.value(), *other);
    }
    return is_same;
  }
  return a.is_number() && b.is_number() ? IsSameNumber(a, b) : a == b;
}

void Check(std::string_view body) {
  json::error_code error;
  json::parse_options options;
  options.max_depth = kDepthMax;
  const json::value theirs =
      json::parse(json::string_view(body.data(), body.size()), error, {}, options);
  const absl::StatusOr<json::object> ours = ParseJsonObject(body, kDepthMax);
  if (ours.ok()) {
    // The only thing that Boost.JSON does not take and we do: an exponent beyond its own limit.
    CONCLAVE_CHECK(!error || error == json::error::exponent_overflow);
    CONCLAVE_CHECK(error || IsSame(json::value(*ours), theirs));
    return;
  }
  const std::string reason = ReasonOf(ours.status());
  CONCLAVE_CHECK(!reason.empty());
  if (reason != "duplicate_key" && reason != "json_too_large") {
    CONCLAVE_CHECK(error || !theirs.is_object());
  }
}

}  // namespace
}  // namespace conclave::frontend

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::frontend::Check({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
