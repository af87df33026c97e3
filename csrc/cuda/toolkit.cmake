# Decides whether the CUDA kernels are built, and for which architectures. Sets
#   cuda_toolkit             version of nvcc, empty if they are not built
#   cuda_architectures       in the form of CMake, and cuda_architectures_text for messages
#   cuda_reason              why they are not built

set(cuda_toolkit "")
set(cuda_architectures "")
set(cuda_reason "")

if(LAPAL_EXT_CUDA STREQUAL "off")
  set(cuda_reason "LAPAL_EXT_CUDA=off was set when lapal_ext was installed")
elseif(LAPAL_EXT_CUDA STREQUAL "auto" AND torch_cuda STREQUAL "none")
  set(cuda_reason "lapal_ext was built beside torch ${torch_version}, which has no CUDA")
else()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_reason "no working nvcc was found when lapal_ext was installed")
    if(LAPAL_EXT_CUDA STREQUAL "on")
      message(FATAL_ERROR "LAPAL_EXT_CUDA=on, but ${cuda_reason}")
    endif()
  endif()
endif()

if(NOT cuda_reason)
  # The architectures are those of the target; the check of the compiler needs any that it knows.
  set(CMAKE_CUDA_ARCHITECTURES 80)
  enable_language(CUDA)
  string(REGEX MATCH "^[0-9]+" torch_cuda_major "${torch_cuda}")
  string(REGEX MATCH "^[0-9]+" nvcc_major "${CMAKE_CUDA_COMPILER_VERSION}")
  string(REGEX MATCH "^[0-9]+[.][0-9]+" cuda_toolkit "${CMAKE_CUDA_COMPILER_VERSION}")
  if(NOT torch_cuda STREQUAL "none" AND NOT torch_cuda_major STREQUAL nvcc_major)
    set(cuda_reason "nvcc is of CUDA ${cuda_toolkit}, and torch ${torch_version} of CUDA ${torch_cuda}")
    if(LAPAL_EXT_CUDA STREQUAL "on")
      message(FATAL_ERROR "LAPAL_EXT_CUDA=on, but ${cuda_reason}: install nvcc of CUDA ${torch_cuda_major}")
    endif()
    set(cuda_toolkit "")
  endif()
endif()

# Machine code for each (A100, RTX 30, H100, B200, RTX 50), and PTX of the newest for what comes after.
if(cuda_toolkit)
  if(LAPAL_EXT_CUDA_ARCHITECTURES)
    set(cuda_architectures ${LAPAL_EXT_CUDA_ARCHITECTURES})
  elseif(cuda_toolkit VERSION_LESS "12.8")
    set(cuda_architectures 80-real 86-real 90)
  else()
    set(cuda_architectures 80-real 86-real 90-real 100-real 120)
  endif()
  message(STATUS "CUDA kernels: nvcc ${cuda_toolkit}, architectures ${cuda_architectures}")
else()
  message(STATUS "CUDA kernels: none, because ${cuda_reason}")
endif()
list(JOIN cuda_architectures " " cuda_architectures_text)
