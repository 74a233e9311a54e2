# cmake -DINPUT=file -DOUTPUT=file.cpp -DFUNCTION=name -P embed_text.cmake
# Writes a C++ file whose function espalier::NAME() returns the text of INPUT, so that the program
# needs no file of its own at run time.
file(READ "${INPUT}" text)
string(FIND "${text}" ")embedded\"" found)
if(NOT found EQUAL -1)
  message(FATAL_ERROR "${INPUT} contains the end mark of its raw string literal")
endif()
file(WRITE "${OUTPUT}" "#include <string_view>

namespace espalier {
std::string_view ${FUNCTION}();
std::string_view ${FUNCTION}() {
  return R\"embedded(${text})embedded\";
}
}  // namespace espalier
")
