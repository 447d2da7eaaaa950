#include "conclave/checkpoint/safetensors_writer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "file_output.h"
#include "json.h"
#include "safetensors.h"

namespace conclave::checkpoint {
namespace {

std::string HeaderText(std::span<const TensorSpec> tensors) {
  boost::json::object header;
  header["__metadata__"] = {{"format", "pt"}};
  int64_t begin = 0;
  for (const TensorSpec& tensor : tensors) {
    boost::json::array shape(tensor.shape.begin(), tensor.shape.end());
    const int64_t end = begin + tensor.size_bytes();
    const std::string_view word = FormatWord(tensor.dtype);
    header[{tensor.name.data(), tensor.name.size()}] = {
        {"dtype", boost::json::string(word.data(), word.size())},
        {"shape", std::move(shape)},
        {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = boost::json::serialize(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

}  // namespace

int64_t TensorSpec::num_elements() const {
  int64_t num = 1;
  for (const int64_t size : shape) {
    num *= size;
  }
  return num;
}

int64_t TensorSpec::size_bytes() const {
  return num_elements() * static_cast<int64_t>(SizeOf(dtype));
}

struct SafetensorsWriter::State {
  UniqueFd fd;
  std::string path;
  std::vector<TensorSpec> tensors;
  std::vector<int64_t> offsets;  // of each tensor, from the start of the file
  int64_t file_bytes = 0;
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
SafetensorsWriter::~SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&& other) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&& other) noexcept = default;

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            std::vector<TensorSpec> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const TensorSpec& a, const TensorSpec& b) {
    return SizeOf(a.dtype) != SizeOf(b.dtype) ? SizeOf(a.dtype) > SizeOf(b.dtype) : a.name < b.name;
  });
  auto state = std::make_unique<State>();
  state->path = path;
  state->tensors = std::move(tensors);
  const std::string header = HeaderText(state->tensors);
  state->file_bytes = static_cast<int64_t>(sizeof(uint64_t) + header.size());
  for (const TensorSpec& tensor : state->tensors) {
    state->offsets.push_back(state->file_bytes);
    state->file_bytes += tensor.size_bytes();
  }
  CONCLAVE_ASSIGN_OR_RETURN(state->fd, CreateFile(path, state->file_bytes));
  const uint64_t length = header.size();
  CONCLAVE_RETURN_IF_ERROR(
      PwriteAll(state->fd.get(), path, 0, std::as_bytes(std::span(&length, 1))));
  CONCLAVE_RETURN_IF_ERROR(
      PwriteAll(state->fd.get(), path, sizeof(length), std::as_bytes(std::span(header))));
  return SafetensorsWriter(std::move(state));
}

std::span<const TensorSpec> SafetensorsWriter::tensors() const { return state_->tensors; }
int64_t SafetensorsWriter::file_bytes() const { return state_->file_bytes; }

absl::Status SafetensorsWriter::Write(size_t index, int64_t offset_bytes,
                                      std::span<const std::byte> bytes) const {
  CONCLAVE_CHECK(index < state_->tensors.size() && offset_bytes >= 0 &&
                 offset_bytes + static_cast<int64_t>(bytes.size()) <=
                     state_->tensors[index].size_bytes());
  return PwriteAll(state_->fd.get(), state_->path, state_->offsets[index] + offset_bytes, bytes);
}

absl::Status SafetensorsWriter::Finish() { return SyncAndClose(state_->fd, state_->path); }

absl::Status SaveSafetensors(const std::string& path, std::span<const TensorValues> tensors) {
  std::vector<TensorSpec> specs;
  for (const TensorValues& tensor : tensors) {
    CONCLAVE_CHECK(static_cast<int64_t>(tensor.values.size()) == tensor.spec.num_elements());
    specs.push_back(tensor.spec);
  }
  CONCLAVE_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                            SafetensorsWriter::Create(path, std::move(specs)));
  for (size_t i = 0; i < writer.tensors().size(); ++i) {
    const TensorSpec& spec = writer.tensors()[i];
    const auto found = std::find_if(tensors.begin(), tensors.end(), [&spec](const TensorValues& t) {
      return t.spec.name == spec.name;
    });
    if (spec.dtype == DType::kF32) {
      CONCLAVE_RETURN_IF_ERROR(writer.Write(i, 0, std::as_bytes(std::span(found->values))));
      continue;
    }
    CONCLAVE_CHECK(spec.dtype == DType::kBf16 || spec.dtype == DType::kF16);
    std::vector<uint16_t> halves;
    halves.reserve(found->values.size());
    for (const float value : found->values) {
      halves.push_back(spec.dtype == DType::kBf16 ? ToBf16(value).bits : FloatToHalf(value));
    }
    CONCLAVE_RETURN_IF_ERROR(writer.Write(i, 0, std::as_bytes(std::span(halves))));
  }
  return writer.Finish();
}

}  // namespace conclave::checkpoint
