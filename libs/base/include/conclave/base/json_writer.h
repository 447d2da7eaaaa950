// Appends JSON to a string, keys in the order they are written: the shape of a reply is part of the
// contract.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace conclave {

// Writes what it is told; that begins and ends match is the caller's business. `out` outlives it.
class JsonWriter {
 public:
  explicit JsonWriter(std::string& out) : out_(out) {}

  JsonWriter& BeginObject() { return Open('{'); }
  JsonWriter& EndObject() { return Close('}'); }
  JsonWriter& BeginArray() { return Open('['); }
  JsonWriter& EndArray() { return Close(']'); }

  // `name` needs no escaping.
  JsonWriter& Key(std::string_view name);

  // Always valid JSON: bytes that are not UTF-8 become U+FFFD. U+2028 and U+2029 are escaped too,
  // since some clients evaluate events as JavaScript.
  JsonWriter& String(std::string_view value);
  JsonWriter& Int(int64_t value);
  // Shortest text that reads back as `value`; null when it is not finite.
  JsonWriter& Double(double value);
  JsonWriter& Float(float value);
  JsonWriter& Bool(bool value);
  JsonWriter& Null();
  // A value that is JSON already.
  JsonWriter& Json(std::string_view value) { return Raw(value); }

 private:
  JsonWriter& Open(char bracket);
  JsonWriter& Close(char bracket);
  JsonWriter& Raw(std::string_view text);
  void Separate();

  std::string& out_;
  bool needs_comma_ = false;
};

}  // namespace conclave
