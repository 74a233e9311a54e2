# cmake -P CheckFileCalls.cmake [-DROOT=DIR]: how sources look at the file system.
# - The overloads of std::filesystem that throw end in exit code 70 with the library's words: store/files.h has checked
#   forms, and the overloads with an error code are fine.
# - lexically_normal() and its kin take `link/../x` for `x`: core/paths.h respects links.
# - dump() of a JSON value throws on bytes that are no UTF-8: core/json.h has json_text().
# Fails with one line per call that may not be.
cmake_minimum_required(VERSION 3.25)
if(NOT ROOT)
  get_filename_component(ROOT ${CMAKE_CURRENT_LIST_DIR}/.. ABSOLUTE)
endif()

set(names "exists|create_director(y|ies)|remove(_all)?|rename|copy(_file|_symlink)?|file_size|is_regular_file|is_directory|is_symlink|is_empty|(weakly_)?canonical|absolute|relative|proximate|status|symlink_status|read_symlink|current_path|space|last_write_time|permissions|equivalent|hard_link_count|resize_file|create_(directory_)?symlink|create_hard_link|temp_directory_path")
# The last argument tells: an error code, or a file_status that was looked up before.
set(checked "(failure|unreadable|status)\\)")

set(problems "")
set(files_checked 0)
file(GLOB_RECURSE files RELATIVE ${ROOT}
  ${ROOT}/include/espalier/*.h ${ROOT}/src/*.h ${ROOT}/src/*.cpp ${ROOT}/src/*.cu)
foreach(file IN LISTS files)
  math(EXPR files_checked "${files_checked} + 1")
  file(READ ${ROOT}/${file} text)
  # Lists break at semicolons and brackets: "@" stands for the end of a statement. A call may go over two lines.
  string(REGEX REPLACE "[][@]" " " text "${text}")
  string(REPLACE ";" "@" text "${text}")
  string(REGEX REPLACE "//[^\n]*" "" text "${text}")
  string(REGEX MATCHALL "(fs|filesystem)::(${names})\\([^@\n]*(\n[^@\n]*)?" calls "${text}")
  foreach(call IN LISTS calls)
    if(NOT call MATCHES "${checked}")
      string(REGEX REPLACE "[ \n]+" " " call "${call}")
      list(APPEND problems "${file}: throws: ${call}")
    endif()
  endforeach()
  string(REGEX MATCHALL "directory_iterator[ a-z]*\\([^,)]*\\)" calls "${text}")
  foreach(call IN LISTS calls)
    if(NOT call MATCHES "\\(\\)$")
      list(APPEND problems "${file}: throws: ${call}")
    endif()
  endforeach()
  string(REGEX MATCHALL "lexically_[a-z]+\\(" calls "${text}")
  foreach(call IN LISTS calls)
    # For a message only, which names a file as a reader of the configuration would.
    if(NOT (file STREQUAL "src/config/run_config.cpp" AND call STREQUAL "lexically_relative("))
      list(APPEND problems "${file}: disregards links: ${call})")
    endif()
  endforeach()
  string(REGEX MATCHALL "[.>]dump\\(" calls "${text}")
  if(calls AND NOT file STREQUAL "src/core/json.cpp")
    list(APPEND problems "${file}: throws on bytes that are no UTF-8: dump()")
  endif()
endforeach()

if(files_checked EQUAL 0)
  message(FATAL_ERROR "no sources in ${ROOT}")
endif()
if(problems)
  list(JOIN problems "\n  " text)
  message(FATAL_ERROR "calls that may not be:\n  ${text}")
endif()
message(STATUS "${files_checked} files checked")
