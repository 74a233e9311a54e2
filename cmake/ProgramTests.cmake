# Whole-program tests in Python: every file a program of its own, run against the espalier of this build.
function(espalier_program_test name label timeout)
  add_test(NAME ${label}.${name} COMMAND ${ESPALIER_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/test_${name}.py)
  set_tests_properties(${label}.${name} PROPERTIES LABELS ${label} PROCESSORS 2 TIMEOUT ${timeout}
    ENVIRONMENT "ESPALIER=$<TARGET_FILE:espalier>;ESPALIER_TEST_CACHE=${PROJECT_BINARY_DIR}/test-models;OMP_NUM_THREADS=1")
endfunction()
