# Finds the NCCL that LibTorch itself loads, in the wheel beside it, with the CUDA runtime of the same wheels, and makes the
# target NCCL::NCCL. It must be that one: two libraries of the same soname in one process are the one that came first.
#   ESPALIER_NCCL_DIR   the directory that holds include/nccl.h and lib/libnccl.so.2; otherwise nvidia/nccl beside torch
if(NOT ESPALIER_CUDA OR NOT ESPALIER_TORCH)
  message(FATAL_ERROR "ESPALIER_NCCL needs ESPALIER_CUDA and ESPALIER_TORCH. Use the preset cuda.")
endif()
set(ESPALIER_NCCL_DIR "" CACHE PATH "Directory of the NCCL that LibTorch loads: the one that holds include/ and lib/")
set(nccl ${ESPALIER_NCCL_DIR})
if(NOT nccl)
  set(nccl ${ESPALIER_TORCH_DIR}/../nvidia/nccl)
endif()
get_filename_component(nccl ${nccl} ABSOLUTE)
if(NOT EXISTS ${nccl}/include/nccl.h OR NOT EXISTS ${nccl}/lib/libnccl.so.2)
  message(FATAL_ERROR "NCCL was not found (looked in: '${nccl}'). Run launch/setup.sh --cuda, or pass -DESPALIER_NCCL_DIR=DIR "
                      "with the one that LibTorch loads, or -DESPALIER_NCCL=OFF.")
endif()

# The runtime of the wheels; that of a toolkit has the same soname.
get_filename_component(cuda ${ESPALIER_TORCH_DIR}/../nvidia/cu13 ABSOLUTE)
set(cudart ${cuda}/lib/libcudart.so.13)
if(NOT EXISTS ${cuda}/include/cuda_runtime_api.h OR NOT EXISTS ${cudart})
  find_package(CUDAToolkit QUIET)
  if(NOT CUDAToolkit_FOUND)
    message(FATAL_ERROR "The CUDA runtime was not found (looked in: '${cuda}' and for a toolkit). Run launch/setup.sh --cuda, "
                        "or pass -DCUDAToolkit_ROOT=DIR.")
  endif()
  set(cuda ${CUDAToolkit_LIBRARY_ROOT})
  set(cudart ${CUDA_cudart_LIBRARY})
endif()

file(STRINGS ${nccl}/include/nccl.h lines REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) ")
string(REGEX REPLACE "[^0-9;]" "" NCCL_VERSION "${lines}")
string(REPLACE ";" "." NCCL_VERSION "${NCCL_VERSION}")
add_library(NCCL::NCCL INTERFACE IMPORTED)
target_include_directories(NCCL::NCCL SYSTEM INTERFACE ${nccl}/include ${cuda}/include)
target_link_libraries(NCCL::NCCL INTERFACE ${nccl}/lib/libnccl.so.2 ${cudart})
message(STATUS "NCCL ${NCCL_VERSION} in ${nccl}")
set(NCCL_FOUND TRUE)
