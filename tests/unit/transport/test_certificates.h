// An authority and certificates of it, made on the spot: P-256 keys, PEM.
#pragma once

#include <memory>
#include <string>

#include "conclave/transport/grpc_support.h"

namespace conclave::transport {

class TestAuthority {
 public:
  TestAuthority();
  ~TestAuthority();

  // A certificate for 127.0.0.1 with `uri` as its URI SAN (empty: none), good from now and for
  // `days_left`, which may be negative.
  TlsIdentity Issue(const std::string& uri, int days_left = 1) const;

  std::string pem() const;

 private:
  struct Pair;
  std::unique_ptr<Pair> own_;
};

}  // namespace conclave::transport
