// The templates of spec 5.2, as the original defines them, blanks and all.
#include "conclave/text/prompt_template.h"

namespace conclave::text {
namespace {

constexpr std::string_view kUserSystem =
    "A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions.";
constexpr std::string_view kHumanSystem =
    "A chat between a curious human and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the human's questions.";
constexpr std::string_view kLlama2System =
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as "
    "possible, while being safe.  Your answers should not include any harmful, unethical, "
    "racist, sexist, toxic, dangerous, or illegal content. Please ensure that your responses "
    "are socially unbiased and positive in nature.\n"
    "\n"
    "If a question does not make any sense, or is not factually coherent, explain why "
    "instead of answering something not correct. If you don't know the answer to a question, "
    "please don't share false information.";
constexpr std::string_view kLlavaLlama2System =
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using "
    "natural language.";
constexpr std::string_view kMptSystem =
    "<|im_start|>system\n"
    "A conversation between a user and an LLM-based AI assistant. The assistant gives "
    "helpful and honest answers.";
constexpr std::string_view kMmtagSystem =
    "A chat between a curious user and an artificial intelligence assistant. The assistant "
    "is able to understand the visual content that the user provides, and assist the user "
    "with a variety of tasks using natural language.The visual content will be provided with "
    "the following format: <Image>visual content</Image>.";

// The exchange that "default" puts in front of every dialogue.
constexpr std::string_view kPresetQuestion =
    "What are the key differences between renewable and non-renewable energy sources?";
constexpr std::string_view kPresetAnswer =
    "Renewable energy sources are those that can be replenished naturally in a relatively "
    "short amount of time, such as solar, wind, hydro, geothermal, and biomass. "
    "Non-renewable energy sources, on the other hand, are finite and will eventually be "
    "depleted, such as coal, oil, and natural gas. Here are some key differences between "
    "renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while "
    "non-renewable energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental "
    "impact than non-renewable sources, which can lead to air and water pollution, "
    "greenhouse gas emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
    "typically have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in "
    "more remote locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
    "different situations and needs, while non-renewable sources are more rigid and "
    "inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, "
    "while non-renewable sources are not, and their depletion can lead to economic and "
    "social instability.\n";

constexpr PromptTemplate kTemplates[] = {
    {"default", TemplateStyle::kSingle, "Human", "Assistant", kHumanSystem, "###", "",
     kPresetQuestion, kPresetAnswer},
    {"v0", TemplateStyle::kSingle, "Human", "Assistant", kHumanSystem, "###", "", kPresetQuestion,
     kPresetAnswer},
    {"v1", TemplateStyle::kTwo, "USER", "ASSISTANT", kUserSystem, " ", "</s>", "", ""},
    {"openchat", TemplateStyle::kTwo, "USER", "ASSISTANT", kUserSystem, " ", "<|end_of_turn|>", "",
     ""},
    {"mistral", TemplateStyle::kTwo, "USER", "ASSISTANT", kUserSystem, " ", "</s>", "", ""},
    {"minicpm", TemplateStyle::kTwo, "USER", "ASSISTANT", kUserSystem, " ", "</s>", "", ""},
    {"phi", TemplateStyle::kTwo, "USER", "ASSISTANT", kUserSystem, " ", "<|endoftext|>", "", ""},
    {"qwen", TemplateStyle::kTwo, "USER", "ASSISTANT", kUserSystem, " ", "<|endoftext|>", "", ""},
    {"stablelm", TemplateStyle::kTwo, "USER", "ASSISTANT", kUserSystem, " ", "<|endoftext|>", "",
     ""},
    {"vicuna_v1", TemplateStyle::kTwo, "USER", "ASSISTANT", kUserSystem, " ", "</s>", "", ""},
    {"llama_2", TemplateStyle::kLlama2, "USER", "ASSISTANT", kLlama2System, "<s>", "</s>", "", ""},
    {"plain", TemplateStyle::kPlain, "", "", "", "\n", "", "", ""},
    {"v0_plain", TemplateStyle::kPlain, "", "", "", "\n", "", "", ""},
    {"llava_v0", TemplateStyle::kSingle, "Human", "Assistant", kHumanSystem, "###", "", "", ""},
    {"v0_mmtag", TemplateStyle::kSingle, "Human", "Assistant", kMmtagSystem, "###", "", "", ""},
    {"llava_v1", TemplateStyle::kTwo, "USER", "ASSISTANT", kHumanSystem, " ", "</s>", "", ""},
    {"v1_mmtag", TemplateStyle::kTwo, "USER", "ASSISTANT", kMmtagSystem, " ", "</s>", "", ""},
    {"llava_llama_2", TemplateStyle::kLlama2, "USER", "ASSISTANT", kLlavaLlama2System, "<s>",
     "</s>", "", ""},
    {"mpt", TemplateStyle::kMpt, "<|im_start|>user\n", "<|im_start|>assistant\n", kMptSystem,
     "<|im_end|>", "", "", ""},
};

}  // namespace

const PromptTemplate* FindTemplate(std::string_view key) {
  for (const PromptTemplate& prompt_template : kTemplates) {
    if (prompt_template.key == key) return &prompt_template;
  }
  return nullptr;
}

std::vector<std::string_view> TemplateKeys() {
  std::vector<std::string_view> keys;
  for (const PromptTemplate& prompt_template : kTemplates) keys.push_back(prompt_template.key);
  return keys;
}

}  // namespace conclave::text
