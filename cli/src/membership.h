// A frontend's place in a cluster: its links to the workers and its stream to the router.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cluster_side.h"
#include "conclave/base/mutex.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/frontend/cluster_links.h"
#include "conclave/frontend/router_client.h"
#include "conclave/service/address.h"
#include "conclave/service/units.h"
#include "conclave/transport/grpc_support.h"
#include "worker_connector.h"

namespace conclave::cli {

struct MembershipSettings {
  std::vector<service::Address> router{{"127.0.0.1", 7000}};
  std::string name = {};         // empty: made of the process id
  std::string cluster_id = {};   // empty: any
  std::string channel = "auto";  // as --channel has it
  bool is_trusted_network = false;
  bool has_payload_crc = false;
  service::ByteSize rescue_memory{int64_t{1} << 30};
};

class Membership final : public ClusterSide {
 public:
  // `tls` empty: plain text.
  Membership(MembershipSettings settings, transport::TlsIdentity tls);
  ~Membership() override;

  absl::Status Join(EmbeddedOptions& options, observability::Metrics& metrics) override;
  absl::Status WaitForPlacement() override;
  void Report(std::function<live::FrontendFigures()> figures) override;

 private:
  // What every link of this frontend, in this run of it, agrees on with its worker.
  transport::PairTerms TermsOf(const checkpoint::Checkpoint& checkpoint,
                               const EmbeddedOptions& options, uint64_t incarnation) const;
  void StartLinks(const transport::PairTerms& terms);
  void StartClient(const checkpoint::ModelDesc& desc, const transport::PairTerms& terms,
                   const EmbeddedOptions& options);
  // Where the router finds the API at `api_address`; empty where it cannot.
  std::string ApiForRouter(const std::string& api_address) const;
  void ReportLoop(const std::function<live::FrontendFigures()>& figures);
  void AddMetrics(observability::Metrics& metrics);

  const MembershipSettings settings_;
  const std::string name_;
  const transport::TlsIdentity tls_;
  WorkerConnector connector_;
  std::unique_ptr<frontend::ClusterLinks> links_;
  std::unique_ptr<frontend::RouterClient> client_;  // its thread calls links_: it ends first
  Mutex report_mu_;
  CondVar report_changed_;
  bool is_reporting_ ABSL_GUARDED_BY(report_mu_) = false;
  std::thread reporter_;
};

}  // namespace conclave::cli
