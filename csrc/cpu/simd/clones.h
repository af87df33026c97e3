// Whether the compiler can build a function once per instruction set for the dynamic loader to choose from (ifunc).
// It needs glibc; elsewhere the baseline serves.
#pragma once

#include <cstdlib>  // any header of the C library says whether it is glibc

#if defined(__x86_64__) && defined(__GLIBC__) && \
    ((defined(__clang__) && __clang_major__ >= 18) || (!defined(__clang__) && __GNUC__ >= 12))
#define LAPAL_HAS_CLONES 1
#define LAPAL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
// Where registers of 64 bytes want other code: a function for machines that have them, and one for all others, to be
// chosen by has_avx512().
#define LAPAL_AVX512 __attribute__((target("arch=x86-64-v4")))
#define LAPAL_NOT_AVX512 __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define LAPAL_HAS_CLONES 0
#define LAPAL_CLONES
#define LAPAL_AVX512
#define LAPAL_NOT_AVX512
#endif
