// Goal: files that are missing, are no files, are somebody else's or change under the reader are
// refused by name. Method: rows C01, C12, C14, C15 and C27 of the bad-input catalogue as concrete
// files in a small model; each must give its reason and name the file, and a good model must still
// open afterwards.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>

#include "bad_checkpoint.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/safetensors_writer.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;

TEST_F(BadCheckpoint, C01_file_missing) {
  fs::remove(folder_ / kWeights);
  ExpectRefusedWith("model_file_missing", {kWeights, folder_.path()});
  fs::remove(folder_ / "config.json");
  ExpectRefusedWith("model_file_missing", {"config.json"});
  ExpectRefused(Open(folder_.path() + "/nowhere"), "model_file_missing", {"nowhere"});
}

TEST_F(BadCheckpoint, C01_directory_in_place_of_a_file) {
  fs::remove(folder_ / kWeights);
  fs::create_directory(folder_ / kWeights);
  ExpectRefusedWith("model_file_missing", {kWeights, "is a folder"});
}

TEST_F(BadCheckpoint, C01_file_in_place_of_the_folder) {
  ExpectRefused(Open((folder_ / "config.json").string()), "model_file_missing",
                {"config.json", "is a file"});
}

TEST_F(BadCheckpoint, C01_unreadable) {
  if (::geteuid() == 0) {
    GTEST_SKIP() << "root reads everything";
  }
  fs::permissions(folder_ / kWeights, fs::perms::none);
  ExpectRefusedWith("model_file_missing", {kWeights, "Permission denied"});
}

TEST_F(BadCheckpoint, C01_dangling_link) {
  fs::remove(folder_ / kWeights);
  fs::create_symlink("nothing-here", folder_ / kWeights);
  ExpectRefusedWith("model_file_missing", {kWeights, "link"});
}

TEST_F(BadCheckpoint, C01_link_out_of_the_folder) {
  const TemporaryFolder other;
  fs::rename(folder_ / kWeights, other / kWeights);
  fs::create_symlink(other / kWeights, folder_ / kWeights);
  ExpectRefusedWith("model_path_escape", {kWeights, "leaves the model folder"});
}

TEST_F(BadCheckpoint, C01_link_within_the_folder_is_fine) {
  fs::create_directory(folder_ / "blobs");
  fs::rename(folder_ / kWeights, folder_ / "blobs/a1b2");
  fs::create_symlink("blobs/a1b2", folder_ / kWeights);
  EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
}

TEST_F(BadCheckpoint, C01_folder_whose_name_begins_alike_is_outside) {
  const std::string twin = folder_.path() + "-twin";
  fs::create_directory(twin);
  fs::rename(folder_ / kWeights, twin + "/w");
  fs::create_symlink(twin + "/w", folder_ / kWeights);
  ExpectRefusedWith("model_path_escape", {kWeights});
  fs::remove_all(twin);
}

TEST_F(BadCheckpoint, C27_fifo_does_not_block) {
  fs::remove(folder_ / kWeights);
  ASSERT_EQ(::mkfifo((folder_ / kWeights).c_str(), 0600), 0);
  ExpectRefusedWith("not_a_regular_file", {kWeights, "FIFO"});
}

TEST_F(BadCheckpoint, C27_socket) {
  fs::remove(folder_ / kWeights);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = (folder_ / kWeights).string();
  ASSERT_LT(path.size(), sizeof(address.sun_path));
  path.copy(address.sun_path, path.size());
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ExpectRefusedWith("not_a_regular_file", {kWeights});
  ::close(fd);
}

TEST_F(BadCheckpoint, C27_device_and_proc) {
  ExpectRefused(Open("/dev/null"), "not_a_regular_file", {"/dev/null", "device"});
  ExpectRefused(Open("/proc/self/mem"), "not_a_regular_file", {"/proc/self/mem"});
}

TEST_F(BadCheckpoint, C12_truncated_after_open) {
  auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  fs::resize_file(folder_ / kWeights, 100);
  ExpectRefused((*checkpoint)->VerifyUnchanged(), "model_changed_during_load", {kWeights, "size"});
  const int64_t shape[] = {16};
  ExpectRefused((*checkpoint)->Require("model.norm.weight", shape).status(),
                "model_changed_during_load", {kWeights, "model.norm.weight"});
}

TEST_F(BadCheckpoint, C12_replaced_after_open) {
  auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_TRUE((*checkpoint)->VerifyUnchanged().ok());
  WriteFile(folder_ / "new", ReadFile(folder_ / kWeights));
  fs::rename(folder_ / "new", folder_ / kWeights);
  ExpectRefused((*checkpoint)->VerifyUnchanged(), "model_changed_during_load",
                {kWeights, "replaced"});
}

TEST_F(BadCheckpoint, C12_written_to_after_open) {
  auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  fs::last_write_time(folder_ / kWeights,
                      fs::file_time_type::clock::now() + std::chrono::seconds(5));
  ExpectRefused((*checkpoint)->VerifyUnchanged(), "model_changed_during_load",
                {kWeights, "written"});
}

TEST_F(BadCheckpoint, C12_removed_after_open) {
  auto checkpoint = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  fs::remove(folder_ / kWeights);
  ExpectRefused((*checkpoint)->VerifyUnchanged(), "model_changed_during_load", {kWeights});
}

TEST_F(BadCheckpoint, C14_pickle_only) {
  for (const std::string name :
       {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.pt", "model.pth"}) {
    fs::remove(folder_ / kWeights);
    WriteFile(folder_ / name, "\x80\x02}q\x01.");
    ExpectRefusedWith("pickle_refused", {name, "safetensors"});
    fs::remove(folder_ / name);
  }
}

TEST_F(BadCheckpoint, C14_pickle_beside_safetensors_is_not_looked_at) {
  WriteFile(folder_ / "pytorch_model.bin", "\x80\x02}q\x01.");
  EXPECT_TRUE(Open(folder_.path()).ok());
}

// Folders of training that are not a model: refused by name, with how to make one of them.
TEST_F(BadCheckpoint, C15_lora_folder) {
  for (const std::string name : {"adapter_config.json", "adapter_model.safetensors",
                                 "adapter_model.bin", "non_lora_trainables.bin"}) {
    WriteFile(folder_ / name, "x");
    ExpectRefusedWith("model_format_unsupported", {name, "LoRA", "merge_lora_weights.py"});
    fs::remove(folder_ / name);
  }
  EXPECT_TRUE(Open(folder_.path()).ok());
}

TEST_F(BadCheckpoint, C15_projector_alone) {
  WriteFile(folder_ / "mm_projector.bin", "x");
  EXPECT_TRUE(Open(folder_.path()).ok()) << "beside a whole model it is ignored";
  fs::remove(folder_ / kWeights);
  ExpectRefusedWith("model_format_unsupported", {"mm_projector.bin", "projector alone"});
}

TEST_F(BadCheckpoint, C15_deepspeed_state) {
  for (const std::string name :
       {"global_step1200", "layer_0_expert_3_mp_rank_00_model_states.pt"}) {
    fs::create_directory(folder_ / name);
    EXPECT_TRUE(Open(folder_.path()).ok()) << "beside a whole model it is ignored";
    const std::string weights = ReadFile(folder_ / kWeights);
    fs::remove(folder_ / kWeights);
    ExpectRefusedWith("model_format_unsupported", {name, "DeepSpeed", "save_pretrained"});
    WriteFile(folder_ / kWeights, weights);
    fs::remove(folder_ / name);
  }
}

TEST_F(BadCheckpoint, C15_other_formats) {
  fs::remove(folder_ / kWeights);
  for (const std::string name : {"model-q4.gguf", "model.onnx"}) {
    WriteFile(folder_ / name, "GGUF");
    ExpectRefusedWith("model_format_unsupported", {name, "expected safetensors"});
    ExpectRefused(Open((folder_ / name).string()), "model_format_unsupported", {name});
    fs::remove(folder_ / name);
  }
}

}  // namespace
}  // namespace conclave::checkpoint
