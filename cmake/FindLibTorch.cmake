# Finds LibTorch in a directory that holds include/ and lib/ (a PyPI wheel's torch directory or a libtorch zip)
# and makes the target LibTorch::LibTorch. find_package(Torch) is not used: on a CUDA wheel it insists on nvcc
# and a toolkit even for a CPU program.
#   ESPALIER_TORCH_DIR   the directory; otherwise the project's .venv, otherwise python3's torch
if(NOT ESPALIER_TORCH_DIR)
  foreach(python ${PROJECT_SOURCE_DIR}/.venv/bin/python python3)
    execute_process(
      COMMAND ${python} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed AND found)
      set(ESPALIER_TORCH_DIR ${found})
      break()
    endif()
  endforeach()
endif()
if(NOT EXISTS ${ESPALIER_TORCH_DIR}/include/ATen/ATen.h)
  message(FATAL_ERROR "LibTorch was not found (looked in: '${ESPALIER_TORCH_DIR}'). Run launch/setup.sh, or pass "
                      "-DESPALIER_TORCH_DIR=DIR with a directory that holds include/ and lib/.")
endif()

set(LibTorch_VERSION 0)
if(EXISTS ${ESPALIER_TORCH_DIR}/version.py)
  file(STRINGS ${ESPALIER_TORCH_DIR}/version.py line REGEX "^__version__ = ")
elseif(EXISTS ${ESPALIER_TORCH_DIR}/build-version)
  file(STRINGS ${ESPALIER_TORCH_DIR}/build-version line LIMIT_COUNT 1)
endif()
if(line MATCHES "([0-9]+\\.[0-9]+\\.[0-9]+)")
  set(LibTorch_VERSION ${CMAKE_MATCH_1})
endif()
if(LibTorch_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "LibTorch ${LibTorch_VERSION} in ${ESPALIER_TORCH_DIR} is too old: 2.11 or newer is needed. "
                      "Run launch/setup.sh or point ESPALIER_TORCH_DIR at a newer one.")
endif()

set(torch_lib ${ESPALIER_TORCH_DIR}/lib)
add_library(LibTorch::LibTorch INTERFACE IMPORTED)
# The wheel brings headers of another fmt than the one we link: ours must be found first.
get_target_property(fmt_include fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/own_headers)
file(CREATE_LINK ${fmt_include}/fmt ${PROJECT_BINARY_DIR}/own_headers/fmt SYMBOLIC)
target_include_directories(LibTorch::LibTorch SYSTEM INTERFACE
  ${PROJECT_BINARY_DIR}/own_headers
  ${ESPALIER_TORCH_DIR}/include ${ESPALIER_TORCH_DIR}/include/torch/csrc/api/include)
# RPATH rather than RUNPATH: the libraries that torch's own libraries need are found through ours.
target_link_options(LibTorch::LibTorch INTERFACE
  -Wl,--disable-new-dtags -Wl,-rpath,${torch_lib} -Wl,-rpath-link,${torch_lib})
if(ESPALIER_CUDA)
  # The kernels register themselves from static initialisers, so the linker must not drop the library. A toolkit lacks some
  # libraries that torch's own RPATH finds at run time.
  if(NOT EXISTS ${torch_lib}/libtorch_cuda.so)
    message(FATAL_ERROR "The LibTorch in ${ESPALIER_TORCH_DIR} has no libtorch_cuda.so. Run launch/setup.sh --cuda.")
  endif()
  target_link_libraries(LibTorch::LibTorch INTERFACE
    -Wl,--no-as-needed ${torch_lib}/libtorch_cpu.so ${torch_lib}/libtorch_cuda.so ${torch_lib}/libc10_cuda.so -Wl,--as-needed
    ${torch_lib}/libc10.so -Wl,--allow-shlib-undefined)
else()
  # libtorch_cpu names libraries of the CUDA wheels that the loader finds through torch's own RPATH.
  target_link_libraries(LibTorch::LibTorch INTERFACE
    -Wl,--no-as-needed ${torch_lib}/libtorch_cpu.so -Wl,--as-needed ${torch_lib}/libc10.so -Wl,--allow-shlib-undefined)
endif()
message(STATUS "LibTorch ${LibTorch_VERSION} in ${ESPALIER_TORCH_DIR}")
set(LibTorch_FOUND TRUE)
