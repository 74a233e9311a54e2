# Runs PROGRAM's tests of FILTER on two ranks and compares exit code and text.
execute_process(
  COMMAND ${MPIRUN} ${FLAGS} -n 2 ${PROGRAM} --gtest_filter=${FILTER}
  RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE errors)
if(NOT code STREQUAL CODE)
  message(FATAL_ERROR "exit code ${code}, expected ${CODE}:\n${text}${errors}")
endif()
if(NOT "${text}${errors}" MATCHES "${TEXT}")
  message(FATAL_ERROR "no '${TEXT}' in:\n${text}${errors}")
endif()
