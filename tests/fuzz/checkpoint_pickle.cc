// The pickle inside torch.save's files.
//
// Promises: it is refused as "pickle_refused", or gives tensors whose names are distinct and whose
// numbers have the signs and counts that the header of the reader states.
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "safetensors.h"
#include "tensor_pickle.h"

namespace conclave::checkpoint {
namespace {

void CheckPickle(std::string_view bytes) {
  const absl::StatusOr<std::vector<PickledTensor>> tensors = ReadTensorPickle(bytes);
  if (!tensors.ok()) {
    CONCLAVE_CHECK(ReasonOf(tensors.status()) == "pickle_refused");
    return;
  }
  std::set<std::string> names;
  for (const PickledTensor& tensor : *tensors) {
    CONCLAVE_CHECK(names.insert(tensor.name).second);
    CONCLAVE_CHECK(tensor.shape.size() <= kDimsMax);
    CONCLAVE_CHECK(tensor.shape.size() == tensor.strides.size());
    CONCLAVE_CHECK(tensor.first_element >= 0 && tensor.storage_elements >= 0);
    for (size_t axis = 0; axis < tensor.shape.size(); ++axis) {
      CONCLAVE_CHECK(tensor.shape[axis] >= 0 && tensor.strides[axis] >= 0);
    }
  }
}

}  // namespace
}  // namespace conclave::checkpoint

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::checkpoint::CheckPickle({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
