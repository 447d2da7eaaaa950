#include "live_reader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

#include "conclave/live/figures.h"

namespace conclave::live {
namespace {

namespace json = boost::json;

// Puts each entry where its id is or belongs.
void MergeById(const json::array& entries, json::array& into) {
  for (const json::value& entry : entries) {
    const int64_t id = entry.at("id").as_int64();
    auto* it = std::find_if(into.begin(), into.end(),
                            [id](const json::value& old) { return old.at("id").as_int64() >= id; });
    if (it != into.end() && it->at("id").as_int64() == id) {
      *it = entry;
    } else {
      into.insert(it, entry);
    }
  }
}

void Patch(const json::array& changes, json::array& into) {
  ASSERT_EQ(changes.size() % 2, 0u);
  for (size_t i = 0; i < changes.size(); i += 2) {
    const auto cell = static_cast<size_t>(changes[i].as_int64());
    ASSERT_LT(cell, into.size());
    into[cell] = changes[i + 1];
  }
}

}  // namespace

json::object ParseObject(std::string_view text) {
  boost::system::error_code error;
  const json::value value = json::parse({text.data(), text.size()}, error);
  EXPECT_FALSE(error.failed()) << error.message() << ": " << text;
  return value.is_object() ? value.get_object() : json::object();
}

void LiveReader::Apply(std::string_view delta) {
  json::object changes = ParseObject(delta);
  ASSERT_EQ(changes.at("seq").as_int64(), picture_.at("seq").as_int64() + 1);
  if (const json::value* model = changes.if_contains("model"); model != nullptr) {
    size_t experts = 0;
    for (const json::value& layer : model->at("layers").as_array()) {
      experts += static_cast<size_t>(layer.at("experts").as_int64());
    }
    picture_["rows"] = json::array(experts * kCellsPerExpert, 0);
    picture_["weights"] = json::array(experts * kModalities, 0);
    picture_["probabilities"] = json::array(experts, 0);
  }
  for (const auto& [name, value] : changes) {
    const std::string key(name);
    if (std::set<std::string>{"rows", "weights", "probabilities"}.contains(key)) {
      Patch(value.as_array(), picture_.at(key).as_array());
    } else if (std::set<std::string>{"workers", "events", "incidents"}.contains(key)) {
      MergeById(value.as_array(), picture_.at(key).as_array());
    } else if (key == "workers_gone") {
      json::array& workers = picture_.at("workers").as_array();
      for (const json::value& id : value.as_array()) {
        workers.erase(std::remove_if(workers.begin(), workers.end(),
                                     [&](const json::value& w) { return w.at("id") == id; }),
                      workers.end());
      }
    } else {
      ASSERT_TRUE(picture_.contains(key)) << key;
      picture_[key] = value;
    }
  }
  json::array& events = picture_.at("events").as_array();
  while (events.size() > 500) {
    events.erase(events.begin());
  }
}

}  // namespace conclave::live
