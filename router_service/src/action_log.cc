#include "action_log.h"

#include <string>

#include "conclave/observability/log.h"

namespace conclave::router_service {

void WriteLog(const LogAction& action) {
  std::string message = action.message;
  for (const auto& [key, value] : action.fields) {
    message += " " + key + "=" + observability::Printable(value, 256);
  }
  switch (action.severity) {
    case Severity::kInfo:
      observability::LogInfo(message);
      return;
    case Severity::kWarning:
      observability::LogWarning(message);
      return;
    case Severity::kError:
      observability::LogError(message);
      return;
  }
}

}  // namespace conclave::router_service
