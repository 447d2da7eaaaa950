// The terminal while a program has it for itself: raw keys, the other screen, no cursor.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace conclave::cli {

// Of stdin and stdout, which are terminals. At most one at a time, on the main thread. The terminal
// is given back as it was by the destructor, and also where the process dies of a signal of its own
// making (an abort, a wild pointer); who gets SIGTERM and the like ends by its own means.
class Terminal {
 public:
  Terminal();
  ~Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  // In place of what is shown: lines that end in LF, none longer than the screen is wide.
  absl::Status Show(std::string_view frame);
  // Columns and lines; 80 and 24 where the terminal does not say.
  static std::pair<int32_t, int32_t> Size();
  // Gives the terminal back, stops this process as Ctrl-Z does, and takes it again afterwards.
  void Suspend();

 private:
  void Enter();
};

enum class Key : uint8_t { kUp, kDown, kLeft, kRight, kEnd, kSuspend, kOther };
struct KeyPress {
  Key key = Key::kOther;
  char letter = 0;  // of kOther, where it is one
};

// Bytes from the terminal, in any pieces, to keys. Ctrl-C and Ctrl-D are kEnd.
class KeyReader {
 public:
  std::vector<KeyPress> Feed(std::string_view bytes);

 private:
  std::string escape_;  // a sequence that is not complete
};

}  // namespace conclave::cli
