// Requests on the demo model for component tests: questions about the sample pictures and about
// none.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "assembly.h"
#include "conclave/frontend/engine.h"
#include "conclave/image/image.h"
#include "conclave/text/prompt_template.h"

namespace conclave::testing {

inline std::string DemoFolder() { return std::string(CONCLAVE_SOURCE_DIR) + "/models/demo"; }

inline std::string FileBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::stringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

// A user's question, with a sample picture unless `picture` is empty.
struct Question {
  std::string picture;
  std::string text;
};

inline std::vector<Question> Questions() {
  return {
      {"one.png", "What do you see?"},
      {"",
       "Scene: a red circle at the top and a blue star at the left. How many objects are there?"},
      {"two.png", "Describe the image."},
      {"three.jpg", "How many objects are there?"},
      {"", "What color is the sky?"},
      {"four.png", "List the shapes."},
      {"wide.png", "What is at the top left? Answer with one word."},
      {"same-shape.jpg", "Are there more circles than squares?"}};
}

inline std::vector<int32_t> PromptIds(const cli::Assembly& model, const Question& question) {
  const text::PromptTemplate* stablelm = text::FindTemplate(model.desc().prompt_template);
  const std::vector<text::Turn> turns = {
      text::UserTurn(question.text, question.picture.empty() ? 0 : 1), text::OpenTurn()};
  return text::EncodePrompt(*model.tokenizer,
                            text::Render(*stablelm, turns, std::nullopt, *model.tokenizer));
}

inline std::shared_ptr<const frontend::ImageFeatures> Features(cli::Assembly& model,
                                                               const std::string& picture) {
  const checkpoint::VisionSpec& vision = model.desc().vision;
  image::PreprocessSpec spec;
  spec.size = vision.image_size;
  std::copy_n(vision.mean, 3, spec.mean);
  std::copy_n(vision.std, 3, spec.std);
  const std::string bytes = FileBytes(DemoFolder() + "/samples/" + picture);
  const absl::StatusOr<image::RgbImage> decoded =
      image::Decode(std::as_bytes(std::span(bytes)), {});
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  auto features = std::make_shared<frontend::ImageFeatures>();
  features->digest = std::hash<std::string>()(picture);
  features->num_rows = model.tower->num_features();
  model.tower->Encode(image::Normalize(image::FitAndResize(*decoded, spec), spec), features->rows,
                      nullptr);
  return features;
}

}  // namespace conclave::testing
