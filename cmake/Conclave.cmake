# Build functions of the project: every room is one conclave_library, every test one conclave_test.
# A target sees only the rooms it links, so an include against the arrows of CONTRIBUTING.md does not compile.

include_guard(GLOBAL)

# Flags of our own code only: they are linked PRIVATE, so dependencies keep theirs.
add_library(conclave_build_flags INTERFACE)
add_library(conclave::build_flags ALIAS conclave_build_flags)
target_compile_features(conclave_build_flags INTERFACE cxx_std_20)
# -ffp-contract=off: a fused multiply-add stands only where it is written, or the ISA paths would differ in bits.
target_compile_options(conclave_build_flags INTERFACE
  -Wall -Wextra -Wshadow -ffp-contract=off -fno-omit-frame-pointer
  $<$<BOOL:${CONCLAVE_WERROR}>:-Werror>
  # In one file with others, a room's sources look to the compiler like headers, whose types it warns about.
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<BOOL:${CMAKE_UNITY_BUILD}>>:-Wno-subobject-linkage>
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>)
target_compile_definitions(conclave_build_flags INTERFACE
  $<$<BOOL:${CONCLAVE_FAILPOINTS}>:CONCLAVE_FAILPOINTS=1>)
if(CONCLAVE_SANITIZE)
  target_compile_options(conclave_build_flags INTERFACE -fsanitize=${CONCLAVE_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(conclave_build_flags INTERFACE -fsanitize=${CONCLAVE_SANITIZE})
  # clang 14 cannot assemble a coroutine with this check ("cannot represent a difference across sections").
  target_compile_options(conclave_build_flags INTERFACE $<$<CXX_COMPILER_ID:Clang>:-fno-sanitize=function>)
endif()
if(CONCLAVE_HARDEN)
  target_compile_options(conclave_build_flags INTERFACE
    -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -D_GLIBCXX_ASSERTIONS -fstack-protector-strong
    -fstack-clash-protection -fcf-protection)
  target_link_options(conclave_build_flags INTERFACE -Wl,-z,relro,-z,now)
endif()

# conclave_library(<room> SOURCES … [PUBLIC …] [PRIVATE …])
function(conclave_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  set(target conclave_${name})
  if(ARG_SOURCES)
    add_library(${target} STATIC ${ARG_SOURCES})
    target_include_directories(${target} PUBLIC include PRIVATE src)
    target_link_libraries(${target} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE} conclave::build_flags)
  else()
    add_library(${target} INTERFACE)
    target_include_directories(${target} INTERFACE include)
    target_link_libraries(${target} INTERFACE ${ARG_PUBLIC})
  endif()
  add_library(conclave::${name} ALIAS ${target})
endfunction()

# conclave_test(<name> SOURCES … LIBS … [LABELS …] [TIMEOUT seconds]): a GoogleTest program, one ctest per case.
function(conclave_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS;LABELS" ${ARGN})
  if(NOT CONCLAVE_TESTS)
    return()
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} GTest::gmock GTest::gtest_main conclave::build_flags)
  target_compile_definitions(${name} PRIVATE CONCLAVE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  # A third less time to compile; what takes time when it runs is in the rooms.
  target_compile_options(${name} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O1>)
  # gtest_discover_tests loses all but the first of several labels, and what stands behind them; `ctest -L` takes a
  # regular expression, which finds a label in a joined one as well.
  list(JOIN ARG_LABELS "-" label)
  # The default of 5 s fails on a loaded two-core machine.
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${label}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
