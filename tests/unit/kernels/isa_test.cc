// Goal: the words of --isa name the paths, and a wrong word is refused with a reason that says what
// to do.
#include "conclave/kernels/isa.h"

#include "conclave/base/status.h"
#include "conclave/kernels/context.h"
#include "kernels_testing.h"

namespace conclave::kernels {
namespace {

TEST(IsaTest, ScalarIsAlwaysSupportedAndFirst) {
  ASSERT_FALSE(SupportedIsas().empty());
  EXPECT_EQ(SupportedIsas().front(), Isa::kScalar);
}

TEST(IsaTest, AutoIsTheLastSupportedPath) {
  const absl::StatusOr<Isa> isa = ResolveIsa("auto");
  ASSERT_TRUE(isa.ok());
  EXPECT_EQ(*isa, SupportedIsas().back());
}

TEST(IsaTest, EveryNameResolvesToItsPathOrSaysThatTheCpuLacksIt) {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    const absl::StatusOr<Isa> resolved = ResolveIsa(NameOf(isa));
    if (IsSupported(isa)) {
      ASSERT_TRUE(resolved.ok()) << NameOf(isa);
      EXPECT_EQ(*resolved, isa);
    } else {
      EXPECT_EQ(resolved.status().code(), absl::StatusCode::kFailedPrecondition);
      EXPECT_EQ(ReasonOf(resolved.status()), "isa_unsupported");
    }
  }
}

TEST(IsaTest, UnknownWordsAreInvalid) {
  for (const std::string_view word : {"", "AVX2", "avx512bf16", "sse2", "auto ", "scalar\n"}) {
    const absl::StatusOr<Isa> resolved = ResolveIsa(word);
    EXPECT_EQ(resolved.status().code(), absl::StatusCode::kInvalidArgument) << word;
    EXPECT_EQ(ReasonOf(resolved.status()), "isa_unknown") << word;
  }
}

TEST(IsaTest, EveryPathHasATableOfItsOwn) {
  const std::vector<Isa> isas = SupportedIsas();
  for (size_t i = 1; i < isas.size(); ++i) {
    EXPECT_NE(&TableFor(isas[i - 1]), &TableFor(isas[i]));
  }
}

}  // namespace
}  // namespace conclave::kernels
