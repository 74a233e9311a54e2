#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "command_line.h"

int main(int argc, char** argv) {
  const int code = espalier::run_command_line(argc, argv);
  // Nothing is left to destroy but LibTorch's registries, which takes a third of a short command.
  std::cout.flush();
  std::fflush(nullptr);
  std::_Exit(code);
}
