#include "manifest_file.h"

#include <memory>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/checkpoint/packed_file.h"
#include "conclave/checkpoint/tensor_list.h"
#include "config_reader.h"
#include "sha256.h"

namespace conclave::checkpoint {
namespace {

constexpr char kReason[] = "model_hash_mismatch";
constexpr int64_t kManifestBytesMax = 64 << 20;
constexpr JsonLimits kManifestLimits{.depth_max = 4, .values_max = 8'000'000};
constexpr char kVersion[] = "conclave-manifest-1";

absl::Status Bad(const std::string& why) {
  return InvalidArgument(kReason, std::string(kManifestFile) + ": " + why);
}

absl::StatusOr<std::unique_ptr<Manifest>> Parse(std::string_view text) {
  const absl::StatusOr<boost::json::value> value = ParseStrict(text, kManifestLimits);
  if (!value.ok()) {
    return Bad("not valid JSON " + MessageOf(value.status()));
  }
  const boost::json::object* object = value->if_object();
  const auto find = [object](std::string_view key) {
    return object == nullptr ? nullptr : object->if_contains({key.data(), key.size()});
  };
  const boost::json::value* version = find("version");
  const boost::json::value* config = find("config");
  const boost::json::value* tensors = find("tensors");
  if (version == nullptr || *version != kVersion || config == nullptr || !config->is_string() ||
      tensors == nullptr || !tensors->is_object()) {
    return Bad(std::string("expected an object of version \"") + kVersion +
               "\", a config's hash and the tensors'");
  }
  auto manifest = std::make_unique<Manifest>();
  if (const boost::json::value* packed = find("packed"); packed != nullptr) {
    if (!packed->is_string()) {
      return Bad("packed: expected a hash, found " + Shown(*packed));
    }
    manifest->packed_hash = std::string(std::string_view(packed->get_string()));
  }
  manifest->config_hash = std::string(std::string_view(config->get_string()));
  for (const auto& member : tensors->get_object()) {
    const std::string name(std::string_view(member.key()));
    if (!member.value().is_string()) {
      return Bad("tensor " + name.substr(0, 128) + ": expected a hash, found " +
                 Shown(member.value()));
    }
    manifest->hash_of[name] = std::string(std::string_view(member.value().get_string()));
  }
  return manifest;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Manifest>> ReadManifest(const ModelFolder& folder,
                                                       bool is_required) {
  if (!folder.Has(kManifestFile)) {
    if (is_required) {
      return Bad("missing in " + folder.path() +
                 "; a checkpoint that must be verified needs one (conclave inspect --manifest)");
    }
    return std::unique_ptr<Manifest>();
  }
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text,
                            folder.ReadText(kManifestFile, kManifestBytesMax, kReason));
  return Parse(text);
}

std::string HashOf(const TensorView& tensor) {
  Sha256 hash;
  hash.AddText(conclave::NameOf(tensor.dtype));
  hash.Add(tensor.shape.data(), tensor.shape.size() * sizeof(int64_t));
  hash.Add(tensor.bytes.data(), tensor.bytes.size());
  return hash.Hex();
}

std::string HashOf(std::string_view config_text) {
  Sha256 hash;
  hash.Add(config_text.data(), config_text.size());
  return hash.Hex();
}

absl::Status CheckTensor(const Manifest& manifest, const TensorView& tensor) {
  const auto found = manifest.hash_of.find(tensor.name);
  const std::string where =
      std::string(tensor.file) + ": tensor " + std::string(tensor.name) + ": ";
  if (found == manifest.hash_of.end()) {
    return InvalidArgument(kReason, where + "not in " + kManifestFile);
  }
  const std::string hash = HashOf(tensor);
  return hash == found->second
             ? absl::OkStatus()
             : InvalidArgument(kReason, where + "not what " + kManifestFile + " says; expected " +
                                            found->second.substr(0, 64) + ", found " + hash);
}

absl::Status CheckPacked(const Manifest& manifest, std::string_view index_hash) {
  if (manifest.packed_hash.empty()) {
    return Bad(std::string("says nothing of ") + kPackedFile +
               "; a packed folder needs one of its own (conclave inspect --manifest)");
  }
  return index_hash == manifest.packed_hash
             ? absl::OkStatus()
             : InvalidArgument(kReason, std::string(kPackedFile) + ": index: not what " +
                                            kManifestFile + " says; expected " +
                                            manifest.packed_hash.substr(0, 64) + ", found " +
                                            std::string(index_hash));
}

absl::Status CheckConfig(const Manifest& manifest, std::string_view config_text) {
  const std::string hash = HashOf(config_text);
  return hash == manifest.config_hash
             ? absl::OkStatus()
             : InvalidArgument(kReason, std::string("config.json: not what ") + kManifestFile +
                                            " says; expected " +
                                            manifest.config_hash.substr(0, 64) + ", found " + hash);
}

std::string PackedManifestText(std::string_view config_text, std::string_view index_hash) {
  return Pretty(boost::json::object{{"version", kVersion},
                                    {"config", Word(HashOf(config_text))},
                                    {"packed", Word(index_hash)},
                                    {"tensors", boost::json::object()}});
}

absl::StatusOr<std::string> ManifestText(const Checkpoint& checkpoint) {
  if (const PackedFile* packed = checkpoint.packed(); packed != nullptr) {
    return PackedManifestText(checkpoint.config_text(), packed->index_hash());
  }
  boost::json::object tensors;
  for (const ExpectedTensor& expected : ExpectedTensors(checkpoint.desc())) {
    if (checkpoint.Find(expected.name) == nullptr) {
      continue;  // Not needed, or Open would have refused.
    }
    CONCLAVE_ASSIGN_OR_RETURN(const TensorView tensor,
                              checkpoint.Require(expected.name, expected.shape));
    tensors[expected.name] = boost::json::string(HashOf(tensor));
    checkpoint.Release(tensor);
  }
  CONCLAVE_RETURN_IF_ERROR(checkpoint.VerifyUnchanged());
  return Pretty(
      boost::json::object{{"version", kVersion},
                          {"config", boost::json::string(HashOf(checkpoint.config_text()))},
                          {"tensors", std::move(tensors)}});
}

}  // namespace conclave::checkpoint
