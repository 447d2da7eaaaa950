// What a page does with the live picture: takes a snapshot and all deltas behind it (docs/live.md).
#pragma once

#include <boost/json.hpp>
#include <string_view>

namespace conclave::live {

boost::json::object ParseObject(std::string_view text);

class LiveReader {
 public:
  explicit LiveReader(std::string_view snapshot) : picture_(ParseObject(snapshot)) {}

  // A gap in `seq`, a cell that is not there and a key that nobody knows fail the test.
  void Apply(std::string_view delta);

  const boost::json::object& picture() const { return picture_; }

 private:
  boost::json::object picture_;
};

}  // namespace conclave::live
