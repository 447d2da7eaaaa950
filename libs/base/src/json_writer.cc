#include "conclave/base/json_writer.h"

#include <charconv>
#include <cmath>
#include <cstddef>

#include "conclave/base/utf8.h"

namespace conclave {
namespace {

void AppendEscaped(std::string& out, char c) {
  constexpr char kHex[] = "0123456789abcdef";
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      out += "\\u00";
      out += kHex[static_cast<uint8_t>(c) >> 4];
      out += kHex[static_cast<uint8_t>(c) & 15];
  }
}

bool IsPlain(char c) {
  const auto byte = static_cast<uint8_t>(c);
  return byte >= 0x20 && byte < 0x7F && c != '"' && c != '\\';
}

}  // namespace

void JsonWriter::Separate() {
  if (needs_comma_) {
    out_ += ',';
  }
  needs_comma_ = true;
}

JsonWriter& JsonWriter::Open(char bracket) {
  Separate();
  out_ += bracket;
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::Close(char bracket) {
  out_ += bracket;
  needs_comma_ = true;
  return *this;
}

JsonWriter& JsonWriter::Raw(std::string_view text) {
  Separate();
  out_ += text;
  return *this;
}

JsonWriter& JsonWriter::Key(std::string_view name) {
  Separate();
  out_ += '"';
  out_ += name;
  out_ += "\":";
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::String(std::string_view value) {
  Separate();
  out_ += '"';
  size_t at = 0;
  while (at < value.size()) {
    size_t end = at;
    while (end < value.size() && IsPlain(value[end])) {
      ++end;
    }
    out_ += value.substr(at, end - at);
    at = end;
    if (at == value.size()) {
      break;
    }
    const size_t length = Utf8SequenceBytes(value.substr(at));
    const std::string_view piece = value.substr(at, length);
    if (length == 0) {
      out_ += "\xEF\xBF\xBD";
    } else if (length == 1) {
      AppendEscaped(out_, value[at]);
    } else if (piece == "\xE2\x80\xA8") {
      out_ += "\\u2028";
    } else if (piece == "\xE2\x80\xA9") {
      out_ += "\\u2029";
    } else {
      out_ += piece;
    }
    at += length == 0 ? 1 : length;
  }
  out_ += '"';
  return *this;
}

JsonWriter& JsonWriter::Int(int64_t value) { return Raw(std::to_string(value)); }

JsonWriter& JsonWriter::Double(double value) {
  if (!std::isfinite(value)) {
    return Null();
  }
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value);
  return Raw(std::string_view(text, static_cast<size_t>(end.ptr - text)));
}

JsonWriter& JsonWriter::Float(float value) {
  if (!std::isfinite(value)) {
    return Null();
  }
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value);
  return Raw(std::string_view(text, static_cast<size_t>(end.ptr - text)));
}

JsonWriter& JsonWriter::Bool(bool value) { return Raw(value ? "true" : "false"); }
JsonWriter& JsonWriter::Null() { return Raw("null"); }

}  // namespace conclave
