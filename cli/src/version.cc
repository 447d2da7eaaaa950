// `conclave version`: what was built and what of it runs here.
#include <string>

#include "commands.h"
#include "conclave/kernels/isa.h"
#include "conclave/service/exit_codes.h"
#include "output.h"

namespace conclave::cli {
namespace {

#ifdef CONCLAVE_FAILPOINTS
constexpr bool kHasFailpoints = true;
#else
constexpr bool kHasFailpoints = false;
#endif

std::string IsaList(const char* separator, const char* quote) {
  std::string out;
  for (const kernels::Isa isa : kernels::SupportedIsas()) {
    out += (out.empty() ? "" : separator) + (quote + std::string(kernels::NameOf(isa)) + quote);
  }
  return out;
}

}  // namespace

int RunVersion(const Invocation& invocation) {
  using service::ExitCode;
  bool is_json = false;
  service::OptionSet set("conclave version", Version(), "Prints the version.");
  set.Add({.name = "json", .help = "print one JSON object"}, &is_json);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (is_json) {
    return PrintResult(
        R"({"version":")" + Version() + R"(","compiler":")" CONCLAVE_COMPILER R"(","failpoints":)" +
        (kHasFailpoints ? "true" : "false") + R"(,"isa":[)" + IsaList(",", "\"") + "]}\n");
  }
  return PrintResult("conclave " + Version() + "\ncompiler: " CONCLAVE_COMPILER "\nisa: " +
                     IsaList(", ", "") + "\n" + (kHasFailpoints ? "failpoints: yes\n" : ""));
}

}  // namespace conclave::cli
