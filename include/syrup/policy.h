/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The policy SDK: what every policy may use, whatever its input. Policies
 * include <syrup/packet.h> or <syrup/thread.h>, which include this file.
 *
 * A policy is one C file that defines schedule() and its Maps. No section
 * names, no licence line, no kernel headers: the engine adds the trusted half.
 */
#ifndef SYRUP_POLICY_H
#define SYRUP_POLICY_H

#include <syrup/abi.h>

#ifndef NULL
#define NULL ((void *)0)
#endif
#ifndef bool
#define bool  _Bool
#define true  1
#define false 0
#endif

#define SYRUP_INLINE static inline __attribute__((always_inline))

/*
 * What the object was compiled against, for the check: structs of another version would
 * be misread without a word. libbpf makes no Map of a section of this name.
 */
static const __u32 __syrup_abi_version __attribute__((section(".syrup.abi"), used)) =
	SYRUP_ABI_VERSION;

/*
 * SYRUP_MAP(name, entries): a Map of __u64 values with keys 0..entries-1,
 * shared by all policies of the app that name it and by the app's processes,
 * which may map it into memory. New entries are 0.
 *
 * SYRUP_MAP_OF(name, type, entries): the same with values of another type. The
 * value's size is rounded up to 8 bytes in memory.
 */
#define SYRUP_MAP(name, entries) SYRUP_MAP_OF(name, __u64, entries)
#define SYRUP_MAP_OF(name, value_type, entries)                                                    \
	struct {                                                                                   \
		int (*type)[2]; /* BPF_MAP_TYPE_ARRAY */                                           \
		__u32 *key;                                                                        \
		value_type *value;                                                                 \
		int (*max_entries)[entries];                                                       \
		int (*map_flags)[1 << 10]; /* BPF_F_MMAPABLE */                                    \
	} name __attribute__((section(".maps"), visibility("default"), used))

/*
 * SYRUP_PARAM(type, NAME, default): a constant that the deployer may change
 * with `--set NAME=value` before the policy is loaded.
 */
#define SYRUP_PARAM(type, name, initial) const volatile type name = (initial)

/* syrup_map_lookup(&map, key): a pointer to the value, or NULL if key is out of range. */
#define syrup_map_lookup(map, key) ((__typeof__((map)->value))__syrup_map_lookup((map), (key)))

SYRUP_INLINE void *__syrup_map_lookup(void *map, __u32 key)
{
	void *(*const lookup)(void *, const void *) = (void *)1; /* bpf_map_lookup_elem */

	return lookup(map, &key);
}

/* A pseudo-random number (bpf_get_prandom_u32). */
SYRUP_INLINE __u32 syrup_random(void)
{
	__u32 (*const prandom)(void) = (void *)7;

	return prandom();
}

/* CLOCK_MONOTONIC in nanoseconds (bpf_ktime_get_ns). */
SYRUP_INLINE __u64 syrup_now_ns(void)
{
	__u64 (*const ktime)(void) = (void *)5;

	return ktime();
}

/* The trusted half defines it and keeps it up to date: see syrup_num_executors(). */
extern __u32 syrup_nr_executors;

#endif /* SYRUP_POLICY_H */
