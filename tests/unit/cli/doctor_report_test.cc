// Goal: doctor's report says what was found and warns of what hurts.
// Method: reports made by hand; one real examination.
#include "doctor_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

DoctorReport Healthy() {
  DoctorReport report;
  report.machine.cpu_model = "Some \"CPU\"";
  report.machine.cpu_flags = {"avx2", "avx512_bf16", "avx512f"};
  report.machine.num_cores = 8;
  report.machine.num_cpus = 16;
  report.machine.memory_bytes = int64_t{64} << 30;
  report.machine.memory_available_bytes = int64_t{60} << 30;
  report.machine.huge_pages = "madvise";
  report.limits = {65536, -1, 0};
  report.cuda.state = "no driver";
  report.channels = {"1.13.1", {"posix", "tcp"}, "", "ucx", "both ends have it",
                     "grpc",   "untrusted"};
  report.grpc_version = "1.51.1";
  report.isas = {"scalar", "avx512-bf16"};
  report.read_bandwidth = 42e9;
  report.peaks = {.f32_fma = 1e12, .bf16_dot = 2e12, .int8_dot = std::nullopt};
  report.threads = 8;
  report.isa = "avx512-bf16";
  report.isa_why = "the best path there is";
  report.dtype = "bf16";
  return report;
}

TEST(DoctorReportTest, HealthyMachineHasNoWarnings) {
  EXPECT_THAT(WarningsOf(Healthy()), IsEmpty());
}

TEST(DoctorReportTest, L14LowLimitsWarnWithTheNeededValue) {
  DoctorReport report = Healthy();
  report.limits.open_files = 1024;
  ASSERT_EQ(WarningsOf(report).size(), 1U);
  EXPECT_THAT(WarningsOf(report)[0], HasSubstr("10256"));
}

TEST(DoctorReportTest, WhatSlowsDownOrLeaksWarns) {
  DoctorReport report = Healthy();
  report.machine.huge_pages = "never";
  report.machine.cpu_quota = 2.5;
  report.limits.core_bytes = -1;
  report.isa = "scalar";
  EXPECT_EQ(WarningsOf(report).size(), 4U);
}

TEST(DoctorReportTest, ChannelsAreNamedWithTheChoiceAndItsReason) {
  DoctorReport report = Healthy();
  EXPECT_THAT(ToText(report), HasSubstr("1.13.1: posix, tcp"));
  EXPECT_THAT(ToText(report), HasSubstr("ucx on one machine (both ends have it), grpc between"));
  report.channels = {
      "", {}, "ucx: no usable transport", "grpc", "ucx: no usable transport", "grpc", "untrusted"};
  EXPECT_THAT(ToText(report), HasSubstr("grpc on one machine (ucx: no usable transport)"));
  const ChannelFindings found = ProbeChannels();
  EXPECT_EQ(found.local, found.ucx_version.empty() ? "grpc" : "ucx") << found.ucx_why;
  EXPECT_EQ(found.network, "grpc");
  EXPECT_EQ(found.ucx_transports.empty(), found.ucx_version.empty());
}

TEST(DoctorReportTest, JsonReadsBackWithNullForUnlimited) {
  DoctorReport report = Healthy();
  report.cuda = {"present", {{"H100", int64_t{80} << 30}}};
  const auto json = boost::json::parse(ToJson(report));
  EXPECT_EQ(json.at_pointer("/cpu/model").as_string(), "Some \"CPU\"");
  EXPECT_EQ(json.at_pointer("/cpu/cores").as_int64(), 8);
  EXPECT_TRUE(json.at_pointer("/cpu/quota").is_null());
  EXPECT_TRUE(json.at_pointer("/memory/limit_bytes").is_null());
  EXPECT_TRUE(json.at_pointer("/limits/locked_bytes").is_null());
  EXPECT_EQ(json.at_pointer("/memory/read_bytes_per_second").as_double(), 42e9);
  EXPECT_EQ(json.at_pointer("/arithmetic/bf16_gemm_operations_per_second").as_double(), 2e12);
  EXPECT_TRUE(json.at_pointer("/arithmetic/int8_dot_operations_per_second").is_null());
  EXPECT_EQ(json.at_pointer("/cuda/devices/0/name").as_string(), "H100");
  EXPECT_EQ(json.at_pointer("/defaults/threads").as_int64(), 8);
  EXPECT_EQ(json.at_pointer("/apis/grpc_version").as_string(), "1.51.1");
  EXPECT_EQ(json.at_pointer("/isa/supported/1").as_string(), "avx512-bf16");
}

TEST(DoctorReportTest, TextSaysTheChoicesAndTheirReasons) {
  const std::string text = ToText(Healthy());
  EXPECT_THAT(text, HasSubstr("8 (16 logical)"));
  EXPECT_THAT(text, HasSubstr("42.0 GB/s with 8 threads"));
  EXPECT_THAT(text, HasSubstr("f32 1000, bf16 2000, int8 unknown Gop/s"));
  EXPECT_THAT(text, HasSubstr("avx512-bf16 (the best path there is)"));
  EXPECT_THAT(text, HasSubstr("no cgroup limit"));
  EXPECT_THAT(text, HasSubstr("http, grpc 1.51.1 (with --grpc-listen)"));
}

}  // namespace
}  // namespace conclave::cli
