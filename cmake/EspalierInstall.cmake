# What `cmake --install` puts into a tree that may be moved: bin/espalier finds LibTorch in lib/espalier beside it
# when the one it was built with is gone. MPI, HDF5 and yaml-cpp stay those of the system.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib/espalier")
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)

set(install_libtorch ON)
if(ESPALIER_CUDA)
  set(install_libtorch OFF)  # several GB: the place it was built with must stay
endif()
option(ESPALIER_INSTALL_LIBTORCH "Copy LibTorch's libraries into the installed tree (CPU: 0.5 GB)" ${install_libtorch})

if(ESPALIER_TORCH AND ESPALIER_INSTALL_LIBTORCH)
  if(ESPALIER_CUDA)
    message(FATAL_ERROR "ESPALIER_INSTALL_LIBTORCH with ESPALIER_CUDA: copying the CUDA libraries is not supported. "
                        "Leave LibTorch where it is.")
  endif()
  # libtorch_cpu of the wheel needs two libraries of CUDA even without a GPU; a CPU build of LibTorch does not.
  file(GLOB libtorch_files ${torch_lib}/libtorch_cpu.so ${torch_lib}/libc10.so ${torch_lib}/libgomp*.so*
    ${ESPALIER_TORCH_DIR}/../nvidia/cu13/lib/libcudart.so.* ${ESPALIER_TORCH_DIR}/../nvidia/cu13/lib/libcupti.so.*)
  install(PROGRAMS ${libtorch_files} DESTINATION lib/espalier)
endif()

install(PROGRAMS launch/tokenize.py DESTINATION ${CMAKE_INSTALL_DATADIR}/espalier)
install(DIRECTORY launch/python DESTINATION ${CMAKE_INSTALL_DATADIR}/espalier PATTERN __pycache__ EXCLUDE)
install(DIRECTORY configs DESTINATION ${CMAKE_INSTALL_DATADIR}/espalier)
install(FILES LICENSE CHANGELOG.md CITATION.cff DESTINATION ${CMAKE_INSTALL_DOCDIR})
