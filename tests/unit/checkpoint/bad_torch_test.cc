// Goal: a weight file of torch.save can ask for nothing: no call, no memory, no byte outside its
// tensors. Method: rows C01 to C15 of the bad-input catalogue as concrete archives, each with one
// thing wrong; the reason and the words of the message are in the table.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "bad_checkpoint.h"
#include "conclave/base/cpu_time.h"
#include "small_model.h"
#include "tensor_pickle.h"
#include "torch_file.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;
namespace p = pickle;
using ::testing::HasSubstr;

constexpr char kTorch[] = "pytorch_model.bin";

// Storage "0" of four floats, and a tensor of it.
std::string Storage() { return p::Storage("FloatStorage", "0", 4); }
std::string Tensor() { return p::Tensor(Storage(), 0, {4}, {1}); }

struct Row {
  std::string id;
  std::string pickle;
  std::string reason;
  std::string words;
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.id; }
std::string NameOfRow(const ::testing::TestParamInfo<Row>& info) { return info.param.id; }

class BadPickle : public ::testing::TestWithParam<Row> {};

TEST_P(BadPickle, IsRefused) {
  const TemporaryFolder folder;
  SmallModel().WriteConfigs(folder.path());
  WriteFile(folder / kTorch, MakeZip({{.name = "a/data.pkl", .bytes = GetParam().pickle},
                                      {.name = "a/data/0", .bytes = std::string(16, '\0')}}));
  ExpectRefused(Open(folder.path()), GetParam().reason, {kTorch, GetParam().words});
}

INSTANTIATE_TEST_SUITE_P(
    C14_calls, BadPickle,
    ::testing::Values(
        Row{"os_system", "\x80\x02" + p::Global("os", "system") + "(" + p::String("id") + "tR.",
            "pickle_refused", "the pickle names os.system"},
        Row{"builtin_eval", p::Dict(p::String("w") + p::Global("builtins", "eval") + ")R"),
            "pickle_refused", "builtins.eval"},
        Row{"eval_from_the_stack", "\x80\x04" + p::String("builtins") + p::String("eval") + "\x93.",
            "pickle_refused", "builtins.eval"},
        Row{"other_torch_function", p::Dict(p::String("w") + p::Global("torch", "load") + ")R"),
            "pickle_refused", "torch.load"},
        Row{"storage_of_unknown_type", p::Dict(p::String("w") + p::Global("torch", "QInt8Storage")),
            "pickle_refused", "torch.QInt8Storage"},
        Row{"name_with_control_characters",
            "\x80\x02"
            "cos\x1b[2J\nsystem\n.",
            "pickle_refused", "os?[2J.system"},
        Row{"object_of_a_class", p::Dict(p::String("w") + ")\x81"), "pickle_refused",
            "instruction 0x81"},
        Row{"old_instance", "\x80\x02(ios\nsystem\n.", "pickle_refused", "instruction 0x69"},
        Row{"extension_registry", "\x80\x02\x82\x01.", "pickle_refused", "instruction 0x82"},
        Row{"out_of_band_buffer", "\x80\x05\x97.", "pickle_refused", "instruction 0x97"},
        Row{"text_persistent_id", "\x80\x02Pkey\n.", "pickle_refused", "instruction 0x50"},
        Row{"call_of_a_dictionary", "\x80\x02})R.", "pickle_refused", "a call of a dictionary"},
        Row{"call_of_a_storage_type", "\x80\x02" + p::Global("torch", "FloatStorage") + ")R.",
            "pickle_refused", "a call of a type"},
        Row{"dictionary_of_values", "\x80\x02" + p::Global("collections", "OrderedDict") + "(]tR.",
            "pickle_refused", "an ordered dictionary made from a value"},
        Row{"attributes_of_a_tensor", p::Dict(p::String("w") + Tensor() + "}b"), "pickle_refused",
            "expected a dictionary, found a tensor"},
        Row{"attributes_of_a_function",
            "\x80\x02" + p::Global("collections", "OrderedDict") + "}b.", "pickle_refused",
            "expected a dictionary, found a function"}),
    NameOfRow);

INSTANTIATE_TEST_SUITE_P(
    C14_structure, BadPickle,
    ::testing::Values(
        Row{"empty", "", "pickle_refused", "ends within an instruction"},
        Row{"no_stop", "\x80\x02}", "pickle_refused", "ends within an instruction"},
        Row{"cut_string",
            "\x80\x02X\xff\xff\xff\xff"
            "ab",
            "pickle_refused", "ends within an instruction"},
        Row{"cut_global",
            "\x80\x02"
            "ctorch",
            "pickle_refused", "ends within an instruction"},
        Row{"protocol_0", "(dp0\n.", "pickle_refused", "instruction 0x64"},
        Row{"protocol_9", "\x80\x09}.", "pickle_refused", "protocol 9"},
        Row{"empty_stack", "\x80\x02.", "pickle_refused", "expected one dictionary"},
        Row{"two_values", "\x80\x02}}.", "pickle_refused", "several values"},
        Row{"a_list", "\x80\x02].", "pickle_refused", "found a list"},
        Row{"a_tensor_alone", "\x80\x02" + Tensor() + ".", "pickle_refused", "found a tensor"},
        Row{"bytes_behind", p::Dict(p::String("w") + Tensor()) + "x", "pickle_refused",
            "bytes behind"},
        Row{"tuple_of_nothing", "\x80\x02\x87.", "pickle_refused", "where there is none"},
        Row{"reduce_of_nothing", "\x80\x02R.", "pickle_refused", "where there is none"},
        Row{"items_without_a_mark", "\x80\x02}u.", "pickle_refused", "none was begun"},
        Row{"key_without_a_value", "\x80\x02}(Nu.", "pickle_refused", "a key without a value"},
        Row{"memo_of_nothing", "\x80\x02q\x01.", "pickle_refused", "where there is none"},
        Row{"memo_never_kept", "\x80\x02h\x05.", "pickle_refused", "value 5, which was never kept"},
        Row{"mark_memo", "\x80\x02(q\x01h\x01t.", "pickle_refused", "expected one dictionary"},
        Row{"number_under_a_name", p::Dict(p::String("epoch") + p::Int(3)), "pickle_refused",
            "found an integer under \"epoch\""},
        Row{"dictionary_under_a_name", p::Dict(p::String("state_dict") + "}"), "pickle_refused",
            "found a dictionary under \"state_dict\""},
        Row{"number_as_a_name", p::Dict(p::Int(3) + Tensor()), "pickle_refused",
            "under an integer"},
        Row{"name_twice", p::Dict(p::String("w") + Tensor() + p::String("w") + Tensor()),
            "pickle_refused", "tensor w stands twice"},
        Row{"storage_of_another_form", p::Dict(p::String("w") + "(" + p::String("module") + "tQ"),
            "pickle_refused", "expected a tensor's storage"},
        Row{"long_of_nine_bytes", std::string("\x80\x02\x8a\x09") + std::string(9, '\x01') + ".",
            "pickle_refused", "more than 64 bits"}),
    NameOfRow);

std::string One(const std::string& tensor) { return p::Dict(p::String("w") + tensor); }

INSTANTIATE_TEST_SUITE_P(
    C06_C07_extents, BadPickle,
    ::testing::Values(
        Row{"negative_size", One(p::Tensor(Storage(), 0, {-4}, {1})), "pickle_refused",
            "tensor w: shape: expected whole numbers"},
        Row{"negative_stride", One(p::Tensor(Storage(), 3, {4}, {-1})), "pickle_refused",
            "tensor w: strides: expected whole numbers"},
        Row{"negative_offset", One(p::Tensor(Storage(), -1, {4}, {1})), "pickle_refused",
            "offset or strides"},
        Row{"size_that_overflows", One(p::Tensor(Storage(), 0, {INT64_MAX, 4}, {4, 1})),
            "tensor_shape", "overflows"},
        Row{"stride_that_overflows", One(p::Tensor(Storage(), 0, {2, 2}, {INT64_MAX, 1})),
            "tensor_offsets", "passes the end of its storage"},
        Row{"offset_that_overflows", One(p::Tensor(Storage(), INT64_MAX, {4}, {1})),
            "tensor_offsets", "passes the end of its storage"},
        Row{"too_many_axes",
            One(p::Tensor(Storage(), 0, std::vector<int64_t>(33, 1), std::vector<int64_t>(33, 1))),
            "pickle_refused", "33 axes"},
        Row{"fewer_strides_than_axes", One(p::Tensor(Storage(), 0, {2, 2}, {1})), "pickle_refused",
            "offset or strides"},
        Row{"past_the_storage", One(p::Tensor(Storage(), 1, {4}, {1})), "tensor_offsets",
            "storage of 4 elements"},
        Row{"repeated_elements", One(p::Tensor(Storage(), 0, {1000000, 4}, {0, 1})),
            "tensor_offsets", "strides repeat elements"},
        Row{"storage_longer_than_its_entry",
            One(p::Tensor(p::Storage("FloatStorage", "0", 5), 0, {4}, {1})), "tensor_offsets",
            "expected 5 elements of 4 bytes, found 16 bytes"},
        Row{"storage_of_another_type",
            One(p::Tensor(p::Storage("BFloat16Storage", "0", 4), 0, {4}, {1})), "tensor_offsets",
            "found 16 bytes"},
        Row{"storage_size_that_overflows",
            One(p::Tensor(p::Storage("FloatStorage", "0", INT64_MAX), 0, {4}, {1})),
            "tensor_offsets", "its storage is not as long as it says"},
        Row{"storage_missing", One(p::Tensor(p::Storage("FloatStorage", "7", 4), 0, {4}, {1})),
            "torch_zip", "storage \"7\" is not in the archive"},
        Row{"storage_outside_the_archive",
            One(p::Tensor(p::Storage("FloatStorage", "../../etc/passwd", 4), 0, {4}, {1})),
            "torch_zip", "is not in the archive"},
        Row{"overlapping_slices",
            p::Dict(p::String("a") + p::Tensor(Storage(), 0, {3}, {1}) + p::String("b") +
                    p::Tensor(Storage(), 2, {2}, {1})),
            "tensor_offsets", "tensor b: overlaps tensor a"},
        Row{"slice_within_another",
            p::Dict(p::String("a") + p::Tensor(Storage(), 0, {4}, {1}) + p::String("b") +
                    p::Tensor(Storage(), 0, {2}, {1})),
            "tensor_offsets", "overlaps"}),
    NameOfRow);

// Memory and time are bounded by the pickle's size whatever it says.
TEST(PickleLimits, MarksAndMemosEndInTime) {
  const auto seconds = [](const std::string& bytes) {
    const std::chrono::nanoseconds start = ThreadCpuTime();
    EXPECT_EQ(ReasonOf(ReadTensorPickle(bytes).status()), "pickle_refused");
    return std::chrono::duration<double>(ThreadCpuTime() - start).count();
  };
  const size_t size = static_cast<size_t>(kPickleBytesMax) - 16;
  EXPECT_LT(seconds("\x80\x02" + std::string(size, '(')), 10);
  EXPECT_LT(seconds("\x80\x02" + std::string(size, ']')), 10);
  std::string nested = "\x80\x02)";
  for (size_t i = 0; i < 900'000; ++i) {
    nested += "\x85";  // A tuple of a tuple of a tuple...
  }
  EXPECT_LT(seconds(nested + "."), 10);
  // A call with a long list of arguments, again and again.
  std::string calls = "\x80\x02" + p::Global("collections", "OrderedDict") + "q\x01(" +
                      std::string(500'000, 'N') + "tq\x02";
  for (size_t i = 0; i < 400'000; ++i) {
    calls += "h\x01h\x02R";
  }
  EXPECT_LT(seconds(calls), 10);
}

TEST_F(BadCheckpoint, C14_pickle_larger_than_any_models) {
  fs::remove(folder_ / kWeights);
  WriteFile(folder_ / kTorch,
            MakeZip({{.name = "a/data.pkl",
                      .bytes = std::string(static_cast<size_t>(kPickleBytesMax) + 1, '(')}}));
  ExpectRefusedWith("pickle_refused", {kTorch, "data.pkl: too large"});
}

// The zip around it.
class BadZip : public BadCheckpoint {
 protected:
  BadZip() {
    parts_ = TorchParts(SmallModel::Tensors(folder_.path()));
    fs::remove(folder_ / kWeights);
    WriteFile(folder_ / kTorch, MakeZip(parts_));
    EXPECT_TRUE(Open(folder_.path()).ok()) << Open(folder_.path());
  }
  void ExpectZipRefused(const std::vector<std::string>& words, bool is_64 = false) {
    ExpectBytesRefused(MakeZip(parts_, is_64), words);
  }
  void ExpectBytesRefused(const std::string& bytes, std::vector<std::string> words) {
    WriteFile(folder_ / kTorch, bytes);
    words.emplace_back(kTorch);
    ExpectRefusedWith("torch_zip", words);
  }
  std::vector<ZipPart> parts_;
};

TEST_F(BadZip, C02_truncated_anywhere) {
  const std::string whole = MakeZip(parts_);
  for (size_t size = 0; size < whole.size(); size += 61) {
    WriteFile(folder_ / kTorch, whole.substr(0, size));
    const absl::Status status = Open(folder_.path());
    EXPECT_EQ(ReasonOf(status), "torch_zip") << size << ": " << status;
  }
}

TEST_F(BadZip, C03_compressed_entry) {
  parts_[2].method = 8;
  ExpectZipRefused({"archive/data/1", "compressed"});
  parts_[2].method = 0;
  parts_[2].plain_bytes = INT64_C(1) << 31;  // A bomb: few bytes that claim to be many.
  ExpectZipRefused({"archive/data/1", "compressed"});
}

TEST_F(BadZip, C03_encrypted_entry) {
  parts_[2].flags = 1;
  ExpectZipRefused({"archive/data/1", "encrypted"});
}

TEST_F(BadZip, C03_sizes_past_the_end) {
  for (const int64_t size : {INT64_C(1) << 30, INT64_C(1) << 40, INT64_MAX}) {
    parts_[1].plain_bytes = parts_[1].packed_bytes = size;
    ExpectZipRefused({"archive/data/0", "outside the archive"}, /*is_64=*/true);
  }
  parts_[1].plain_bytes = parts_[1].packed_bytes = -1;
  parts_[1].begins_at = INT64_MAX;
  ExpectZipRefused({"archive/data/0", "begins outside"}, /*is_64=*/true);
}

TEST_F(BadZip, C07_two_entries_at_one_place) {
  parts_[2].begins_at = 0;
  parts_[2].name = parts_[0].name;
  ExpectZipRefused({"overlaps"});
}

TEST_F(BadZip, C07_entry_that_reaches_into_the_next) {
  parts_[1].plain_bytes = parts_[1].packed_bytes = static_cast<int64_t>(parts_[1].bytes.size()) + 1;
  ExpectZipRefused({"archive/data/1", "overlaps entry archive/data/0"});
}

TEST_F(BadZip, C04_name_twice) {
  parts_[2].name = parts_[1].name;
  ExpectZipRefused({"archive/data/0", "stands twice"});
}

TEST_F(BadZip, C04_name_differs_from_the_directory) {
  parts_[1].local_name = "archive/data/X";
  ExpectZipRefused({"archive/data/0", "another name"});
}

TEST_F(BadZip, C04_offset_that_is_no_entry) {
  parts_[1].begins_at = 7;
  ExpectZipRefused({"archive/data/0"});
}

TEST_F(BadZip, C04_no_pickle_or_two) {
  std::vector<ZipPart> parts = parts_;
  parts_[0].name = "archive/other.pkl";
  ExpectZipRefused({"no entry data.pkl"});
  parts_ = parts;
  parts_.push_back({.name = "second/data.pkl", .bytes = parts[0].bytes});
  ExpectZipRefused({"two entries data.pkl"});
}

TEST_F(BadZip, C04_byte_order) {
  parts_.push_back({.name = "archive/byteorder", .bytes = "big"});
  ExpectZipRefused({"byteorder"});
  parts_.back().bytes = "little";
  WriteFile(folder_ / kTorch, MakeZip(parts_));
  EXPECT_TRUE(Open(folder_.path()).ok());
}

TEST_F(BadZip, C03_ends_that_lie) {
  const std::string good = MakeZip(parts_);
  const size_t end = good.size() - 22;
  const auto with = [&](size_t at, std::string_view bytes) {
    std::string bad = good;
    bad.replace(end + at, bytes.size(), bytes);
    return bad;
  };
  using std::string_literals::operator""s;
  ExpectBytesRefused(with(4, "\x01"s), {"several parts"});
  ExpectBytesRefused(with(8, "\xfe\xff\xfe\xff"s), {"bad record"});
  ExpectBytesRefused(with(12, "\xfe\xff\xff\xff"s), {"the directory"});
  ExpectBytesRefused(with(16, "\xfe\xff\xff\x7f"s), {"outside the file"});
  ExpectBytesRefused(with(16, "\xff\xff\xff\xff"s), {"zip64"});
  ExpectBytesRefused(with(20, "\x01"s), {"no end of a zip directory"});
  std::string lying = MakeZip(parts_, /*is_64=*/true);
  lying.replace(lying.size() - 22 - 20 + 8, 8, std::string(8, '\xff'));
  ExpectBytesRefused(lying, {"zip64"});
}

TEST_F(BadZip, C14_the_format_of_before_1_6_and_others) {
  WriteFile(folder_ / kTorch, "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.");
  ExpectRefusedWith("pickle_refused", {kTorch, "before 1.6", "torch.save(torch.load("});
  ExpectBytesRefused("GGUF and more", {"no zip archive"});
  ExpectBytesRefused("", {"no zip archive"});
}

TEST_F(BadZip, C11_shards_without_their_index) {
  fs::rename(folder_ / kTorch, folder_ / "pytorch_model-00001-of-00001.bin");
  ExpectRefusedWith("model_file_missing",
                    {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"});
  fs::rename(folder_ / "pytorch_model-00001-of-00001.bin", folder_ / kTorch);
}

}  // namespace
}  // namespace conclave::checkpoint
