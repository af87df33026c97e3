// Function clones: the compiler builds a function once for each instruction set, and the dynamic loader chooses one
// when the library is loaded (ifunc). This needs glibc; on other systems there is one baseline function.
#pragma once

#include <cstdlib>  // any header of the C library says whether it is glibc

#if defined(__x86_64__) && defined(__GLIBC__) && \
    ((defined(__clang__) && __clang_major__ >= 18) || (!defined(__clang__) && __GNUC__ >= 12))
#define LAPAL_HAS_CLONES 1
#define LAPAL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
// For kernels whose code differs with AVX-512: one function for machines that have it and one for all others. The
// caller chooses by has_avx512().
#define LAPAL_AVX512 __attribute__((target("arch=x86-64-v4")))
#define LAPAL_NOT_AVX512 __attribute__((target_clones("arch=x86-64-v3", "default")))
// For parts of such a kernel that keep their values in registers from call to call, which Clang would not inline.
#define LAPAL_AVX512_INLINED LAPAL_AVX512 inline __attribute__((always_inline))
#else
#define LAPAL_HAS_CLONES 0
#define LAPAL_CLONES
#define LAPAL_AVX512
#define LAPAL_NOT_AVX512
#endif
