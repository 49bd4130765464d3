# `kernels`: all of runtime/kernels/*.cu as one fat binary, which Python loads by name. Without nvcc there is no such
# target, and everything else goes on.
set(LLADAV_ARCHITECTURES "80;86;87;89;90;100;110;120"
  CACHE STRING "Compute capabilities of the GPU kernels, without the dot")
set(folder "${CMAKE_CURRENT_SOURCE_DIR}/runtime/kernels")
set(LLADAV_FAT_BINARY "${folder}/lladav_kernels.fatbin" CACHE FILEPATH "What to write; the package carries the default")
find_program(LLADAV_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" /usr/local/cuda/bin DOC "Compiler of the CUDA toolkit")

if(NOT LLADAV_NVCC)
  message(STATUS "lladav: no GPU kernels, because nvcc was not found. "
    "Install the CUDA toolkit, or pass -DLLADAV_NVCC=PATH")
  return()
endif()

execute_process(
  COMMAND "${LLADAV_NVCC}" --list-gpu-code
  OUTPUT_VARIABLE known
  COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "sm_[0-9]+" known "${known}")

set(code "")
list(SORT LLADAV_ARCHITECTURES COMPARE NATURAL)
foreach(architecture IN LISTS LLADAV_ARCHITECTURES)
  if("sm_${architecture}" IN_LIST known)
    list(APPEND code -gencode "arch=compute_${architecture},code=sm_${architecture}")
    set(newest "${architecture}")
  else()
    message(STATUS "lladav: this CUDA toolkit cannot compile for compute capability ${architecture}; left out")
  endif()
endforeach()
if(NOT code)
  message(FATAL_ERROR "lladav: ${LLADAV_NVCC} knows none of the compute capabilities ${LLADAV_ARCHITECTURES}")
endif()
# For GPUs that are newer: the driver compiles it when it is loaded.
list(APPEND code -gencode "arch=compute_${newest},code=compute_${newest}")

file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cu")
file(GLOB headers CONFIGURE_DEPENDS "${folder}/*.cuh")
# A module is one compiled unit.
set(unit "${CMAKE_CURRENT_BINARY_DIR}/lladav_kernels.cu")
list(TRANSFORM sources REPLACE "(.+)" "#include \"\\1\"\n" OUTPUT_VARIABLE includes)
string(JOIN "" includes ${includes})
file(CONFIGURE OUTPUT "${unit}" CONTENT "${includes}")

# Products are not contracted with sums, because the host rounds both. Not compressed, it can be searched for names.
add_custom_command(
  OUTPUT "${LLADAV_FAT_BINARY}"
  COMMAND "${LLADAV_NVCC}" -fatbin -std=c++17 -fmad=false --no-compress ${code}
    -o "${CMAKE_CURRENT_BINARY_DIR}/lladav_kernels.fatbin" "${unit}"
  COMMAND "${CMAKE_COMMAND}" -E rename "${CMAKE_CURRENT_BINARY_DIR}/lladav_kernels.fatbin" "${LLADAV_FAT_BINARY}"
  DEPENDS "${unit}" ${sources} ${headers}
  COMMENT "Compiling the GPU kernels for ${LLADAV_ARCHITECTURES}"
  VERBATIM)
add_custom_target(kernels ALL DEPENDS "${LLADAV_FAT_BINARY}")
