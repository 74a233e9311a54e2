# Functions that every module and test uses, so that flags stand in one place.

add_library(espalier_flags INTERFACE)
target_include_directories(espalier_flags INTERFACE ${PROJECT_SOURCE_DIR}/include)
target_compile_options(espalier_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wcast-align=strict -Wundef)
if(ESPALIER_WERROR)
  # GCC 12 sees overflows inside its own std::string and std::vector that are none: these stay warnings.
  target_compile_options(espalier_flags INTERFACE
    -Werror -Wno-error=array-bounds -Wno-error=restrict -Wno-error=stringop-overflow -Wno-error=stringop-overread)
  if(ESPALIER_SANITIZE)
    target_compile_options(espalier_flags INTERFACE -Wno-error=maybe-uninitialized)  # likewise in std::regex
  endif()
endif()
if(ESPALIER_SANITIZE)
  target_compile_options(espalier_flags INTERFACE
    -fsanitize=${ESPALIER_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(espalier_flags INTERFACE -fsanitize=${ESPALIER_SANITIZE})
endif()

# espalier_module(NAME SOURCES a.cpp ... MODULES core ... LIBRARIES yaml-cpp ...)
# One static library per module: espalier::NAME. MODULES are public, LIBRARIES private unless in PUBLIC_LIBRARIES.
function(espalier_module name)
  cmake_parse_arguments(MODULE "" "" "SOURCES;MODULES;LIBRARIES;PUBLIC_LIBRARIES" ${ARGN})
  add_library(espalier_${name} STATIC ${MODULE_SOURCES})
  add_library(espalier::${name} ALIAS espalier_${name})
  set_target_properties(espalier_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(espalier_${name} PUBLIC ${MODULE_PUBLIC_LIBRARIES})
  foreach(module IN LISTS MODULE_MODULES)
    target_link_libraries(espalier_${name} PUBLIC espalier::${module})
  endforeach()
  target_link_libraries(espalier_${name} PUBLIC espalier_flags PRIVATE ${MODULE_LIBRARIES})
endfunction()

# espalier_test(NAME SOURCES ... MODULES ... [RANKS 1 2 4] [LABELS ...] [TIMEOUT s] [LIBRARIES ...] [ENVIRONMENT ...])
# Without RANKS: one process, gtest_main. With RANKS: the MPI test main of tests/support, run once per count;
# 77 means skipped on every rank.
function(espalier_test name)
  cmake_parse_arguments(TEST "" "TIMEOUT" "SOURCES;MODULES;RANKS;LABELS;LIBRARIES;ENVIRONMENT" ${ARGN})
  if(NOT TEST_TIMEOUT)
    set(TEST_TIMEOUT 120)
  endif()
  if(ESPALIER_SANITIZE)
    math(EXPR TEST_TIMEOUT "5 * ${TEST_TIMEOUT}")
  endif()
  add_executable(${name} ${TEST_SOURCES})
  foreach(module IN LISTS TEST_MODULES)
    target_link_libraries(${name} PRIVATE espalier::${module})
  endforeach()
  target_link_libraries(${name} PRIVATE espalier_flags ${TEST_LIBRARIES} GTest::gtest)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  set(environment "OMP_NUM_THREADS=1;${TEST_ENVIRONMENT}")
  if(TEST_RANKS)
    target_link_libraries(${name} PRIVATE espalier_mpi_test_main)
    foreach(ranks IN LISTS TEST_RANKS)
      add_test(NAME ${name}.np${ranks}
        COMMAND ${MPIEXEC_EXECUTABLE} ${ESPALIER_MPIEXEC_FLAGS} ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:${name}>)
      set_tests_properties(${name}.np${ranks} PROPERTIES
        PROCESSORS ${ranks} TIMEOUT ${TEST_TIMEOUT} LABELS "mpi;${TEST_LABELS}" SKIP_RETURN_CODE 77
        ENVIRONMENT "${environment};OMPI_ALLOW_RUN_AS_ROOT=1;OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1")
    endforeach()
  else()
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES
      TIMEOUT ${TEST_TIMEOUT} LABELS "unit;${TEST_LABELS}" ENVIRONMENT "${environment}")
  endif()
endfunction()

# espalier_program_test(NAME LABEL TIMEOUT [CLASS])
# A unittest file test_NAME.py of this folder (or one class of it) that drives the program of this build; needs the Python
# environment of launch/setup.sh --tests. A file whose tests are all skipped counts as skipped.
set(ESPALIER_PYTHON ${PROJECT_SOURCE_DIR}/.venv/bin/python CACHE FILEPATH "Python with torch, transformers and h5py, for tests")
function(espalier_program_test name label timeout)
  string(JOIN . test ${label} ${name} ${ARGN})
  add_test(NAME ${test} COMMAND ${ESPALIER_PYTHON} ${PROJECT_SOURCE_DIR}/tests/support/run_program_test.py
    ${CMAKE_CURRENT_SOURCE_DIR}/test_${name}.py ${ARGN})
  set_tests_properties(${test} PROPERTIES
    LABELS ${label} TIMEOUT ${timeout} SKIP_RETURN_CODE 77
    ENVIRONMENT "ESPALIER=$<TARGET_FILE:espalier>;ESPALIER_TEST_CACHE=${PROJECT_BINARY_DIR}/test-models;OMP_NUM_THREADS=1;PYTHONDONTWRITEBYTECODE=1")
endfunction()
