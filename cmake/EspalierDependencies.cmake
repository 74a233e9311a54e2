# Every dependency stops with its name and the package to install. Nothing is downloaded here.

macro(espalier_require package debian)
  find_package(${package} ${ARGN} QUIET)
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} was not found. Run launch/setup.sh, or install it (Debian: apt-get install ${debian}).")
  endif()
endmacro()

espalier_require(Threads libc6-dev)
espalier_require(fmt libfmt-dev)
espalier_require(OpenSSL libssl-dev)
espalier_require(yaml-cpp libyaml-cpp-dev)
espalier_require(nlohmann_json nlohmann-json3-dev)
espalier_require(CLI11 libcli11-dev)
espalier_require(HDF5 libhdf5-dev COMPONENTS C)
espalier_require(MPI libopenmpi-dev COMPONENTS C)

if(ESPALIER_TESTS)
  espalier_require(GTest libgtest-dev)
endif()

# More ranks than cores happen on laptops and in CI: do not let waiting ranks eat the working ones' time.
set(ESPALIER_MPIEXEC_FLAGS "--oversubscribe;--bind-to;none;--mca;mpi_yield_when_idle;1" CACHE STRING
    "Flags for mpirun in tests")

if(ESPALIER_TORCH)
  find_package(LibTorch REQUIRED)
endif()
if(ESPALIER_NCCL)
  find_package(NCCL REQUIRED)
endif()
