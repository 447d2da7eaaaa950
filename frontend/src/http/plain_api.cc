#include "http/plain_api.h"

#include <algorithm>
#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "conclave/base/json_writer.h"
#include "conclave/base/status.h"
#include "http/field_reader.h"
#include "http/json_reader.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

namespace json = boost::json;

// Tokenizing runs on a connection's thread: this bounds how long the others wait.
constexpr size_t kPromptBytesMax = size_t{1} << 20;

void WriteModel(const ModelCard& card, JsonWriter& out) {
  out.BeginObject();
  out.Key("id").String(card.id);
  out.Key("object").String("model");
  out.Key("created").Int(card.created);
  out.Key("owned_by").String("conclave");
  out.Key("root").String(card.id);
  out.Key("parent").Null();
  out.Key("max_model_len").Int(card.max_model_len);
  out.Key("permission").BeginArray().EndArray();
  out.EndObject();
}

std::string ModelList(const ModelCard& card) {
  std::string body;
  JsonWriter out(body);
  out.BeginObject().Key("object").String("list").Key("data").BeginArray();
  WriteModel(card, out);
  out.EndArray().EndObject();
  return body;
}

absl::StatusOr<std::string> OneModel(const ModelCard& card, std::string_view rest) {
  const std::optional<std::string> name = DecodePercent(rest);
  // No model is called "".
  CONCLAVE_RETURN_IF_ERROR(CheckModelName(name.value_or(""), card));
  std::string body;
  JsonWriter out(body);
  WriteModel(card, out);
  return body;
}

// vLLM makes the model's name optional here.
absl::Status CheckModel(FieldReader& fields, const ModelCard& card) {
  const json::value* model = fields.Find("model");
  if (model == nullptr) {
    return absl::OkStatus();
  }
  if (!model->is_string()) {
    return FieldError("invalid_model", "model", "expected a string, found " + Describe(*model));
  }
  return CheckModelName({model->get_string().data(), model->get_string().size()}, card);
}

void WriteIds(const std::vector<int32_t>& ids, JsonWriter& out) {
  out.BeginArray();
  for (const int32_t id : ids) {
    out.Int(id);
  }
  out.EndArray();
}

absl::StatusOr<std::string> Tokenize(std::string_view body, ServerState& state,
                                     const ChatBackend& backend, UnknownFields& unknown) {
  CONCLAVE_ASSIGN_OR_RETURN(const json::object object,
                            ParseJsonObject(body, state.limits().json_depth_max));
  FieldReader fields(object, "", "", unknown);
  CONCLAVE_RETURN_IF_ERROR(CheckModel(fields, backend.model()));
  const json::value* prompt = fields.Find("prompt");
  if (prompt == nullptr || !prompt->is_string()) {
    return FieldError("prompt_required", "prompt", "expected a string");
  }
  if (prompt->get_string().size() > kPromptBytesMax) {
    return FieldError("prompt_too_long", "prompt",
                      "expected at most " + std::to_string(kPromptBytesMax) + " bytes, found " +
                          std::to_string(prompt->get_string().size()));
  }
  fields.ReportUnknown();
  const std::vector<int32_t> ids =
      backend.Tokenize(std::string(prompt->get_string().data(), prompt->get_string().size()));
  std::string reply;
  JsonWriter out(reply);
  out.BeginObject();
  out.Key("count").Int(static_cast<int64_t>(ids.size()));
  out.Key("max_model_len").Int(backend.model().max_model_len);
  out.Key("tokens");
  WriteIds(ids, out);
  out.EndObject();
  return reply;
}

absl::StatusOr<std::string> Detokenize(std::string_view body, ServerState& state,
                                       const ChatBackend& backend, UnknownFields& unknown) {
  CONCLAVE_ASSIGN_OR_RETURN(const json::object object,
                            ParseJsonObject(body, state.limits().json_depth_max));
  FieldReader fields(object, "", "", unknown);
  CONCLAVE_RETURN_IF_ERROR(CheckModel(fields, backend.model()));
  const json::value* tokens = fields.Find("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    return FieldError("tokens_required", "tokens", "expected an array of token ids");
  }
  std::vector<int32_t> ids;
  for (const json::value& token : tokens->get_array()) {
    if (!token.is_int64() || token.get_int64() < 0 ||
        token.get_int64() >= backend.model().vocab_size) {
      return FieldError("token_id_out_of_range", "tokens[" + std::to_string(ids.size()) + "]",
                        "expected an integer in [0, " + std::to_string(backend.model().vocab_size) +
                            "), found " + Describe(token));
    }
    ids.push_back(static_cast<int32_t>(token.get_int64()));
  }
  fields.ReportUnknown();
  std::string reply;
  JsonWriter out(reply);
  out.BeginObject().Key("prompt").String(backend.Detokenize(ids)).EndObject();
  return reply;
}

HttpReply Status(int status, std::string_view word) {
  HttpReply reply;
  reply.status = status;
  JsonWriter out(reply.body);
  out.BeginObject().Key("status").String(word).EndObject();
  if (status == 503) {
    reply.fields.emplace_back("Retry-After", "1");
  }
  return reply;
}

HttpReply Readiness(ServerState& state) {
  if (state.is_draining()) {
    return Status(503, "draining");
  }
  ChatBackend* backend = state.backend();
  if (backend != nullptr) {
    return backend->Readiness().ok() ? Status(200, "ready") : Status(503, "unavailable");
  }
  const double progress = state.options().load_progress ? state.options().load_progress() : 0;
  HttpReply reply;
  reply.status = 503;
  JsonWriter out(reply.body);
  out.BeginObject().Key("status").String("loading");
  out.Key("progress").Float(static_cast<float>(std::clamp(progress, 0.0, 1.0))).EndObject();
  reply.fields.emplace_back("Retry-After", "1");
  return reply;
}

HttpReply FromResult(absl::StatusOr<std::string> body, std::string_view request_id) {
  if (!body.ok()) {
    return ErrorReply(ErrorFromRequest(body.status()), request_id);
  }
  HttpReply reply;
  reply.body = *std::move(body);
  return reply;
}

}  // namespace

HttpReply ErrorReply(const HttpError& error, std::string_view request_id) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = ErrorBody(error, request_id);
  if (error.status == 429 || error.status == 503) {
    reply.fields.emplace_back("Retry-After", "1");
  }
  return reply;
}

HttpReply AnswerPlain(const Route& route, std::string_view rest, std::string_view body,
                      ServerState& state, std::string_view request_id) {
  const UnknownFieldFn on_unknown = [&state](const std::string& name) {
    state.ReportUnknownField(name);
  };
  UnknownFields unknown(on_unknown);
  HttpReply reply;
  switch (route.id) {
    case RouteId::kModels:
      reply.body = ModelList(state.backend()->model());
      return reply;
    case RouteId::kModel:
      return FromResult(OneModel(state.backend()->model(), rest), request_id);
    case RouteId::kTokenize:
      return FromResult(Tokenize(body, state, *state.backend(), unknown), request_id);
    case RouteId::kDetokenize:
      return FromResult(Detokenize(body, state, *state.backend(), unknown), request_id);
    case RouteId::kLive:
      return Status(200, "ok");
    case RouteId::kReady:
      return Readiness(state);
    case RouteId::kVersion: {
      JsonWriter out(reply.body);
      out.BeginObject().Key("version").String(state.options().version).EndObject();
      return reply;
    }
    case RouteId::kMetrics:
      reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
      reply.body = state.options().metrics_text();
      return reply;
    case RouteId::kChat:
      break;
  }
  return ErrorReply({404, "not_found", "not found", ""}, request_id);
}

}  // namespace conclave::frontend
